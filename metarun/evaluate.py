"""Adapt to fixed tasks and score every step: the same tasks for every method.

Letters in shapes: T tasks, K inner steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from math import isfinite
from typing import Literal

import torch
from torch import Tensor

from metarun.algorithms.base import MetaAlgorithm
from metarun.errors import ConfigError, DivergedError
from metarun.inner import over_tasks
from metarun.numerics.parallel import Workers
from metarun.problem import Meta, Params, Problem
from metarun.tasks import Tasks

Metric = Literal["accuracy", "mse"]
SMALLER = "a smaller outer.lr or a smaller inner rate (algo.inner_lr) may help"


@dataclass(frozen=True, slots=True)
class Scores:
    """One row a task, one column a number of adaptation steps."""

    metric: Metric
    values: Tensor  # [T, K+1] float64: fraction right, or mean squared error
    mode: Tensor  # [T]
    assignment: Tensor | None  # [T] the start that the support chose
    by_start: Tensor | None = None  # [T, M, K+1] from each start, where that was asked for
    at_once: int | None = None  # tasks that were scored together, once they fitted into memory

    def by_step(self) -> Tensor:
        """Return means over tasks, [K+1]; a step that diverged on any task is infinitely bad."""
        means = self.values.mean(0)
        worst = float("inf") if self.metric == "mse" else 0.0
        return torch.nan_to_num(means, nan=worst, posinf=worst)

    def best_step(self) -> int:
        """Return the number of steps with the best mean, the fewest of equals."""
        means = self.by_step()
        return int(means.argmin() if self.metric == "mse" else means.argmax())

    def goodness(self, step: int) -> float:
        """Return the mean at a step with its sign turned so that more is better."""
        mean = float(self.by_step()[step])
        return -mean if self.metric == "mse" else mean

    def refuse_infinite(self, split: str, step: int) -> None:
        """Raise DivergedError where the mean at a step is none: it cannot be reported."""
        lost = int((~torch.isfinite(self.values[:, step])).sum())
        if lost:
            raise DivergedError(
                f"diverged: {lost} of {len(self.values)} {split} tasks have no finite "
                f"{self.metric} after {step} inner steps; {SMALLER}"
            )


def evaluate(
    problem: Problem,
    algorithm: MetaAlgorithm,
    meta: Meta,
    batches: Iterator[Tasks],
    steps: int,
    check: Callable[[], None],
    workers: Workers,
    *,
    each_start: bool = False,
) -> Scores:
    """Score adaptation after 0..steps steps on every task; `check` is called between batches.

    With `each_start` also from every start, chosen or not: for the report, after all is decided.

    Raises:
        ConfigError: an adaptation is not the start and one set of parameters a step.
    """
    metric: Metric = "accuracy" if problem.kind == "classification" else "mse"

    def one(tasks: Tasks) -> tuple[Tensor | None, ...]:
        x, y = tasks.support_x, tasks.support_y

        def curve(adapted: Iterator[Params]) -> Tensor:
            found: list[Tensor] = []
            before: Params | None = None
            for params in counted(adapted, steps):
                same = params is before  # a closed form's at every step: scored once
                found.append(found[-1] if same else score(problem, params, tasks).double())
                before = params
            return torch.stack(found, 1).cpu()

        # The only place where a mode reaches an adaptation, and only that of an oracle.
        adapt = algorithm.oracle(tasks.mode) if algorithm.oracle else algorithm.adapt
        chosen = algorithm.assign(meta, x, y).cpu() if algorithm.assign else None
        starts = algorithm.each(meta, x, y, steps) if algorithm.each and each_start else []
        every = torch.stack([curve(adapted) for adapted in starts], 1) if starts else None
        return curve(adapt(meta, x, y, steps)), tasks.mode.cpu(), chosen, every

    columns: list[list[Tensor]] = [[], [], [], []]
    for found in workers.map(one, batches):
        check()
        for column, value in zip(columns, found, strict=True):
            if value is not None:
                column.append(value)
    values, mode, assignment, by_start = (torch.cat(c) if c else None for c in columns)
    assert values is not None
    assert mode is not None
    return Scores(metric, values, mode, assignment, by_start)


def counted(adapted: Iterator[Params], steps: int) -> Iterator[Params]:
    """Yield what an adaptation gives: the start, and the parameters after each step.

    Raises:
        ConfigError: it gives anything else, so that a curve would be of other steps.
    """
    found = 0
    for params in adapted:
        if not isinstance(params, dict):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigError(
                f"algo: its adapt gave a {type(params).__name__}; must yield the tasks' parameters "
                "by name, at the start and after each step"
            )
        found += 1
        yield params
    if found != steps + 1:
        raise ConfigError(
            f"algo: its adapt gave {found} sets of parameters for {steps} inner steps; must yield "
            f"{steps + 1}, the start and one after each step"
        )


def score(problem: Problem, params: Params, tasks: Tasks) -> Tensor:
    """Return every task's query accuracy or mean squared error, [T]."""
    with torch.no_grad():
        predict = over_tasks(problem.predict, shared=0, count=len(tasks))
        outputs = predict(params, tasks.support_x, tasks.query_x)
        if problem.kind == "classification":
            return (outputs.argmax(2) == tasks.query_y).double().mean(1)
        return (outputs - tasks.query_y).square().flatten(1).mean(1)


@dataclass(frozen=True, slots=True)
class Chosen:
    """What validation tasks decided: rates, the number of steps, and how good that was."""

    rates: dict[str, float]
    steps: int
    scores: Scores

    @property
    def goodness(self) -> float:
        """Return the validation mean, its sign turned so that more is better."""
        return self.scores.goodness(self.steps)

    def refuse_infinite(self) -> None:
        """Raise DivergedError where the best is no number."""
        if not isfinite(self.goodness):
            raise DivergedError(
                "diverged: after no number of inner steps is the validation score finite; "
                f"{SMALLER}"
            )


def choose(
    algorithm: MetaAlgorithm, meta: Meta, validate: Callable[[Meta], Scores]
) -> tuple[Chosen, Meta]:
    """Try every combination of the algorithm's tuned rates; return the best and its meta."""
    names = list(algorithm.tuned)
    best: tuple[Chosen, Meta] | None = None
    for values in product(*algorithm.tuned.values()):
        rates = dict(zip(names, values, strict=True))
        candidate = with_rates(meta, rates)
        scores = validate(candidate)
        chosen = Chosen(rates, scores.best_step(), scores)
        if best is None or chosen.goodness > best[0].goodness:
            best = chosen, candidate
    assert best is not None  # the product of no rates is one empty combination
    return best


def with_rates(meta: Meta, rates: dict[str, float]) -> Meta:
    """Return the meta-parameters with some of their rates replaced."""
    if not rates:
        return meta
    changed = {name: torch.full_like(meta["rates"][name], rate) for name, rate in rates.items()}
    return {**meta, "rates": {**meta["rates"], **changed}}
