"""`metarun verify`: the gradient checks, on the user's own model, algorithm and data shape."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from metarun import console
from metarun.assemble import Experiment, assemble
from metarun.chunks import in_chunks, map_meta
from metarun.config import check, compose_job
from metarun.data.fetch import data_root
from metarun.estimators import MetaGrad
from metarun.problem import Meta
from metarun.tasks import Tasks

TASKS = 3  # enough to tell a loop from a batch
H = 1e-6  # of finite differences; kinks of ReLU and max-pool break larger steps
DIRECTIONS = 4
EXACT = 1e-5  # relative error below which a gradient is the true one; kinks leave some
KINK = 1e-2  # no kink makes a larger error likely
SAME = 1e-9  # relative difference of two ways to compute the same in float64


class Row(NamedTuple):
    """One check and what it found."""

    name: str
    state: Literal["ok", "warn", "fail"]
    detail: str


def main(argv: list[str]) -> int:
    """Check the composed experiment in float64 on a few tasks; return 0 or 1."""
    config = compose_job([*argv, "hardware.dtype=float64"])
    experiment = assemble(check(config), data_root())
    console.say(f"algo={config['choices']['algo']} model={config['choices']['model']}, float64")
    rows = list(checks(experiment))
    console.say(console.check_table("Meta-gradient", rows))
    return int(any(row.state == "fail" for row in rows))


def checks(experiment: Experiment) -> Iterator[Row]:
    """Yield every check that applies to the experiment's algorithm."""
    meta_grad = experiment.algorithm.meta_grad
    meta = experiment.initial()
    yield _adaptation(experiment, meta)
    if experiment.problem.model.bn_mode != "running":  # has its averages at test only
        yield _normalisation(experiment, meta)
    if meta_grad is None:
        yield Row("gradient", "ok", "the algorithm trains nothing")
        return
    tasks = _few(experiment)
    whole = meta_grad(meta, tasks, 0)
    yield _row("repeated", _apart(meta_grad(meta, tasks, 0).gradient, whole.gradient), 0.0)
    if len(tasks) > 1:
        one_by_one, _ = in_chunks(meta_grad, meta, tasks, 0, 1)
        yield _row("loop = vmap", _apart(one_by_one.gradient, whole.gradient), SAME)
    error = finite_difference(meta_grad, meta, tasks)
    if not experiment.algorithm.exact:
        detail = f"an approximation, as it says: relative error {error:.1e}"
        yield Row("finite differences", "ok", detail)
    elif error < EXACT:
        yield Row("finite differences", "ok", f"exact, as it says: relative error {error:.1e}")
    else:
        detail = f"said to be exact: relative error {error:.1e}; a kink of ReLU or max-pool?"
        yield Row("finite differences", "fail" if error > KINK else "warn", detail)


def _few(experiment: Experiment) -> Tasks:
    small = replace(experiment, outer=replace(experiment.outer, batch=TASKS))
    return small.batch(0)


def _adaptation(experiment: Experiment, meta: Meta) -> Row:
    tasks = experiment.tasks("validation", 0, 2)
    support = (tasks.support_x, tasks.support_y)
    one, other = (list(experiment.algorithm.adapt(meta, *support, 1))[-1] for _ in range(2))
    same = all(torch.equal(one[name], other[name]) for name in one)
    return Row("adaptation", "ok" if same else "fail", "from the support alone; repeats bitwise")


def _normalisation(experiment: Experiment, meta: Meta) -> Row:
    """Find out whether a query's prediction depends on the other queries, as the mode says."""
    task = experiment.tasks("validation", 0, 1)
    params = list(experiment.algorithm.adapt(meta, task.support_x, task.support_y, 1))[-1]
    alone = {name: value[0] for name, value in params.items()}
    support, query = task.support_x[0], task.query_x[0]
    other = torch.cat([query[:1], 0.5 * query[1:] + 0.3])
    with torch.no_grad():
        outputs = [experiment.problem.predict(alone, support, x)[0] for x in (query, other)]
    depends = not torch.allclose(*outputs, rtol=SAME, atol=SAME)
    said = experiment.normalisation()
    expected = said == "batch, transductive" and len(query) > 1
    detail = f"{said}: a prediction {'depends' if depends else 'does not depend'} on other queries"
    return Row("normalisation", "ok" if depends == expected else "fail", detail)


def finite_difference(meta_grad: MetaGrad, meta: Meta, tasks: Tasks) -> float:
    """Return the worst error of the gradient along random unit directions, relative to its norm."""
    gradient = meta_grad(meta, tasks, 0).gradient
    generator = torch.Generator().manual_seed(0)
    size = _norm(gradient)
    worst = 0.0
    for _ in range(DIRECTIONS):
        direction = map_meta(
            lambda v: torch.randn(v.shape, dtype=v.dtype, generator=generator).to(v.device),
            gradient,
        )
        length = _norm(direction)

        def loss(by: float, along: Meta = direction, length: float = length) -> float:
            there = {
                group: {
                    name: value + (by / length) * along[group][name] if group in along else value
                    for name, value in params.items()
                }
                for group, params in meta.items()
            }
            return float(meta_grad(there, tasks, 0).losses.mean())

        numeric = (loss(H) - loss(-H)) / (2 * H)
        claimed = sum(
            float((direction[g][n] * v).sum()) / length
            for g, params in gradient.items()
            for n, v in params.items()
        )
        worst = max(worst, abs(numeric - claimed) / size)
    return worst


def _norm(tree: Meta) -> float:
    norms: list[Tensor] = [v.norm() for params in tree.values() for v in params.values()]
    return float(torch.stack(norms).norm())


def _apart(a: Meta, b: Meta) -> float:
    apart = {g: {n: a[g][n] - v for n, v in params.items()} for g, params in b.items()}
    return _norm(apart) / max(_norm(b), torch.finfo(torch.float64).tiny)


def _row(name: str, found: float, allowed: float) -> Row:
    state = "ok" if found <= allowed else "fail"
    return Row(name, state, f"relative difference {found:.1e}")
