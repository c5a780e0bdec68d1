"""One start for each mode, and the true mode chosen: a bound for all that have to guess it."""

from __future__ import annotations

import torch
from torch import Tensor

from metarun.algorithms.base import (
    Adapt,
    Count,
    MetaAlgorithm,
    Pull,
    Rate,
    adapting,
    plain_learner,
)
from metarun.algorithms.parts.starts import from_starts, spread_starts
from metarun.errors import ConfigError
from metarun.gradients.estimators import Estimator, check_estimator, estimate, is_exact
from metarun.gradients.metagradient import MetaGradient
from metarun.inner import Learner, gradient_descent, pulled
from metarun.problem import Meta, Params, Problem
from metarun.tasks import Tasks


def multi_maml(
    problem: Problem,
    *,
    inner_lr: Rate,
    steps: Count,
    estimator: Estimator,
    proximal: Pull,
    starts: Count,
) -> MetaAlgorithm:
    """Learn one start a mode by MAML; every task is told its mode, at test too.

    Vuorio et al., 2019, arXiv:1910.13616, section 5 (Multi-MAML): an oracle, marked as one
    wherever its results are shown. Untold, `adapt` takes the first start.

    Raises:
        ConfigError: a task's mode has no start.
    """
    update = gradient_descent(inner_lr)

    def init(params: Params) -> Meta:
        return {"params": spread_starts(params, starts, 0.0)}

    def learner(mode: Tensor | int) -> Learner:
        def start(meta: Meta, x: Tensor, y: Tensor) -> Params:
            count, device = len(x), x.device
            which = torch.full((count,), mode, device=device) if isinstance(mode, int) else mode
            return from_starts(meta["params"], which)

        return pulled(plain_learner(problem, update, start), proximal)

    def told(mode: Tensor) -> Adapt:
        if int(mode.max()) >= starts:
            raise ConfigError(
                f"algo.starts={starts}: a task is of mode {int(mode.max()) + 1}, and each mode "
                "needs a start of its own; give as many as the data set has modes"
            )
        return adapting(learner(mode))

    def meta_grad(meta: Meta, tasks: Tasks, step: int) -> MetaGradient:
        told(tasks.mode)
        return estimate(estimator, problem, learner(tasks.mode), steps)(meta, tasks, step)

    check_estimator(estimator, steps, problem, proximal)
    return MetaAlgorithm(
        init, adapting(learner(0)), meta_grad, exact=is_exact(estimator), oracle=told
    )
