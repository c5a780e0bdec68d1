"""Adapters: small parts added to a model, and MAML on these instead of on the whole."""

from __future__ import annotations

from dataclasses import replace

from metarun.algorithms.base import Count, MetaAlgorithm, Pull, Rate
from metarun.algorithms.maml import maml
from metarun.algorithms.parts.masks import Mask
from metarun.gradients.estimators import Estimator
from metarun.models.adapters import AdapterKind, with_adapters
from metarun.problem import Problem


def adapters(
    problem: Problem,
    *,
    inner_lr: Rate,
    steps: Count,
    estimator: Estimator,
    proximal: Pull,
    kind: AdapterKind,
    rank: Count,
    adapt: Mask,
    learn: Mask,
) -> MetaAlgorithm:
    """Adapt a model by parts that begin as the identity; see `models.adapters.with_adapters`.

    `adapt` and `learn` are masks as for MAML, in which `adapters` names the added parameters:
    with both at [adapters, head] the body keeps its initial values for good.
    """
    own = replace(problem, model=with_adapters(problem.model, kind, rank))
    algorithm = maml(
        own,
        inner_lr=inner_lr,
        steps=steps,
        inner_optimizer="sgd",
        estimator=estimator,
        proximal=proximal,
        adapt=adapt,
        learn=learn,
        rates="none",
        per_step=False,
        transform="raw",
    )
    return algorithm._replace(problem=own)
