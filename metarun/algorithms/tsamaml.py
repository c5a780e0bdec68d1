"""Task-similarity-aware MAML: one start first, then a start for each cluster of adapted weights.

Letters in shapes: T tasks, M starts, D numbers that describe a task.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from metarun.algorithms.base import (
    Count,
    MetaAlgorithm,
    Pull,
    Rate,
    Turn,
    plain_learner,
)
from metarun.algorithms.parts.kmeans import kmeans
from metarun.algorithms.parts.starts import from_starts, spread_starts
from metarun.errors import ConfigError
from metarun.gradients.estimators import Estimator, check_estimator, estimate, is_exact
from metarun.gradients.metagradient import MetaGradient
from metarun.inner import Learner, adapt, gradient_descent, over_tasks, pulled
from metarun.problem import Meta, Params, Problem
from metarun.tasks import Tasks


def tsamaml(
    problem: Problem,
    *,
    inner_lr: Rate,
    steps: Count,
    estimator: Estimator,
    proximal: Pull,
    starts: Count,
    warm_up: Annotated[int, Field(ge=0)],
    tasks: Count,
    cluster_on: Literal["body", "features"],
    cluster_steps: Count,
) -> MetaAlgorithm:
    """Train MAML for `warm_up` meta-steps, cluster adapted tasks, then train a start a cluster.

    Zhou et al., 2021, "Task similarity aware meta learning", algorithm 1: `tasks` training tasks
    take `cluster_steps` steps from the first start, k-means groups them, and each group's mean
    weights are a new start; from then on a task first adapts from the first start, which stays as
    it is, and then from the start whose group is nearest. They cluster all weights; a head's
    depend on the order of the labels, so `body` leaves it out, and `features` takes the support's
    mean features under the first start instead. Tasks whose weights diverge are not clustered.

    Raises:
        ConfigError: fewer tasks than starts.
    """
    if tasks < starts:
        raise ConfigError(f"algo.tasks: {tasks} tasks cannot fill algo.starts={starts} clusters")
    update = gradient_descent(inner_lr)
    first = pulled(plain_learner(problem, update), proximal)
    body = [n for n in problem.initial() if n.startswith("body.") and n in problem.model.adapted]

    def init(params: Params) -> Meta:
        width = sum(params[n].numel() for n in body)
        if cluster_on == "features":
            width = problem.model.width
        state = {"centre": torch.zeros(starts, width), "formed": torch.zeros(())}
        return {"params": params, "starts": spread_starts(params, starts, 0.0), "clusters": state}

    def fitted(meta: Meta, x: Tensor, y: Tensor) -> Params:
        """Return every task's parameters after `cluster_steps` steps from the first start."""
        *_, last = adapt(first, meta, x, y, cluster_steps)
        return last

    def described(meta: Meta, params: Params, x: Tensor) -> Tensor:
        """Return what tasks are clustered by, [T, D]."""
        if cluster_on == "body":
            return torch.cat([params[name].flatten(1) for name in body], 1)

        def mean(start: Params, x: Tensor) -> Tensor:
            return problem.features(start, x).mean(0)

        return over_tasks(mean, shared=1, count=len(x))(meta["params"], x)

    def assign(meta: Meta, x: Tensor, y: Tensor) -> Tensor:
        with torch.no_grad():
            params = fitted(meta, x, y) if cluster_on == "body" else {}
            apart = torch.cdist(described(meta, params, x), meta["clusters"]["centre"])
            return apart.argmin(1)  # zero for all before there are clusters

    def learner(which: Tensor | None) -> Learner:
        def start(meta: Meta, x: Tensor, y: Tensor) -> Params:
            chosen = assign(meta, x, y) if which is None else which
            return from_starts(meta["starts"], chosen)

        return pulled(plain_learner(problem, update, start), proximal)

    def begun(meta: Meta) -> bool:
        return bool(meta["clusters"]["formed"] > 0)

    def meta_grad(meta: Meta, tasks: Tasks, step: int) -> MetaGradient:
        if not begun(meta):
            shared = {"params": meta["params"]}
            return estimate(estimator, problem, first, steps)(shared, tasks, step)
        chosen = assign(meta, tasks.support_x, tasks.support_y)
        moving = estimate(estimator, problem, learner(chosen), steps)
        return moving({"starts": meta["starts"]}, tasks, step)

    def form(meta: Meta, chunks: Iterable[Tasks]) -> Meta:
        rows: list[Tensor] = []
        found: list[Params] = []
        with torch.no_grad():
            for some in chunks:
                found.append(fitted(meta, some.support_x, some.support_y))
                rows.append(described(meta, found[-1], some.support_x))
            kept = torch.cat([_finite(params) for params in found])
            if kept.sum() < starts:  # nothing to cluster: the next meta-step says that it diverged
                kept = torch.ones_like(kept)
            groups = kmeans(torch.cat(rows)[kept], starts)
            members = [groups.labels == m for m in range(starts)]
            means: Params = {}
            for name in meta["starts"]:
                values = torch.cat([params[name] for params in found])[kept]
                means[name] = torch.stack([values[those].mean(0) for those in members])
        state = {"centre": groups.centres, "formed": torch.ones_like(meta["clusters"]["formed"])}
        return {"starts": means, "clusters": state}

    def ready(meta: Meta, x: Tensor, y: Tensor, count: int) -> Iterator[Params]:
        return adapt(learner(None) if begun(meta) else first, meta, x, y, count)

    def each(meta: Meta, x: Tensor, y: Tensor, count: int) -> list[Iterator[Params]]:
        numbers = [torch.full((len(x),), which, device=x.device) for which in range(starts)]
        return [adapt(learner(n) if begun(meta) else first, meta, x, y, count) for n in numbers]

    check_estimator(estimator, steps, problem, proximal)
    return MetaAlgorithm(
        init,
        ready,
        meta_grad,
        exact=is_exact(estimator),
        assign=assign,
        each=each,
        turn=Turn(warm_up, tasks, form),
        warm_up=warm_up,
    )


def _finite(params: Params) -> Tensor:
    """Tell for each task whether all of its parameters are finite, [T]."""
    return torch.stack([value.flatten(1).isfinite().all(1) for value in params.values()]).all(0)
