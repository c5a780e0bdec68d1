"""A mixture of starts: each task is answered by all, as responsible as its support makes them.

Letters in shapes: T tasks, M starts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

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
    spread_starts,
)
from metarun.algorithms.parts.encoder import set_encoder
from metarun.algorithms.parts.fitness import Score, check_score, least_shots, support_score
from metarun.algorithms.parts.usage import USAGE, Fraction, Upkeep, initial_usage, kept_in_use
from metarun.errors import ConfigError
from metarun.gradients.estimators import Estimator, check_estimator, estimate, is_exact
from metarun.gradients.metagradient import MetaGradient
from metarun.inner import Learner, adapt, gradient_descent, over_tasks, pulled
from metarun.problem import Meta, Params, Problem
from metarun.tasks import Tasks

FOLDS = 2  # of `holdout`
WEIGHT = "mixture"  # the entry of a task's parameters that says how much each start counts


def mixture(
    problem: Problem,
    *,
    inner_lr: Rate,
    steps: Count,
    estimator: Estimator,
    proximal: Pull,
    starts: Count,
    weights: Literal["em", "gate"],
    combine: Literal["predictions", "parameters"],
    score: Score,
    temperature: Rate,
    width: Count,
    share_rate: Fraction,
    restart: Fraction,
    spread: Annotated[float, Field(ge=0)],
    balance: Annotated[float, Field(ge=0)],
) -> MetaAlgorithm:
    """Meta-learn `starts` initialisations whose weights on a task its support alone decides.

    `em`: responsibilities share_m * exp(-loss_m / temperature), normalised, of the summed support
    loss (`score`: before adaptation, after it, or held out); the maximisation is a step on the
    responsible starts' query losses, responsibilities held (Jerfel et al., 2019, arXiv:1812.06080,
    algorithm 2, without its growing number of components). `gate`: a softmax over a set encoder of
    `width`, learned with the starts. `predictions` adapts every start and averages what they
    answer, trained on the average of their query losses, which bounds the loss of the average;
    `parameters` adapts the average start, which suits starts that are near each other.

    A start whose loss on a task's support, before or after adaptation, is no finite number has no
    part in that task; weights other than by the loss `after` adapt once more to see it, a third of
    the cost. `parameters`, which adapts no single start, looks at its `score` alone.

    Against collapse: starts begin as copies `spread` relative deviations apart; a bias, which
    counts at test too, moves by `balance` a step against starts that take more than their share;
    and a start whose running share, which follows by `share_rate` a step, falls below `restart`
    of an equal one begins again beside the most used. The figure `restarts` counts these.

    Raises:
        ConfigError: a score that cannot tell starts apart, or running averages of several models.
    """
    _check(problem, weights, combine, score, starts)
    update, mixed = gradient_descent(inner_lr), combine == "predictions"
    upkeep = Upkeep(balance, share_rate, restart, spread)
    judge = problem
    if mixed:
        judge = Mixed(problem.model, problem.kind, precision=problem.precision, single=problem)
    fits = support_score(problem, score, FOLDS, update, steps, proximal)
    ends = support_score(problem, "after", FOLDS, update, steps, proximal)
    encoder = set_encoder(problem, width, starts) if weights == "gate" else None
    unseen = mixed and (encoder is not None or score != "after")  # weights see no divergence

    def init(params: Params) -> Meta:
        meta: Meta = {"params": spread_starts(params, starts, spread)}
        if encoder is not None:
            meta["encoder"] = encoder.init()
        return meta | {USAGE: initial_usage(starts)}

    def logits(meta: Meta, x: Tensor, y: Tensor) -> Tensor:
        """Return one task's unnormalised log weights, [M]."""
        if encoder is not None:
            return encoder.encode(meta["encoder"], x, y) / temperature
        params = {name: value.detach() for name, value in meta["params"].items()}
        losses = over_starts(lambda one: fits(one, x, y), params)
        losses = losses.masked_fill(~losses.isfinite(), float("inf"))
        return meta[USAGE]["share"].clamp_min(1e-6).log() - len(y) * losses / temperature

    def diverges(meta: Meta, x: Tensor, y: Tensor) -> Tensor:
        """Tell from which starts one task's adaptation ends in no finite loss, [M]."""
        params = {name: value.detach() for name, value in meta["params"].items()}
        return ~over_starts(lambda one: ends(one, x, y), params).isfinite()

    def lost(meta: Meta, x: Tensor, y: Tensor) -> Tensor | None:
        if not unseen or starts == 1:
            return None
        with torch.no_grad():
            return over_tasks(diverges, shared=1, count=len(x))(meta, x, y)

    def responsible(meta: Meta, x: Tensor, y: Tensor, absent: Tensor | None = None) -> Tensor:
        """Return how much each start counts for each task, [T, M]; rows add up to one.

        Those `absent` count nothing: what `lost` returned, which is asked where it is not given.
        """
        if starts == 1:
            return torch.ones(len(x), 1, dtype=x.dtype, device=x.device)
        absent = lost(meta, x, y) if absent is None else absent
        with torch.set_grad_enabled(encoder is not None and torch.is_grad_enabled()):
            found = over_tasks(logits, shared=1, count=len(x))(meta, x, y) - meta[USAGE]["bias"]
            if absent is not None:
                found = found.masked_fill(absent, -float("inf"))
            return torch.softmax(found, 1)

    def loss(meta: Meta, params: Params, x: Tensor, y: Tensor) -> Tensor:
        return judge.loss(params, x, y)

    def learner(weigh: Callable[[Meta, Tensor, Tensor], Tensor]) -> Learner:
        def start(meta: Meta, x: Tensor, y: Tensor) -> Params:
            weight, stacked = weigh(meta, x, y), meta["params"]
            if not mixed:
                return {n: torch.tensordot(weight, v, dims=1) for n, v in stacked.items()}
            return _seated(stacked, weight) | {WEIGHT: weight}

        return pulled(Learner(start, loss, update, problem.model.adapted), proximal)

    def meta_grad(meta: Meta, tasks: Tasks, step: int) -> MetaGradient:
        absent = lost(meta, tasks.support_x, tasks.support_y)
        with torch.no_grad():
            held = responsible(meta, tasks.support_x, tasks.support_y, absent)
        state = {USAGE: meta[USAGE]}

        def weigh(leaves: Meta, x: Tensor, y: Tensor) -> Tensor:
            return held if encoder is None else responsible(leaves | state, x, y, absent)

        moving = estimate(estimator, judge, learner(weigh), steps)
        learned = {group: params for group, params in meta.items() if group != USAGE}
        found = moving(learned, tasks, step)
        entropy = -(held * held.clamp_min(torch.finfo(held.dtype).tiny).log()).sum(1)
        found = found._replace(figures=found.figures | {"starts_a_task": entropy.exp()})
        return kept_in_use(found, meta, held.mean(0), upkeep)

    def assign(meta: Meta, x: Tensor, y: Tensor) -> Tensor:
        with torch.no_grad():
            return responsible(meta, x, y).argmax(1)

    def each(meta: Meta, x: Tensor, y: Tensor, count: int) -> list[Iterator[Params]]:
        def alone(which: int) -> Iterator[Params]:
            def start(meta: Meta, x: Tensor, y: Tensor) -> Params:
                params = from_starts(meta["params"], torch.full((len(x),), which, device=x.device))
                if not mixed:
                    return params
                one = torch.ones(len(x), 1, dtype=x.dtype, device=x.device)
                return {name: value[:, None] for name, value in params.items()} | {WEIGHT: one}

            learner = Learner(start, loss, update, problem.model.adapted)
            return adapt(pulled(learner, proximal), meta, x, y, count)

        return [alone(which) for which in range(starts)]

    check_estimator(estimator, steps, problem, proximal)
    return MetaAlgorithm(
        init,
        adapting(learner(responsible)),
        meta_grad,
        exact=is_exact(estimator) and (weights == "gate" or starts == 1),
        assign=assign,
        problem=judge if mixed else None,
        each=each,
        least_shots=least_shots(score, FOLDS) if weights == "em" and starts > 1 else 1,
    )


@dataclass(frozen=True)
class Mixed(Problem):
    """Several models' parameters, each [M, ...], and what their answers weigh, [M].

    The loss is the sum over the models, so that each follows its own gradient.
    """

    single: Any = None  # the problem of one model

    def loss(self, params: Params, x: Tensor, y: Tensor) -> Tensor:
        return over_starts(lambda one: self.single.loss(one, x, y), params).sum()

    def predict(self, params: Params, support_x: Tensor, query_x: Tensor) -> Tensor:
        outputs = over_starts(lambda one: self.single.predict(one, support_x, query_x), params)
        weight = params[WEIGHT].view(-1, 1, 1)
        if self.kind == "classification":  # probabilities are averaged
            return torch.logsumexp(weight.log() + outputs.log_softmax(2), 0)
        return (weight * outputs).sum(0)

    def query_loss(
        self, params: Params, support_x: Tensor, query_x: Tensor, query_y: Tensor
    ) -> Tensor:
        def one(params: Params) -> Tensor:
            return self.single.query_loss(params, support_x, query_x, query_y)

        return (params[WEIGHT] * over_starts(one, params)).sum()


def over_starts(function: Callable[[Params], Tensor], params: Params) -> Tensor:
    """Apply a function of one model's parameters to each of several, [M, ...]; one runs plainly."""
    stacked = {name: value for name, value in params.items() if name != WEIGHT}
    if len(next(iter(stacked.values()))) == 1:
        return function({name: value[0] for name, value in stacked.items()})[None]
    return torch.vmap(function)(stacked)


def _seated(stacked: Params, weight: Tensor) -> Params:
    """Return the starts [T, M, ...] of tasks for which they count so much, [T, M].

    The task's first start sits in the place of one that counts nothing: that may have diverged,
    and nothing times what is not a number is none either, in answers and in gradients.
    """
    absent, first = weight == 0, weight.argmax(1)

    def seated(value: Tensor) -> Tensor:
        ones = (1,) * (value.dim() - 1)
        return torch.where(absent.view(*absent.shape, *ones), value.detach()[first, None], value)

    return {name: seated(value) for name, value in stacked.items()}


def _check(problem: Problem, weights: str, combine: str, score: Score, starts: int) -> None:
    if weights == "em" and starts > 1:
        check_score(problem, score, "algo.score")
    if combine == "predictions" and getattr(problem.model, "bn_mode", None) == "running":
        raise ConfigError(
            "model.bn_mode=running: algo.combine=predictions asks several models at once, and "
            "averages are kept of one; use model.bn_mode=transductive or algo.combine=parameters"
        )
