"""What an algorithm is: pure functions of meta-parameters and tasks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from metarun.algorithms.parts.rates import Update
from metarun.gradients.metagradient import MetaGrad
from metarun.inner import Learner, adapt, over_tasks
from metarun.problem import Meta, Params, Problem
from metarun.tasks import Tasks

Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
RateGrid = Annotated[list[Rate], Field(min_length=1)]
Pull = Annotated[float, Field(ge=0, allow_inf_nan=False)]  # to the start; 0: none
Count = Annotated[int, Field(ge=1)]
_NOTHING: Mapping[str, tuple[float, ...]] = {}

FEATURES = "support features"  # [T, S, width], held through the inner loop

Start = Callable[[Meta, Tensor, Tensor], Params]  # as a learner's
Adapt = Callable[[Meta, Tensor, Tensor, int], Iterator[Params]]
Each = Callable[[Meta, Tensor, Tensor, int], list[Iterator[Params]]]


class Turn(NamedTuple):
    """What happens once, before one meta-step, with more tasks than a meta-step has.

    `change` must be a function of its arguments alone, so that a run cut there repeats it; it
    must also be able to work on one batch, from which the cost of what follows is counted.
    """

    step: int
    tasks: int  # of the training split
    change: Callable[[Meta, Iterable[Tasks]], Meta]  # meta, chunks of tasks -> meta


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
    each: Each | None = None  # adaptation from every start in turn; what a choice is held against
    oracle: Callable[[Tensor], Adapt] | None = None  # told the modes [T]: a bound, not a method
    turn: Turn | None = None  # a change between two phases of training
    least_shots: int = 1  # that a task must have for what the algorithm does with its support
    changes: tuple[int, ...] = ()  # meta-steps from which on one takes other operations
    warm_up: int = 0  # meta-steps after which several starts are on their own

    @property
    def start(self) -> Literal["random", "pre-trained", "meta-learned"]:
        """Return what training makes of the start: it is fed nothing, examples or tasks."""
        if self.meta_grad is None:
            return "random"
        return "pre-trained" if self.batches == "examples" else "meta-learned"


def plain_start(meta: Meta, support_x: Tensor, support_y: Tensor) -> Params:
    """Start every task from the shared parameters, those that training holds included."""
    count, params = support_x.shape[0], {**meta["params"], **meta.get("frozen", {})}
    return {name: value.expand(count, *value.shape) for name, value in params.items()}


def plain_learner(problem: Problem, update: Update, start: Start = plain_start) -> Learner:
    """Return the learner that minimises the support loss; tasks share one start by default."""

    def loss(meta: Meta, params: Params, x: Tensor, y: Tensor) -> Tensor:
        return problem.loss(params, x, y)

    return Learner(start, loss, update, problem.model.adapted)


def masked_learner(
    problem: Problem,
    update: Update,
    adapted: frozenset[str],
    begin: Start = plain_start,
    *,
    first_order: bool,
) -> Learner:
    """Return the learner that moves some parameters only.

    A head alone is adapted on features of the support that the body gives once, before the
    first step; the query's gradient finds its way back to the body through them, unless inner
    gradients are constants anyway (`first_order`).
    """
    if not all(name.startswith("head.") for name in adapted):
        return plain_learner(problem, update, begin)._replace(adapted=adapted)

    def start(meta: Meta, support_x: Tensor, support_y: Tensor) -> Params:
        params = begin(meta, support_x, support_y)
        features = over_tasks(problem.features, shared=0, count=len(support_x))
        with torch.set_grad_enabled(torch.is_grad_enabled() and not first_order):
            return {**params, FEATURES: features(params, support_x)}

    def loss(meta: Meta, params: Params, x: Tensor, y: Tensor) -> Tensor:
        return problem.head_loss(params, params[FEATURES], y)

    return Learner(start, loss, update, adapted)


def shared_params(params: Params) -> Meta:
    """Meta-learn one start, the model's own initial values."""
    return {"params": params}


def adapting(learner: Learner) -> Adapt:
    """Return the graph-free adaptation of a learner."""
    return partial(adapt, learner)
