"""How well one start fits one task, as its support alone tells it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Literal

import torch
from torch import Tensor
from torch.func import grad

from metarun.errors import ConfigError
from metarun.problem import Meta, Params, Problem

Score = Literal["before", "after", "holdout"]
Update = Callable[[Meta, int, Params, Params], Params]


def fit(
    problem: Problem,
    update: Update,
    steps: int,
    proximal: float,
    params: Params,
    x: Tensor,
    y: Tensor,
) -> Params:
    """Return one task's parameters after `steps` on a support, with no way back through them."""
    names, begun = sorted(problem.model.adapted), params

    def loss(params: Params) -> Tensor:
        if not proximal:
            return problem.loss(params, x, y)
        apart = sum((params[name] - begun[name]).square().sum() for name in names)
        return problem.loss(params, x, y) + 0.5 * proximal * apart

    for step in range(steps):
        gradient = grad(loss)(params)
        adapted = {name: params[name] for name in problem.model.adapted}
        params = params | update({}, step, adapted, gradient)
    return params


def support_score(
    problem: Problem,
    how: Score,
    folds: int | None,
    update: Update,
    steps: int,
    proximal: float,
) -> Callable[[Params, Tensor, Tensor], Tensor]:
    """Return a function from a start and one support to its mean loss, lower for a better fit.

    `before` adaptation, `after` it, or `holdout`: adapted on all but one of `folds` parts of
    each class and scored on that part, in turn; every example is a part when there is no number.
    """

    fitted = partial(fit, problem, update, steps, proximal)

    def score(params: Params, x: Tensor, y: Tensor) -> Tensor:
        if how == "before":
            return problem.loss(params, x, y)
        if how == "after":
            return problem.loss(fitted(params, x, y), x, y)
        losses = [
            problem.loss(fitted(params, x[learn], y[learn]), x[held], y[held])
            for learn, held in _parts(problem, folds, y)
        ]
        return torch.stack(losses).mean()

    return score


def check_score(problem: Problem, how: Score, setting: str) -> None:
    """Refuse a score that is noise on this problem.

    Raises:
        ConfigError: `before` adaptation in classification.
    """
    if how == "before" and problem.kind == "classification":
        raise ConfigError(
            f"{setting}: before adaptation every start is at chance when labels are permuted; "
            f"use {setting}=holdout (2 shots or more) or after"
        )


def least_shots(how: Score, folds: int | None) -> int:
    """Return the fewest shots that leave no part of a class empty: one a fold."""
    return (folds or 2) if how == "holdout" else 1


def _parts(problem: Problem, folds: int | None, y: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield what is learned from and what is held out, each part of every class in turn.

    A row's part is that of its place within its class, so that names of classes mean nothing.
    """
    order, shots = torch.arange(len(y), device=y.device), len(y)
    place = order
    if problem.kind == "classification":
        shots = max(1, len(y) // problem.model.outputs)
        order, place = torch.argsort(y, stable=True), place % shots
    count = folds or shots
    for part in range(count):
        yield order[place % count != part], order[place % count == part]
