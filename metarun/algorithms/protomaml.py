"""Proto-MAML: MAML whose head starts at the support's class means."""

from __future__ import annotations

from torch import Tensor

from metarun.algorithms.base import Count, MetaAlgorithm, Pull, Rate, adapting, plain_learner
from metarun.algorithms.parts.heads import (
    body_of,
    class_means,
    nearest_mean,
    only_classes,
    starting_with,
)
from metarun.gradients.estimators import Estimator, estimate, is_exact
from metarun.inner import gradient_descent, pulled
from metarun.problem import Meta, Params, Problem


def protomaml(
    problem: Problem, *, inner_lr: Rate, steps: Count, estimator: Estimator, proximal: Pull
) -> MetaAlgorithm:
    """Start each task's head as the prototypical network's, and adapt body and head from there.

    Triantafillou et al., 2020, arXiv:1903.03096, section 3: the head is the linear form of the
    squared distance to the means, and the meta-gradient flows through the means into the body.
    Only the body is meta-learned. `first_order` takes inner gradients as constants, the means not.
    """
    ways = only_classes(problem, "protomaml")

    def init(params: Params) -> Meta:
        return {"params": body_of(params)}

    def head(meta: Meta, x: Tensor, y: Tensor) -> Params:
        return nearest_mean(class_means(problem.features(meta["params"], x), y, ways))

    learner = plain_learner(problem, gradient_descent(inner_lr), starting_with(head))
    learner = pulled(learner, proximal)
    return MetaAlgorithm(
        init,
        adapting(learner),
        estimate(estimator, problem, learner, steps),
        exact=is_exact(estimator),
    )
