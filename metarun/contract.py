"""What a data set, a network and an algorithm must be, looked at before a run begins with them.

Those of metarun are; a user's own that is not would fail deep in torch, or give numbers that are
not what the report says of them.
"""

from __future__ import annotations

import inspect
from dataclasses import replace
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase  # pyright: ignore[reportPrivateUsage]
from torch.nn.modules.dropout import _DropoutNd  # pyright: ignore[reportPrivateUsage]
from torch.nn.parameter import is_lazy

from metarun.algorithms.base import MetaAlgorithm
from metarun.data.source import Source, Split
from metarun.errors import ConfigError, DataError
from metarun.gradients.metagradient import pull_back
from metarun.models.net import Net, alone_in_norm
from metarun.problem import Meta
from metarun.settings.sections import Budget, TaskShape
from metarun.tasks import Tasks

ROWS = 2  # of inputs, and of tasks: what is wrong with several shows with two


def as_source(called: str, found: Any) -> Source:
    """Return a data set that has every member of a Source.

    Raises:
        ConfigError: it has not, or is of no known kind.
    """
    members = (name for name in vars(Source) if name[0] != "_")
    if missing := [name for name in members if not hasattr(found, name)]:
        raise ConfigError(
            f"{called}: its factory gave {_a(found)} without {', '.join(missing)}; must be a "
            "Source, as metarun/data/source.py describes it"
        )
    if found.kind not in ("classification", "regression"):
        raise ConfigError(f"{called}: kind {found.kind!r}; must be classification or regression")
    return found


def check_tasks(called: str, source: Source, task: TaskShape, seed: int) -> None:
    """Look at the first tasks of each split: shapes, types, labels, and that they are repeated.

    Raises:
        DataError: they are not of the shape that the settings ask for, or not a function of the
            split, their numbers and the seed alone, on which pairing and resuming rest.
    """
    splits: tuple[Split, ...] = ("train", "validation", "test")
    for split in splits:
        queries = task.test_queries if split == "test" else task.queries
        shape = {"ways": task.ways, "shots": task.shots, "queries": queries}
        both = source.tasks(split, 0, ROWS, **shape, seed=seed)
        where = f"{called}: tasks of the {split} split"
        if not isinstance(both, Tasks):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise DataError(f"{where}: {_a(both)}; must be Tasks of metarun.tasks")
        _check_shapes(where, both, source, replace(task, queries=queries))
        again = source.tasks(split, 0, ROWS, **shape, seed=seed)
        alone = source.tasks(split, ROWS - 1, 1, **shape, seed=seed)
        last = both[ROWS - 1 :]
        for what, first, second, same in (
            ("again", both, again, torch.equal),
            ("alone", last, alone, _close),  # a longer row may be rounded otherwise
        ):
            if not all(map(same, first.tensors(), second.tensors())):
                raise DataError(
                    f"{where}: asked for {what}, the same ones are others; draw them from the "
                    "split, the task's own number and the seed alone, in a generator of their own"
                )


def check_examples(called: str, source: Source, seed: int) -> None:
    """Look at a few examples, for a method that is pre-trained.

    Raises:
        DataError: they are not of the shape that the data set says.
    """
    x, y = source.examples(0, ROWS, seed=seed)
    where = f"{called}: examples"
    _check_inputs(f"{where} x", x, (ROWS, *source.features))
    if source.kind == "regression":
        _check_inputs(f"{where} y", y, (ROWS, source.targets))
    else:
        _check_labels(f"{where} y", y, (ROWS,), source.train_classes, "train_classes")


def _check_shapes(where: str, tasks: Tasks, source: Source, task: TaskShape) -> None:
    """Compare with what was asked for; `queries` are those of the split."""
    for part, count in (("support", task.shots), ("query", task.queries)):
        rows = (ROWS, task.ways * count)
        x, y = getattr(tasks, f"{part}_x"), getattr(tasks, f"{part}_y")
        _check_inputs(f"{where}: {part}_x", x, (*rows, *source.features))
        if source.kind == "regression":
            _check_inputs(f"{where}: {part}_y", y, (*rows, source.targets))
        else:
            _check_labels(f"{where}: {part}_y", y, rows, task.ways, "task.ways")
    _check_labels(f"{where}: mode", tasks.mode, (ROWS,), len(source.modes), "modes")


def _check_inputs(what: str, found: Any, shape: tuple[int, ...]) -> None:
    _check_shape(what, found, shape)
    if not found.is_floating_point():
        raise DataError(f"{what} is {found.dtype}; must be torch.float32 (images in 0..1)")
    if not found.isfinite().all():
        raise DataError(f"{what} holds values that are not finite; leave them out")


def _check_labels(what: str, found: Any, shape: tuple[int, ...], count: int, of: str) -> None:
    _check_shape(what, found, shape)
    if found.dtype != torch.int64:
        raise DataError(f"{what} is {found.dtype}; must be torch.int64")
    least, most = int(found.min()), int(found.max())
    if least < 0 or most >= count:
        raise DataError(f"{what} holds {least} to {most}; must be 0 to {count - 1} ({of}: {count})")


def _check_shape(what: str, found: Any, shape: tuple[int, ...]) -> None:
    if not isinstance(found, Tensor):
        raise DataError(f"{what} is {_a(found)}; must be a tensor")
    if tuple(found.shape) != shape:
        raise DataError(f"{what} is {[*found.shape]}; must be {[*shape]}")


def _close(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.allclose(one, other, rtol=1e-4, atol=1e-5)


def as_net(called: str, found: Any, features: tuple[int, ...], outputs: int) -> Net:
    """Return a network that is a function of its input and of parameters that can all be moved.

    Raises:
        ConfigError: it is none, keeps state, draws at random, or gives other shapes.
    """
    if not isinstance(found, Net):
        raise ConfigError(
            f"{called}: its factory gave {_a(found)}; must be a Net of metarun.models.net, made of "
            "a body, the width of its features and the number of outputs"
        )
    for name, module in found.named_modules():
        _refuse_stateful(f"{called}: {name} ({type(module).__name__})", module)
    _refuse_immovable(called, found)
    try:
        inspect.signature(found.body.forward).bind(0, None)
    except TypeError:
        raise ConfigError(
            f"{called}: the forward of its body ({type(found.body).__name__}) takes no reference; "
            "must be forward(self, x, reference=None), of which a network without batch "
            "normalisation uses x alone"
        ) from None
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        _check_answers(called, found, features, outputs)
    return found


def _refuse_stateful(what: str, module: nn.Module) -> None:
    if isinstance(module, _NormBase) and module.track_running_stats:
        raise ConfigError(
            f"{what} keeps averages of what it has seen, which tasks must not share; use "
            "Norm(channels, 'batch') of metarun.models.layers, or GroupNorm or LayerNorm"
        )
    drops = module.p if isinstance(module, _DropoutNd) else getattr(module, "dropout", 0.0)
    if module.training and isinstance(drops, float) and drops > 0:
        raise ConfigError(
            f"{what} draws at random, and a meta-gradient must be a function of its tasks; leave "
            "it out, or set its probability to 0"
        )


def _refuse_immovable(called: str, net: Net) -> None:
    names: dict[int, str] = {}
    for name, value in net.named_parameters(remove_duplicate=False):
        if is_lazy(value):
            raise ConfigError(f"{called}: {name} has no shape yet; say how wide its inputs are")
        if not value.requires_grad:
            raise ConfigError(
                f"{called}: {name} requires no gradient, and would be moved like all others; make "
                "it a buffer, or leave it to algo.adapt and algo.learn"
            )
        if id(value) in names:
            raise ConfigError(
                f"{called}: {names[id(value)]} and {name} are one tensor; keep it once, in a layer "
                "that forward calls twice"
            )
        names[id(value)] = name


def _check_answers(called: str, net: Net, features: tuple[int, ...], outputs: int) -> None:
    if len({value.dtype for value in net.parameters()}) > 1:
        net.double()  # all of it is given the run's precision later
    x = torch.linspace(0, 1, ROWS * prod(features)).view(ROWS, *features)
    x = x.to(next(net.parameters()))
    _check_wide(f"{called}: its body", net.body(x, None), features, net.width)
    first, second = net(x), net(x)
    _check_wide(f"{called}: it", first, features, outputs)
    if not torch.allclose(first, second, equal_nan=True):
        raise ConfigError(
            f"{called}: gives the same input another output the second time; must be a function of "
            "its input and parameters, without state and chance"
        )
    parameters = dict(net.named_parameters())
    pulls = pull_back([first.sum()], list(parameters.values()), [first.new_ones(())])
    if unused := [n for n, pull in zip(parameters, pulls, strict=True) if pull is None]:
        raise ConfigError(
            f"{called}: no output depends on {', '.join(unused)}, and nothing could move it; leave "
            "it out"
        )


def _check_wide(what: str, found: Tensor, features: tuple[int, ...], width: int) -> None:
    if tuple(found.shape) != (ROWS, width):
        raise ConfigError(
            f"{what} gives {[*found.shape]} for {ROWS} inputs of {[*features]}; must give "
            f"{[ROWS, width]}"
        )


def refuse_lone_rows(model: Net, task: TaskShape, features: tuple[int, ...]) -> None:
    """Raise ConfigError where batch statistics are of a single row: they leave nothing of it."""
    rows = {"shots": task.shots}
    if model.bn_mode == "transductive":
        rows |= {"queries": task.queries, "test_queries": task.test_queries}
    for key, count in rows.items() if model.bn_mode else ():
        if task.ways * count == 1 and alone_in_norm(model, features):
            raise ConfigError(
                f"task.{key}: 1 leaves model.norm=batch a single row, whose variance is 0; set it "
                "to 2 or more, or model.norm=layer, group or none"
            )


def as_algorithm(called: str, found: Any) -> MetaAlgorithm:
    """Return an algorithm.

    Raises:
        ConfigError: it is none.
    """
    if not isinstance(found, MetaAlgorithm):
        raise ConfigError(
            f"{called}: its factory gave {_a(found)}; must be a MetaAlgorithm of "
            "metarun.algorithms.base"
        )
    return found


def refuse_late_turn(algorithm: MetaAlgorithm, budget: Budget) -> None:
    """Raise ConfigError where training ends before the algorithm's second phase begins."""
    turn = algorithm.turn
    if turn is not None and budget.unit == "meta_steps" and turn.step >= budget.total:
        raise ConfigError(
            f"algo.warm_up: {turn.step} meta-steps, and the budget ends before the phase after "
            f"them; give fewer, or a budget.total above {turn.step} (here {budget.total:g})"
        )


def as_meta(called: str, found: Any) -> Meta:
    """Return meta-parameters: groups of named tensors.

    Raises:
        ConfigError: they are of another form.
    """
    groups: dict[str, Any] = found if isinstance(found, dict) else {"": found}
    for group, params in groups.items():
        named: dict[str, Any] = params if isinstance(params, dict) else {"": params}
        for name, value in named.items():
            if not (group and name and isinstance(value, Tensor)):
                there = f" for {group}{f'/{name}' * bool(name)}" if group else ""
                raise ConfigError(
                    f"{called}: its init gave {_a(value)}{there}; must be groups of named tensors, "
                    "as {'params': {'head.bias': tensor}}"
                )
    return groups


def _a(found: Any) -> str:
    return "None" if found is None else f"a {type(found).__name__}"
