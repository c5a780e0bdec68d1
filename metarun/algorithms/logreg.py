"""Pre-train, then a logistic regression on each task's features."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from metarun.algorithms.base import Count, MetaAlgorithm, Rate
from metarun.algorithms.parts.heads import (
    Reshaped,
    body_of,
    only_classes,
    solved,
    unit,
    with_head,
)
from metarun.algorithms.parts.lbfgs import Rows, minimise
from metarun.algorithms.transfer import pretraining
from metarun.inner import over_tasks
from metarun.problem import Meta, Params, Problem


def logreg(
    problem: Problem,
    *,
    penalty_grid: Annotated[list[Rate], Field(min_length=1)],
    iterations: Count,
    tolerance: Rate,
) -> MetaAlgorithm:
    """Pre-train on all meta-training classes; then multinomial logistic regression on a task.

    Tian et al., 2020, arXiv:2003.11539, section 3.2: on features of unit length, by L-BFGS. The
    objective is the summed cross-entropy plus penalty/2 times the squared weights, not the biases
    (scikit-learn's, with C = 1/penalty); validation tasks choose the penalty. A task stops when
    the gradient a row is below `tolerance` everywhere, or after that many iterations.
    """
    ways = only_classes(problem, "logreg")
    tuned = {"penalty": tuple(penalty_grid)}
    base = nn.Linear(problem.model.width, problem.train_classes)
    problem = with_head(problem, Reshaped(problem.model.width, ways))
    trained = pretraining(problem, base, tuned)

    def init(params: Params) -> Meta:
        return trained.init(body_of(params))

    def features(meta: Meta, x: Tensor) -> Tensor:
        return unit(problem.features(meta["params"], x))

    def start(meta: Meta, support_x: Tensor, support_y: Tensor) -> Params:
        count = len(support_x)
        z = over_tasks(features, shared=1, count=count)(meta, support_x)
        weight, bias = logistic_regression(
            z, support_y, ways, meta["rates"]["penalty"], iterations, tolerance
        )
        body = {n: v.expand(count, *v.shape) for n, v in body_of(meta["params"]).items()}
        return body | {"head.weight": weight, "head.bias": bias}

    return MetaAlgorithm(
        init,
        solved(start),
        trained.meta_grad,
        batches="examples",
        tuned=tuned,
        problem=problem,
    )


def logistic_regression(
    z: Tensor, y: Tensor, ways: int, penalty: Tensor, iterations: int, tolerance: float
) -> tuple[Tensor, Tensor]:
    """Return the weights [T, N, W] and biases [T, N] of every task, in the precision of `z`.

    From rows z [T, S, W] and class ids y [T, S]; solved in double precision, from zero. No
    gradient flows back into the rows.
    """
    count, size, width = z.shape
    double = z.detach().double()
    member = torch.nn.functional.one_hot(y, ways).double()
    strength = penalty.detach().double()

    def parts(point: Tensor) -> tuple[Tensor, Tensor]:
        return point[:, : ways * width].view(-1, ways, width), point[:, ways * width :]

    def objective(point: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:
        weight, bias = parts(point)
        features, labels = double[rows], member[rows]
        logits = features @ weight.mT + bias[:, None]
        scores = torch.log_softmax(logits, 2)
        value = 0.5 * strength * weight.square().sum((1, 2)) - (labels * scores).sum((1, 2))
        apart = scores.exp() - labels  # [T, S, N]
        slope = (apart.mT @ features + strength * weight).flatten(1)
        return value / size, torch.cat([slope, apart.sum(1)], 1) / size

    start = double.new_zeros(count, ways * (width + 1))
    weight, bias = parts(minimise(objective, start, iterations, tolerance))
    return weight.to(z.dtype), bias.to(z.dtype)
