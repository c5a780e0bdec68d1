"""No learning before the task: the floor that everything else is measured from."""

from __future__ import annotations

import torch

from metarun.algorithms.base import MetaAlgorithm, RateGrid, adapting, plain_learner
from metarun.problem import Meta, Params, Problem


def chosen_rate_descent(meta: Meta, step: int, params: Params, gradient: Params) -> Params:
    """Move by the rate that validation tasks chose, `meta["rates"]["inner_lr"]`."""
    rate = meta["rates"]["inner_lr"]
    return {name: value - rate * gradient[name] for name, value in params.items()}


def rate_grid(grid: list[float]) -> dict[str, tuple[float, ...]]:
    """Return what `MetaAlgorithm.tuned` needs to choose `inner_lr` on validation tasks."""
    return {"inner_lr": tuple(grid)}


def scratch(problem: Problem, *, lr_grid: RateGrid) -> MetaAlgorithm:
    """Adapt every task from the model's random initial values; nothing is trained.

    The rate and the number of steps are chosen on validation tasks, as for every method.
    """

    def init(params: Params) -> Meta:
        return {"params": params, "rates": {"inner_lr": torch.tensor(lr_grid[0])}}

    learner = plain_learner(problem, chosen_rate_descent)
    return MetaAlgorithm(init, adapting(learner), None, tuned=rate_grid(lr_grid))
