"""Several starts, and each task goes to one of them, chosen by its support alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
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
    from_starts,
    plain_learner,
    spread_starts,
)
from metarun.algorithms.parts.fitness import Score, check_score, fit, least_shots, support_score
from metarun.algorithms.parts.usage import USAGE, Fraction, Upkeep, initial_usage, kept_in_use
from metarun.gradients.estimators import Estimator, check_estimator, estimate, is_exact
from metarun.gradients.metagradient import MetaGradient
from metarun.inner import Learner, adapt, gradient_descent, over_tasks, pulled
from metarun.problem import Meta, Params, Problem
from metarun.tasks import Tasks


def clustered(
    problem: Problem,
    *,
    inner_lr: Rate,
    steps: Count,
    estimator: Estimator,
    proximal: Pull,
    starts: Count,
    assign: Score,
    folds: Annotated[int, Field(ge=2)] | None,
    graded_by: Literal["support", "query"],
    spread: Annotated[float, Field(ge=0)],
    balance: Annotated[float, Field(ge=0)],
    share_rate: Annotated[float, Field(gt=0, le=1)],
    restart: Fraction,
    warm_up: Annotated[int, Field(ge=0)],
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
    standard deviations apart. For `warm_up` meta-steps they move together, less and less: each
    learns from all tasks before it learns from its own alone.
    """
    check_score(problem, assign, "algo.assign")
    check_estimator(estimator, steps, problem, proximal)
    update = gradient_descent(inner_lr)
    upkeep = Upkeep(balance, share_rate, restart, spread)

    def init(params: Params) -> Meta:
        return {"params": spread_starts(params, starts, spread), USAGE: initial_usage(starts)}

    score = support_score(problem, assign, folds, update, steps, proximal)

    def grade(params: Params, x: Tensor, y: Tensor, query_x: Tensor, query_y: Tensor) -> Tensor:
        return problem.query_loss(
            fit(problem, update, steps, proximal, params, x, y), x, query_x, query_y
        )

    def scores(meta: Meta, *task: Tensor) -> Tensor:
        """Score every start on one task, [M]: by its support, or by its query if that is given.

        A start from which adaptation diverges is the last to be chosen.
        """
        params = {name: value.detach() for name, value in meta["params"].items()}
        one: Callable[..., Tensor] = score if len(task) == 2 else grade
        found = torch.vmap(one, in_dims=(0, *(None,) * len(task)))(params, *task)
        return found.masked_fill(found.isnan(), float("inf"))

    def choose(meta: Meta, x: Tensor, y: Tensor) -> Tensor:
        with torch.no_grad():
            return over_tasks(scores, shared=1, count=len(x))(meta, x, y).argmin(1)

    def choose_evenly(meta: Meta, tasks: Tasks) -> tuple[Tensor, Tensor]:
        """Return each task's start in training, [T], and what part of the tasks each has, [M]."""
        given = [tasks.support_x, tasks.support_y]
        if graded_by == "query":
            given += [tasks.query_x, tasks.query_y]
        with torch.no_grad():
            found = over_tasks(scores, shared=1, count=len(tasks))(meta, *given)
            chosen = (found + meta[USAGE]["bias"]).argmin(1)
            taken = chosen[:, None] == torch.arange(starts, device=chosen.device)
        return chosen, taken.to(found).mean(0)

    def learner(chosen: Tensor | None) -> Learner:
        def start(meta: Meta, x: Tensor, y: Tensor) -> Params:
            return from_starts(meta["params"], choose(meta, x, y) if chosen is None else chosen)

        return pulled(plain_learner(problem, update, start), proximal)

    def each(meta: Meta, x: Tensor, y: Tensor, count: int) -> list[Iterator[Params]]:
        numbers = (torch.full((len(x),), m, device=x.device) for m in range(starts))
        return [adapt(learner(number), meta, x, y, count) for number in numbers]

    def meta_grad(meta: Meta, tasks: Tasks, step: int) -> MetaGradient:
        chosen, used = choose_evenly(meta, tasks)
        moving = estimate(estimator, problem, learner(chosen), steps)
        found = moving({"params": meta["params"]}, tasks, step)
        gradient = found.gradient["params"]
        if step < warm_up:
            together = 1 - step / warm_up
            gradient = {n: g.lerp(g.mean(0, keepdim=True), together) for n, g in gradient.items()}
        found = found._replace(gradient={"params": gradient})
        return kept_in_use(found, meta, used, upkeep)

    return MetaAlgorithm(
        init,
        adapting(learner(None)),
        meta_grad,
        exact=is_exact(estimator) and (not warm_up or starts == 1),
        assign=choose,
        each=each,
        least_shots=least_shots(assign, folds),
        warm_up=warm_up if starts > 1 else 0,
    )
