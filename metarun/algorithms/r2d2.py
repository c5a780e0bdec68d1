"""R2-D2: a ridge regression on each task's features, differentiated in closed form."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from metarun.algorithms.base import MetaAlgorithm, Rate
from metarun.algorithms.parts.heads import body_of, solved, starting_with, without_steps
from metarun.gradients.adjoint import adjoint
from metarun.problem import Meta, Params, Problem


def r2d2(problem: Problem, *, ridge: Rate, scale: Rate) -> MetaAlgorithm:
    """Learn features in which a ridge regression of the labels solves a task.

    Bertinetto et al., 2019, arXiv:1805.08136, equations 4 and 6 to 8: the regression is of one-hot
    labels, with a column of ones; strength, scale and bias of its outputs are meta-learned, the
    strength by its logarithm. It is relative to the mean of squares, as in their code. Targets of
    a regression are predicted as they are, from a scale of one.
    """
    classify = problem.kind == "classification"

    def init(params: Params) -> Meta:
        solver = {
            "log_ridge": torch.tensor(math.log(ridge)),
            "scale": torch.tensor(scale if classify else 1.0),
            "bias": torch.tensor(0.0),
        }
        return {"params": body_of(params), "solver": solver}

    def head(meta: Meta, x: Tensor, y: Tensor) -> Params:
        solver, features = meta["solver"], problem.features(meta["params"], x)
        targets = F.one_hot(y, problem.model.outputs).to(x.dtype) if classify else y
        z = torch.cat([features, torch.ones_like(features[:, :1])], 1)
        weights = solver["scale"] * ridge_regression(z, targets, solver["log_ridge"].exp())
        return {"head.weight": weights[:-1].T, "head.bias": weights[-1] + solver["bias"]}

    start = starting_with(head)
    return MetaAlgorithm(
        init, solved(start), adjoint(problem, without_steps(start), 0, last=0, kept=0, sets=0)
    )


def ridge_regression(z: Tensor, y: Tensor, ridge: Tensor) -> Tensor:
    """Return the weights [W, D] that minimise the mean of |z w - y|^2 plus ridge |w|^2.

    Through the Gram matrix of the rows [S, W] where these are fewer than their width (Woodbury).
    A matrix that is not finite gives weights that are not, instead of an error.
    """
    rows, width = z.shape
    z, y = z / math.sqrt(rows), y / math.sqrt(rows)
    if rows < width:
        return z.T @ _solve(z @ z.T, ridge, y)
    return _solve(z.T @ z, ridge, z.T @ y)


def _solve(matrix: Tensor, ridge: Tensor, target: Tensor) -> Tensor:
    eye = torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
    solution, _ = torch.linalg.solve_ex(matrix + ridge * eye, target)
    return solution
