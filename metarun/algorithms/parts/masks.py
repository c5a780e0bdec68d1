"""Which named tensors: what is adapted and what is meta-learned, as masks over a model.

Any part may be adapted and any other meta-learned; together the two masks name a method.
"""

from __future__ import annotations

from collections.abc import Callable
from fnmatch import fnmatchcase

from torch import Tensor

from metarun.errors import ConfigError
from metarun.gradients.metagradient import MetaGrad, MetaGradient
from metarun.inner import Learner
from metarun.models.net import ADAPTER, norm_parameters
from metarun.nearest import did_you_mean, shown
from metarun.problem import Meta, Params, Problem
from metarun.tasks import Tasks

Mask = str | list[str]  # a part, a pattern over names ("body.blocks.0.*"), or a list of these
PARTS = ("all", "head", "body", "last_block", "norm", "adapters")


def matched(key: str, mask: Mask, problem: Problem) -> frozenset[str]:
    """Return the names of the parameters that a mask matches; `key` is the setting's name.

    `last_block` is the head and the last block of the body, as fine-tuning papers have it.

    Raises:
        ConfigError: a part or pattern matches nothing in this model.
    """
    found: set[str] = set()
    for item in [mask] if isinstance(mask, str) else mask:
        names = _part(item, problem) if item in PARTS else _like(item, problem)
        if not names:
            there = [part for part in PARTS if _part(part, problem)]
            raise ConfigError(
                f"{key}: {shown(item)} matches no parameter of this model"
                f"{did_you_mean(item, there)}; must be {', '.join(there)}, a pattern over names "
                f"such as {shown(next(iter(problem.initial())))}, or a list of these"
            )
        found |= names
    if not found:
        raise ConfigError(f"{key}: [] names no parameter; must be all or a part of the model")
    return frozenset(found)


def moved(key: str, mask: Mask, problem: Problem) -> frozenset[str]:
    """Return the matched names that the model lets an inner loop move.

    Raises:
        ConfigError: it lets none of them, or as in `matched`.
    """
    if mask == "all":
        return problem.model.adapted
    names = matched(key, mask, problem) & problem.model.adapted
    if not names:
        raise ConfigError(
            f"{key}: {shown(mask)} is held by the model in the inner loop; set "
            "model.adapt_norm=true or choose another part"
        )
    return names


def _part(part: str, problem: Problem) -> set[str]:
    names = list(problem.initial())
    match part:
        case "all":
            return set(names)
        case "norm":
            return set(norm_parameters(problem.model))
        case "adapters":
            return {name for name in names if name.rpartition(".")[2].startswith(ADAPTER)}
        case "last_block":
            body = [name.split(".") for name in names if name.startswith("body.")]
            return _last(body) | _part("head", problem)
        case _:
            return {name for name in names if name.startswith(f"{part}.")}


def _last(paths: list[list[str]]) -> set[str]:
    """Return the names in the last block: what bears its number, or the last layer's if none does.

    Blocks are numbered in one list, or in several side by side (linears.1 and norms.1).
    """
    if not paths:
        return set()
    end = paths[-1]
    at = next((i for i, part in enumerate(end) if part.isdigit()), len(end) - 2)
    return {".".join(path) for path in paths if path[at : at + 1] == end[at : at + 1]}


def _like(pattern: str, problem: Problem) -> set[str]:
    return {name for name in problem.initial() if fnmatchcase(name, pattern)}


def held_back(params: Params, learned: frozenset[str]) -> Meta:
    """Split parameters into what training moves, `params`, and what it holds, `frozen`."""
    rest = {name: value for name, value in params.items() if name not in learned}
    moving = {name: value for name, value in params.items() if name in learned}
    return {"params": moving, "frozen": rest} if rest else {"params": moving}


def of_learned(learner: Learner, build: Callable[[Learner], MetaGrad]) -> MetaGrad:
    """Return the meta-gradient over what training moves; the frozen group is a constant in it.

    No estimator sees that group, so that none spends an operation on its gradient.
    """
    whole = build(learner)

    def meta_grad(meta: Meta, tasks: Tasks, step: int) -> MetaGradient:
        if "frozen" not in meta:
            return whole(meta, tasks, step)
        learned = {group: params for group, params in meta.items() if group != "frozen"}

        def start(learned: Meta, x: Tensor, y: Tensor) -> Params:
            return learner.start({**learned, "frozen": meta["frozen"]}, x, y)

        return build(learner._replace(start=start))(learned, tasks, step)

    return meta_grad
