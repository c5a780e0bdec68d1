"""Meta-Curvature: a learned linear map of every gradient, in one small matrix an axis."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from metarun.algorithms.base import Count, MetaAlgorithm, Rate, adapting, plain_learner
from metarun.gradients.estimators import Estimator, estimate, is_exact, refuse_implicit
from metarun.problem import Meta, Params, Problem

GROUP = "curvature"
AXES: tuple[Literal["out", "in", "filter"], ...] = ("out", "in", "filter")


def metacurvature(
    problem: Problem, *, inner_lr: Rate, steps: Count, estimator: Estimator
) -> MetaAlgorithm:
    """Learn a start and the geometry in which its gradients are taken.

    Park and Oliva, 2019, arXiv:1902.03356 (their MC2): a weight's gradient [out, in, filter]
    is multiplied along each axis by a square matrix that begins as the identity, where the
    method is MAML; a bias or norm's by one number an entry, that begins at 1.
    """

    refuse_implicit(estimator, "the curvature (algo=metacurvature)")

    def init(params: Params) -> Meta:
        found: Params = {}
        for name, value in params.items():
            if name not in problem.model.adapted:
                continue
            if value.dim() < 2:
                found[name] = torch.ones_like(value)
                continue
            sizes = value.flatten(2).shape if value.dim() > 2 else value.shape
            for axis, size in zip(AXES, sizes, strict=False):
                found[f"{name}.{axis}"] = torch.eye(size, dtype=value.dtype, device=value.device)
        return {"params": params, GROUP: found}

    def update(meta: Meta, step: int, params: Params, gradient: Params) -> Params:
        return {
            name: value - inner_lr * transformed(meta[GROUP], name, gradient[name])
            for name, value in params.items()
        }

    learner = plain_learner(problem, update)
    return MetaAlgorithm(
        init,
        adapting(learner),
        estimate(estimator, problem, learner, steps),
        exact=is_exact(estimator),
    )


def transformed(curvature: Params, name: str, gradient: Tensor) -> Tensor:
    """Return a gradient multiplied along each of its axes by the matrices of that name."""
    if gradient.dim() < 2:
        return curvature[name] * gradient
    parts = gradient.flatten(2) if gradient.dim() > 2 else gradient[:, :, None]
    parts = torch.einsum("ab,bif->aif", curvature[f"{name}.out"], parts)
    parts = torch.einsum("ij,ajf->aif", curvature[f"{name}.in"], parts)
    if gradient.dim() > 2:
        parts = torch.einsum("fg,aig->aif", curvature[f"{name}.filter"], parts)
    return parts.reshape(gradient.shape)
