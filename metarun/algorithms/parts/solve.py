"""The inner problem by L-BFGS: how long a step is, is searched for, so that none is too long."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from metarun.algorithms.parts.lbfgs import Rows, iterates
from metarun.algorithms.parts.rates import InnerRates
from metarun.errors import ConfigError
from metarun.inner import Learner, leaves, over_tasks
from metarun.problem import Meta, Params

PAIRS = 2  # past steps that it keeps, two parameter sets each; more cost time and gain nothing


def searching(learner: Learner, rates: InnerRates) -> Learner:
    """Return the learner that adapts by L-BFGS, its first step being the rate times the slope.

    Its inner loss never rises. There is no way back through the search: only estimators that need
    the point where it ends, and not the way there, can be used with it.

    Raises:
        ConfigError: rates are to be learned.
    """
    if rates.learned != "none":
        raise ConfigError(
            "algo.inner_optimizer=lbfgs: searches for the lengths of its steps, which leaves "
            f"nothing to learn for algo.rates={rates.learned}; use algo.rates=none"
        )

    def path(
        learner: Learner, meta: Meta, support_x: Tensor, support_y: Tensor, steps: int
    ) -> Iterator[Params]:
        with torch.no_grad():
            params = learner.start(meta, support_x, support_y)
        names = [name for name in params if name in learner.adapted]
        shapes = [params[name].shape[1:] for name in names]

        def at(point: Tensor) -> Params:
            parts = point.split([shape.numel() for shape in shapes], 1)
            return {n: p.reshape(-1, *s) for n, p, s in zip(names, parts, shapes, strict=True)}

        def objective(point: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:
            there = leaves(at(point))
            still = {name: value[rows] for name, value in params.items() if name not in there}
            loss = over_tasks(learner.loss, shared=1, count=len(point))
            with torch.enable_grad():
                losses = loss(meta, still | there, support_x[rows], support_y[rows])
                slopes = torch.autograd.grad(losses.sum(), list(there.values()))
            return losses.detach(), torch.cat([slope.flatten(1) for slope in slopes], 1)

        point = torch.cat([params[name].flatten(1) for name in names], 1)
        points = iterates(objective, point, 0.0, pairs=PAIRS, first=rates.inner_lr)
        for _ in range(steps + 1):
            point = next(points, point)
            yield params | at(point)

    return learner._replace(path=path)
