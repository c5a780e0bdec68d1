"""An algorithm of one's own, outside metarun's tree: MAML that is drawn back to its start."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from metarun.algorithms.base import (
    Count,
    MetaAlgorithm,
    Rate,
    adapting,
    plain_learner,
    shared_params,
)
from metarun.gradients.estimators import Estimator, estimate
from metarun.problem import Meta, Params, Problem


def anchored(
    problem: Problem,
    *,
    inner_lr: Rate,
    steps: Count,
    decay: Annotated[float, Field(ge=0)],
    estimator: Estimator,
) -> MetaAlgorithm:
    """Learn a start that every inner step decays towards; without decay it is MAML.

    phi <- phi - inner_lr * (gradient + decay * (phi - start)).
    """

    def update(meta: Meta, step: int, params: Params, gradient: Params) -> Params:
        start = meta["params"]
        return {
            name: value - inner_lr * (gradient[name] + decay * (value - start[name]))
            for name, value in params.items()
        }

    learner = plain_learner(problem, update)
    meta_grad = estimate(estimator, problem, learner, steps)
    exact = estimator != "first_order"
    return MetaAlgorithm(shared_params, adapting(learner), meta_grad, exact=exact)
