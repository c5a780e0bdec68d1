"""Model-agnostic meta-learning, and its first-order form."""

from __future__ import annotations

from metarun.algorithms.base import (
    Count,
    MetaAlgorithm,
    Rate,
    adapting,
    plain_learner,
    shared_params,
)
from metarun.estimators import Estimator, estimate, is_exact
from metarun.inner import gradient_descent
from metarun.problem import Problem


def maml(problem: Problem, *, inner_lr: Rate, steps: Count, estimator: Estimator) -> MetaAlgorithm:
    """Learn a start from which a few gradient steps solve a task.

    Finn et al., 2017, arXiv:1703.03400, algorithms 2 and 3; `estimator=first_order` is FOMAML
    (section 5.2).
    """
    learner = plain_learner(problem, gradient_descent(inner_lr))
    return MetaAlgorithm(
        shared_params,
        adapting(learner),
        estimate(estimator, problem, learner, steps),
        exact=is_exact(estimator),
    )
