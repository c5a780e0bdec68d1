"""MAML++: MAML with what makes it train well, each part with a switch of its own."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field

from metarun.algorithms.base import Count, MetaAlgorithm, Rate, adapting, plain_learner, plain_start
from metarun.algorithms.parts.rates import (
    InnerRates,
    Rates,
    Transform,
    at_step,
    initial_rates,
    learned_descent,
)
from metarun.gradients.estimators import Evolution, Exact, Truncated, estimate, is_exact
from metarun.gradients.metagradient import MetaGradient
from metarun.models.net import norm_parameters
from metarun.problem import Meta, Params, Problem
from metarun.tasks import Tasks

NORMS = "norms"  # the group of normalisation parameters [K+1, C], a set for each step's result
FLOOR = 0.03  # of an even share: what an early step's loss keeps while the weights are annealed


def mamlpp(
    problem: Problem,
    *,
    inner_lr: Rate,
    steps: Count,
    estimator: Exact | Literal["first_order"] | Truncated | Evolution,
    rates: Rates,
    per_step: bool,
    transform: Transform,
    multi_step_until: Annotated[int, Field(ge=0)],
    per_step_norm: bool,
    first_order_until: Annotated[int, Field(ge=0)],
) -> MetaAlgorithm:
    """Learn a start with the stabilisers of Antoniou et al., 2019, arXiv:1810.09502, section 4.

    Until meta-step `multi_step_until` the objective is a weighted sum of the query losses after
    every inner step, whose early weights fall (their code's schedule, meta-step by meta-step);
    until `first_order_until` the inner gradients are constants; with `per_step_norm` each
    step's result has its own normalisation scale and shift, which no inner loop moves.
    Everything off is MAML. The published ensemble of five checkpoints is not part of it.
    """
    norms = frozenset(norm_parameters(problem.model)) if per_step_norm else frozenset[str]()
    inner = InnerRates(inner_lr, rates, per_step * steps, transform)
    descend = learned_descent(inner)

    def init(params: Params) -> Meta:
        own = {name: value for name, value in params.items() if name not in norms}
        moving = {name: value for name, value in own.items() if name in problem.model.adapted}
        stacked = {name: torch.stack([params[name]] * (steps + 1)) for name in sorted(norms)}
        found = {"params": own, **initial_rates(inner, moving)}
        return {**found, NORMS: stacked} if norms else found

    def start(meta: Meta, x: torch.Tensor, y: torch.Tensor) -> Params:
        first = {name: at_step(value, 0) for name, value in meta.get(NORMS, {}).items()}
        return plain_start({**meta, "params": {**meta["params"], **first}}, x, y)

    def update(meta: Meta, step: int, params: Params, gradient: Params) -> Params:
        own = {name: value for name, value in params.items() if name not in norms}
        following = {name: at_step(meta[NORMS][name], step + 1) for name in params if name in norms}
        return {**descend(meta, step, own, gradient), **following}

    learner = plain_learner(problem, update)._replace(
        start=start, adapted=problem.model.adapted | norms
    )

    def meta_grad(meta: Meta, tasks: Tasks, step: int) -> MetaGradient:
        way = "first_order" if step < first_order_until else estimator
        weights = None
        if step < multi_step_until and steps:  # no steps, no losses of theirs to weigh
            weights = step_weights(steps, step / multi_step_until)
        return estimate(way, problem, learner, steps, weights)(meta, tasks, step)

    # What cannot be is refused here, before training begins.
    early = step_weights(steps, 0.0) if multi_step_until and steps else None
    estimate(estimator, problem, learner, steps, early)
    exact = is_exact(estimator) and not first_order_until
    phases = (multi_step_until, first_order_until)
    return MetaAlgorithm(init, adapting(learner), meta_grad, exact=exact, changes=phases)


def step_weights(steps: int, done: float) -> list[float]:
    """Return the weight of each inner step's query loss when `done` of the annealing is over.

    They sum to 1: even at first, in the end all but the last at a floor of 3 % of that.
    """
    early = max(1 - done, FLOOR) / steps
    return [early] * (steps - 1) + [1 - early * (steps - 1)]
