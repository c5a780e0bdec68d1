"""CAVIA: a task is a handful of context parameters, and all others are shared."""

from __future__ import annotations

from dataclasses import replace

from metarun.algorithms.base import Count, MetaAlgorithm, Pull, Rate, adapting, plain_learner
from metarun.algorithms.parts.masks import held_back, of_learned
from metarun.gradients.estimators import Estimator, estimate, is_exact
from metarun.inner import gradient_descent, pulled
from metarun.models.adapters import with_context
from metarun.problem import Meta, Params, Problem


def cavia(
    problem: Problem,
    *,
    inner_lr: Rate,
    steps: Count,
    estimator: Estimator,
    proximal: Pull,
    context: Count,
) -> MetaAlgorithm:
    """Learn a model that `context` inputs of its own adapt to a task.

    Zintgraf et al., 2019, arXiv:1810.03642, section 3. The context begins at 0 in every
    task and is not learned; the model is never adapted.
    """
    own = replace(problem, model=with_context(problem.model, context))
    shared = frozenset(own.initial()) - own.model.adapted

    def init(params: Params) -> Meta:
        return held_back(params, shared)

    learner = pulled(plain_learner(own, gradient_descent(inner_lr)), proximal)
    return MetaAlgorithm(
        init,
        adapting(learner),
        of_learned(learner, lambda each: estimate(estimator, own, each, steps)),
        exact=is_exact(estimator),
        problem=own,
    )
