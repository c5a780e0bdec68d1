"""What an algorithm is: pure functions of meta-parameters and tasks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Annotated, Literal, NamedTuple

from pydantic import Field
from torch import Tensor

from metarun.estimators import MetaGrad
from metarun.inner import Learner, adapt
from metarun.problem import Meta, Params, Problem

Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
_NOTHING: Mapping[str, tuple[float, ...]] = {}

Adapt = Callable[[Meta, Tensor, Tensor, int], Iterator[Params]]


class MetaAlgorithm(NamedTuple):
    """Three pure functions, and what the trainer must know to call them.

    None keeps state; none touches a device or a file.
    """

    init: Callable[[Params], Meta]  # a model's parameters -> what is meta-learned
    adapt: Adapt  # meta, support x and y [T, S, ...], steps -> parameters [T, ...] a step
    meta_grad: MetaGrad | None  # meta, tasks, meta-step -> mean gradient, losses; None: no training
    batches: Literal["tasks", "examples"] = "tasks"  # what meta_grad is fed
    tuned: Mapping[str, tuple[float, ...]] = _NOTHING  # meta["rates"] entry -> validated values
    exact: bool = True  # is meta_grad the gradient of its own losses' mean
    assign: Callable[[Meta, Tensor, Tensor], Tensor] | None = None  # support -> start chosen [T]
    problem: Problem | None = None  # what its parameters answer a query with, if not the model


def plain_start(meta: Meta, support_x: Tensor, support_y: Tensor) -> Params:
    """Start every task from the shared parameters."""
    count = support_x.shape[0]
    return {name: value.expand(count, *value.shape) for name, value in meta["params"].items()}


def plain_learner(
    problem: Problem, update: Callable[[Meta, int, Params, Params], Params]
) -> Learner:
    """Return the learner that minimises the support loss from one shared start."""

    def loss(meta: Meta, params: Params, x: Tensor, y: Tensor) -> Tensor:
        return problem.loss(params, x, y)

    return Learner(plain_start, loss, update, problem.model.adapted)


def shared_params(params: Params) -> Meta:
    """Meta-learn one start, the model's own initial values."""
    return {"params": params}


def adapting(learner: Learner) -> Adapt:
    """Return the graph-free adaptation of a learner."""
    return partial(adapt, learner)
