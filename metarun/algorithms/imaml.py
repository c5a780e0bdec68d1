"""Implicit MAML: a proximal inner problem, differentiated at its solution."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor

from metarun.algorithms.base import (
    Count,
    MetaAlgorithm,
    Rate,
    adapting,
    plain_start,
    shared_params,
)
from metarun.implicit import implicit
from metarun.inner import Learner, gradient_descent
from metarun.problem import Meta, Params, Problem


def imaml(
    problem: Problem,
    *,
    inner_lr: Rate,
    steps: Count,
    proximal: Rate,
    solver: Literal["cg", "neumann"],
    cg_steps: Count,
    cg_tolerance: Annotated[float, Field(ge=0)],
    terms: Annotated[int, Field(ge=0)],
    damping: Annotated[float, Field(ge=0)],
) -> MetaAlgorithm:
    """Learn a start that regularised adaptation is pulled back to.

    Rajeswaran et al., 2019, arXiv:1909.04630: the inner objective is the support loss plus
    proximal/2 times the squared distance from the start (equation 3), here in every inner step.
    `solver=neumann` sums `terms` powers of the Hessian beyond the first, which is first order;
    it needs a Hessian smaller than `proximal`.
    """
    names = problem.model.adapted

    def loss(meta: Meta, params: Params, x: Tensor, y: Tensor) -> Tensor:
        apart = sum((params[n] - meta["params"][n]).square().sum() for n in sorted(names))
        return problem.loss(params, x, y) + 0.5 * proximal * apart

    learner = Learner(plain_start, loss, gradient_descent(inner_lr), names)
    meta_grad = implicit(
        problem,
        learner,
        steps,
        solver=solver,
        cg_steps=cg_steps,
        cg_tolerance=cg_tolerance,
        terms=terms,
        damping=damping,
        proximal=proximal,
    )
    return MetaAlgorithm(shared_params, adapting(learner), meta_grad, exact=False)
