"""Several starts, and each task goes to one of them, chosen by its support alone."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator
from math import exp
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from metarun.algorithms.base import (
    Count,
    MetaAlgorithm,
    Pull,
    Rate,
    adapting,
    plain_learner,
)
from metarun.algorithms.parts.fitness import Score, check_score, fit, least_shots, support_score
from metarun.algorithms.parts.masks import Mask, matched
from metarun.algorithms.parts.starts import begin_starts, every_start, from_starts, learned_starts
from metarun.algorithms.parts.usage import USAGE, Fraction, Upkeep, initial_usage, kept_in_use
from metarun.gradients.estimators import Estimator, check_estimator, estimate, is_exact
from metarun.gradients.metagradient import MetaGradient
from metarun.inner import Learner, adapt, gradient_descent, over_tasks, pulled
from metarun.problem import Meta, Params, Problem
from metarun.tasks import Tasks

RANGES = (1.0, 0.1)  # of neural gas, in ranks: at the beginning of the warm-up and at its end
FAINT = 1e-3  # a weight below which a rank is left out


def clustered(
    problem: Problem,
    *,
    inner_lr: Rate,
    steps: Count,
    estimator: Estimator,
    proximal: Pull,
    starts: Count,
    own: Mask,
    assign: Score,
    folds: Annotated[int, Field(ge=2)] | None,
    graded_by: Literal["support", "query"],
    spread: Annotated[float, Field(ge=0)],
    balance: Annotated[float, Field(ge=0)],
    share_rate: Annotated[float, Field(gt=0, le=1)],
    restart: Fraction,
    warm_up: Annotated[int, Field(ge=0)],
    warm_up_by: Literal["mean", "rank"],
) -> MetaAlgorithm:
    """Meta-learn `starts` initialisations, and adapt each task from the one it fits best.

    The score of a start is its mean support loss `before` adaptation (Ghosh et al., 2020,
    arXiv:2006.04088, algorithm 1), `after` it, or cross-validated over `folds`: adapted on all
    but one part of each class and scored on that part, every example alone when there is no
    number (`holdout`; with permuted labels the only one that is not noise). In training, tasks
    may be `graded_by` their queries, which is what cross-validation estimates and costs one
    adaptation a start; at test only the support decides. In training the scores also carry a
    learned bias that keeps every start in use: it moves by `balance` a step against the starts
    that take more than their share; and a start whose running share of the tasks, which follows
    by `share_rate` a step, falls below `restart` of an equal one begins again beside the most
    used (the figure `restarts` counts these). The starts are copies of one, `spread` relative
    standard deviations apart, in what each has of its `own`; the rest is one for all. For
    `warm_up` meta-steps they move together, less and less: by the `mean` of what moves each, or
    by `rank` as in neural gas (Martinetz, Berkovich & Schulten, 1993, IEEE Trans. Neural Networks
    4(4)): a task moves the start that is k-th best for it by exp(-k / range) of its gradient, the
    range falling geometrically from 1 to 0.1, for up to `starts` times the operations.

    Raises:
        ConfigError: a score that cannot tell starts apart, or `own` matches nothing.
    """
    check_score(problem, assign, "algo.assign")
    check_estimator(estimator, steps, problem, proximal)
    apart = matched("algo.own", own, problem)
    update = gradient_descent(inner_lr)
    upkeep = Upkeep(balance, share_rate, restart, spread)

    def init(params: Params) -> Meta:
        return begin_starts(params, starts, spread, apart) | {USAGE: initial_usage(starts)}

    score = support_score(problem, assign, folds, update, steps, proximal)

    def grade(params: Params, x: Tensor, y: Tensor, query_x: Tensor, query_y: Tensor) -> Tensor:
        return problem.query_loss(
            fit(problem, update, steps, proximal, params, x, y), x, query_x, query_y
        )

    def scores(meta: Meta, *task: Tensor) -> Tensor:
        """Score every start on one task, [M]: by its support, or by its query if that is given.

        A start from which adaptation diverges is the last to be chosen.
        """
        params = {name: value.detach() for name, value in every_start(meta).items()}
        one: Callable[..., Tensor] = score if len(task) == 2 else grade
        found = torch.vmap(one, in_dims=(0, *(None,) * len(task)))(params, *task)
        return found.masked_fill(found.isnan(), float("inf"))

    def choose(meta: Meta, x: Tensor, y: Tensor) -> Tensor:
        with torch.no_grad():
            return over_tasks(scores, shared=1, count=len(x))(meta, x, y).argmin(1)

    def choose_evenly(meta: Meta, tasks: Tasks) -> tuple[Tensor, Tensor]:
        """Return each task's starts in training, best first, [T, M], and each one's part, [M].

        In the place of those from which adaptation diverges stands the best once more.
        """
        given = [tasks.support_x, tasks.support_y]
        if graded_by == "query":
            given += [tasks.query_x, tasks.query_y]
        with torch.no_grad():
            found = over_tasks(scores, shared=1, count=len(tasks))(meta, *given)
            ranks = (found + meta[USAGE]["bias"]).argsort(dim=1, stable=True)
            best = ranks[:, :1]
            taken = best == torch.arange(starts, device=best.device)
            return torch.where(found.gather(1, ranks).isinf(), best, ranks), taken.to(found).mean(0)

    def learner(chosen: Tensor | None) -> Learner:
        def start(meta: Meta, x: Tensor, y: Tensor) -> Params:
            return from_starts(every_start(meta), choose(meta, x, y) if chosen is None else chosen)

        return pulled(plain_learner(problem, update, start), proximal)

    def each(meta: Meta, x: Tensor, y: Tensor, count: int) -> list[Iterator[Params]]:
        numbers = (torch.full((len(x),), m, device=x.device) for m in range(starts))
        return [adapt(learner(number), meta, x, y, count) for number in numbers]

    def meta_grad(meta: Meta, tasks: Tasks, step: int) -> MetaGradient:
        ranks, used = choose_evenly(meta, tasks)

        def moved_by(rank: int) -> MetaGradient:
            moving = estimate(estimator, problem, learner(ranks[:, rank]), steps)
            return moving(learned_starts(meta), tasks, step)

        found = moved_by(0)
        if step < warm_up and warm_up_by == "mean":
            own = found.gradient["params"]
            share = 1 - step / warm_up
            mean = {n: g.lerp(g.mean(0, keepdim=True), share) for n, g in own.items()}
            found = found._replace(gradient=found.gradient | {"params": mean})
        elif step < warm_up:
            for rank, weight in enumerate(neural_gas(starts, step / warm_up)[1:], 1):
                more = moved_by(rank).gradient
                sums = {g: _plus(tree, more[g], weight) for g, tree in found.gradient.items()}
                found = found._replace(gradient=sums)
        return kept_in_use(found, meta, used, upkeep)

    return MetaAlgorithm(
        init,
        adapting(learner(None)),
        meta_grad,
        exact=is_exact(estimator) and (not warm_up or starts == 1),
        assign=choose,
        each=each,
        least_shots=least_shots(assign, folds),
        changes=rank_changes(starts, warm_up) if warm_up_by == "rank" else (),
        warm_up=warm_up if starts > 1 else 0,
    )


def neural_gas(starts: int, done: float) -> list[float]:
    """Return the weight of each rank, best first, when `done` of the warm-up is over."""
    first, last = RANGES
    weights = [exp(-rank / (first * (last / first) ** done)) for rank in range(starts)]
    return [weight for weight in weights if weight >= FAINT]


def rank_changes(starts: int, warm_up: int) -> tuple[int, ...]:
    """Return the meta-steps from which on fewer ranks count."""

    def last(rank: int) -> int:
        def gone(step: int) -> bool:
            return len(neural_gas(starts, step / warm_up)) <= rank

        return bisect_left(range(warm_up), True, key=gone)

    return tuple(sorted({last(rank) for rank in range(1, starts)} - {0}))


def _plus(params: Params, more: Params, weight: float) -> Params:
    return {name: value + weight * more[name] for name, value in params.items()}
