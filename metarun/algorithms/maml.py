"""Model-agnostic meta-learning: of a whole model or a part, by given rates or learned ones."""

from __future__ import annotations

from typing import Literal

from metarun.algorithms.base import (
    Count,
    MetaAlgorithm,
    Pull,
    Rate,
    adapting,
    masked_learner,
)
from metarun.algorithms.parts.masks import Mask, held_back, matched, moved, of_learned
from metarun.algorithms.parts.rates import (
    InnerRates,
    Rates,
    Transform,
    initial_rates,
    learned_descent,
)
from metarun.algorithms.parts.solve import searching
from metarun.gradients.estimators import Estimator, estimate, is_exact, refuse_implicit
from metarun.inner import pulled
from metarun.problem import Meta, Params, Problem


def maml(
    problem: Problem,
    *,
    inner_lr: Rate,
    steps: Count,
    inner_optimizer: Literal["sgd", "lbfgs"],
    estimator: Estimator,
    proximal: Pull,
    adapt: Mask,
    learn: Mask,
    rates: Rates,
    per_step: bool,
    transform: Transform,
) -> MetaAlgorithm:
    """Learn a start from which a few gradient steps solve a task.

    Finn et al., 2017, arXiv:1703.03400, algorithms 2 and 3; `estimator=first_order` is FOMAML
    (section 5.2). The inner loop moves what `adapt` names and training what `learn` names: the
    head alone is ANIL (Raghu et al., 2020, arXiv:1909.09157), the body alone BOIL (Oh et al.,
    2021, arXiv:2008.08882). Rates may be learned with the start, down to one a parameter:
    Meta-SGD (Li et al., 2017, arXiv:1707.09835). With `proximal` the inner loss pulls to the start;
    an implicit gradient of its solution is iMAML (Rajeswaran et al., 2019, arXiv:1909.04630), for
    which `inner_optimizer=lbfgs` solves, with `inner_lr` in its first step only.
    """
    adapted, learned = moved("algo.adapt", adapt, problem), matched("algo.learn", learn, problem)
    if rates != "none":
        refuse_implicit(estimator, f"rates (algo.rates={rates})")
    inner = InnerRates(inner_lr, rates, per_step * steps, transform)

    def init(params: Params) -> Meta:
        moving = {name: value for name, value in params.items() if name in adapted}
        return {**held_back(params, learned), **initial_rates(inner, moving)}

    learner = masked_learner(
        problem, learned_descent(inner), adapted, first_order=estimator == "first_order"
    )
    learner = pulled(learner, proximal)
    if inner_optimizer == "lbfgs":
        learner = searching(learner, inner)
    return MetaAlgorithm(
        init,
        adapting(learner),
        of_learned(learner, lambda each: estimate(estimator, problem, each, steps)),
        exact=is_exact(estimator),
    )
