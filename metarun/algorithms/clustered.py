"""Several starts, and each task goes to one of them, chosen by its support alone."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.func import grad

from metarun.algorithms.base import Count, MetaAlgorithm, Rate, adapting
from metarun.errors import ConfigError
from metarun.estimators import Estimator, check_estimator, estimate, is_exact
from metarun.inner import Learner, gradient_descent, over_tasks
from metarun.metagradient import MetaGradient
from metarun.problem import Meta, Params, Problem
from metarun.tasks import Tasks


def clustered(
    problem: Problem,
    *,
    inner_lr: Rate,
    steps: Count,
    estimator: Estimator,
    starts: Count,
    assign: Literal["before", "after", "holdout"],
    spread: Annotated[float, Field(ge=0)],
    balance: Annotated[float, Field(ge=0)],
    own: Literal["all", "head"],
    warm_up: Annotated[int, Field(ge=0)],
) -> MetaAlgorithm:
    """Meta-learn `starts` initialisations, and adapt each task from the one it fits best.

    The score of a start is its mean support loss `before` adaptation (Ghosh et al., 2020,
    arXiv:2006.04088, algorithm 1), `after` it, or cross-validated: adapted on one half of each
    class and scored on the other (`holdout`; with permuted labels the only one that is not
    noise). In training the scores carry a learned bias that keeps every start in use: it moves
    by `balance` a step against the starts that take more than their share; at test there is
    none. The starts are copies of one, `spread` relative standard deviations apart. `own=head`
    shares the body among them. For `warm_up` meta-steps the starts move together, less and less:
    each learns from all tasks before it learns from its own alone.
    """
    if assign == "before" and problem.kind == "classification":
        raise ConfigError(
            "algo.assign: before adaptation every start is at chance when labels are permuted; "
            "use algo.assign=holdout (2 shots or more) or after"
        )
    update = gradient_descent(inner_lr)
    names = list(problem.initial())
    separate = {name for name in names if own == "all" or name.startswith("head.")}

    def init(params: Params) -> Meta:
        generator = torch.Generator().manual_seed(0)
        stacked: Params = {}
        for name, value in params.items():
            noise = torch.randn((starts, *value.shape), generator=generator).to(value)
            scale = value.std() if value.numel() > 1 else value.abs().sum()
            apart = spread * (starts > 1 and name in separate)
            stacked[name] = value + apart * scale * noise
        return {"params": stacked, "balance": {"bias": torch.zeros(starts)}}

    def fit(params: Params, x: Tensor, y: Tensor) -> Params:
        for step in range(steps):
            gradient = grad(problem.loss)(params, x, y)
            adapted = {name: params[name] for name in problem.model.adapted}
            params = params | update({}, step, adapted, gradient)
        return params

    def score(params: Params, x: Tensor, y: Tensor) -> Tensor:
        if assign == "before":
            return problem.loss(params, x, y)
        if assign == "after":
            return problem.loss(fit(params, x, y), x, y)
        halves = _halves(y, problem)
        losses = [
            problem.loss(fit(params, x[learn], y[learn]), x[held], y[held])
            for learn, held in (halves, halves[::-1])
        ]
        return torch.stack(losses).mean()

    def scores(meta: Meta, x: Tensor, y: Tensor) -> Tensor:
        """Score every start on one task's support, [M]."""
        params = {name: value.detach() for name, value in meta["params"].items()}
        return torch.vmap(score, in_dims=(0, None, None))(params, x, y)

    def choose(meta: Meta, x: Tensor, y: Tensor) -> Tensor:
        with torch.no_grad():
            return over_tasks(scores, shared=1, count=len(x))(meta, x, y).argmin(1)

    def choose_evenly(meta: Meta, tasks: Tasks) -> tuple[Tensor, Params]:
        with torch.no_grad():
            lifted = over_tasks(scores, shared=1, count=len(tasks))
            found = lifted(meta, tasks.support_x, tasks.support_y) + meta["balance"]["bias"]
            chosen = found.argmin(1)
            share = (chosen[:, None] == torch.arange(starts, device=chosen.device)).to(found)
            share = share.mean(0)
        return chosen, {"bias": balance * (share - 1 / starts)}

    def loss(meta: Meta, params: Params, x: Tensor, y: Tensor) -> Tensor:
        return problem.loss(params, x, y)

    def learner(chosen: Tensor | None) -> Learner:
        def start(meta: Meta, x: Tensor, y: Tensor) -> Params:
            which = choose(meta, x, y) if chosen is None else chosen
            return {name: value[which] for name, value in meta["params"].items()}

        return Learner(start, loss, update, problem.model.adapted)

    def meta_grad(meta: Meta, tasks: Tasks, step: int) -> MetaGradient:
        chosen, shift = choose_evenly(meta, tasks)
        moving = estimate(estimator, problem, learner(chosen), steps)
        found = moving({"params": meta["params"]}, tasks, step)
        together = max(0.0, 1 - step / warm_up) if warm_up else 0.0
        gradient = {
            name: torch.lerp(g, g.mean(0, keepdim=True), together if name in separate else 1.0)
            for name, g in found.gradient["params"].items()
        }
        return found._replace(gradient={"params": gradient}, shift={"balance": shift})

    check_estimator(estimator, steps)
    return MetaAlgorithm(
        init,
        adapting(learner(None)),
        meta_grad,
        exact=is_exact(estimator),
        assign=choose,
    )


def _halves(y: Tensor, problem: Problem) -> tuple[Tensor, Tensor]:
    order = torch.argsort(y, stable=True) if problem.kind == "classification" else None
    positions = torch.arange(y.shape[0], device=y.device)
    even, odd = positions[::2], positions[1::2]
    return (even, odd) if order is None else (order[even], order[odd])
