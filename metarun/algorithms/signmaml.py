"""MAML whose inner loop moves by the sign of the gradient: first order, and exact."""

from __future__ import annotations

from collections.abc import Callable

import torch

from metarun.algorithms.base import (
    Count,
    MetaAlgorithm,
    Rate,
    adapting,
    plain_learner,
    shared_params,
)
from metarun.gradients.estimators import estimate
from metarun.problem import Meta, Params, Problem

ROUNDING = 32  # machine epsilons


def signmaml(problem: Problem, *, inner_lr: Rate, steps: Count) -> MetaAlgorithm:
    """Learn a start from which a few sign steps solve a task.

    Fan et al., 2021, arXiv:2109.07497. The derivative of the sign is zero almost everywhere, so
    that the first-order gradient is the gradient, and no second derivative is ever needed.
    """
    learner = plain_learner(problem, sign_descent(inner_lr))
    meta_grad = estimate("first_order", problem, learner, steps)
    return MetaAlgorithm(shared_params, adapting(learner), meta_grad, exact=True)


def sign_descent(inner_lr: float) -> Callable[[Meta, int, Params, Params], Params]:
    """Return the update of signSGD, parameters minus rate times the gradient's sign.

    What is rounding beside the largest entry counts as zero: a bias before a batch normalisation
    would else walk at random. A gradient that is not finite gives steps that are not.
    """

    def update(meta: Meta, step: int, params: Params, gradient: Params) -> Params:
        largest = torch.stack([g.abs().max() for g in gradient.values()]).max()
        floor = ROUNDING * torch.finfo(largest.dtype).eps * largest
        signs = {n: torch.where(g.abs() > floor, g.sign(), 0 * floor) for n, g in gradient.items()}
        return {n: value - inner_lr * signs[n] for n, value in params.items()}

    return update
