"""A mixture of starts: each task is answered by all, as responsible as its support makes them.

Letters in shapes: T tasks, M starts.
"""

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
)
from metarun.algorithms.parts.encoder import set_encoder
from metarun.algorithms.parts.fitness import Score, check_score, least_shots, support_score
from metarun.algorithms.parts.masks import Mask, matched
from metarun.algorithms.parts.mixed import WEIGHT, Mixed, over_starts, seated
from metarun.algorithms.parts.softness import Cooling, entropy, pressure
from metarun.algorithms.parts.starts import begin_starts, every_start, from_starts
from metarun.algorithms.parts.usage import USAGE, Fraction, Upkeep, initial_usage, kept_in_use
from metarun.errors import ConfigError
from metarun.gradients.estimators import Estimator, check_estimator, estimate, is_exact
from metarun.gradients.metagradient import MetaGradient, pull_back
from metarun.inner import Learner, adapt, gradient_descent, leaves, over_tasks, pulled
from metarun.problem import Meta, Params, Problem
from metarun.tasks import Tasks

FOLDS = 2  # of `holdout`


def mixture(
    problem: Problem,
    *,
    inner_lr: Rate,
    steps: Count,
    estimator: Estimator,
    proximal: Pull,
    starts: Count,
    own: Mask,
    weights: Literal["em", "gate"],
    combine: Literal["predictions", "parameters"],
    score: Score,
    temperature: Rate,
    temperature_end: Rate | None,
    temperature_steps: Count,
    balance_loss: Annotated[float, Field(ge=0)],
    entropy_loss: Annotated[float, Field(ge=0)],
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

    Against collapse: starts begin as copies `spread` relative deviations apart, in what each has
    of its `own`; a bias, which counts at test too, moves by `balance` a step against starts that
    take more than their share; and a start whose running share, which follows by `share_rate` a
    step, falls below `restart` of an equal one begins again beside the most used (the figure
    `restarts` counts these). The temperature falls geometrically to a `temperature_end` in
    `temperature_steps` meta-steps, and stays there at test. A gate's outer loss takes two terms:
    `balance_loss` times the divergence of the running shares from equal ones, `entropy_loss`
    times the entropy of a task's weights.

    Raises:
        ConfigError: a score that cannot tell starts apart, running averages of several models,
            terms for a gate without one, a temperature that rises, or `own` matches nothing.
    """
    _check(problem, weights, combine, score, starts)
    _check_terms(weights, share_rate, balance_loss, entropy_loss)
    if temperature_end is not None and temperature_end > temperature:
        raise ConfigError(
            f"algo.temperature_end: {temperature_end:g} is above algo.temperature={temperature:g}; "
            "must be at most that"
        )
    cooling = Cooling(temperature, temperature_end, temperature_steps)
    apart, terms = matched("algo.own", own, problem), starts > 1 and balance_loss + entropy_loss > 0
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
        meta = begin_starts(params, starts, spread, apart)
        if encoder is not None:
            meta["encoder"] = encoder.init()
        return meta | {USAGE: initial_usage(starts) | cooling.begun()}

    def logits(meta: Meta, x: Tensor, y: Tensor) -> Tensor:
        """Return one task's unnormalised log weights, [M]."""
        warmth = cooling.now(meta[USAGE])
        if encoder is not None:
            return encoder.encode(meta["encoder"], x, y) / warmth
        params = {name: value.detach() for name, value in every_start(meta).items()}
        losses = over_starts(lambda one: fits(one, x, y), params)
        losses = losses.masked_fill(~losses.isfinite(), float("inf"))
        return meta[USAGE]["share"].clamp_min(1e-6).log() - len(y) * losses / warmth

    def diverges(meta: Meta, x: Tensor, y: Tensor) -> Tensor:
        """Tell from which starts one task's adaptation ends in no finite loss, [M]."""
        params = {name: value.detach() for name, value in every_start(meta).items()}
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
            weight, stacked = weigh(meta, x, y), every_start(meta)
            if not mixed:
                return {n: torch.tensordot(weight, v, dims=1) for n, v in stacked.items()}
            return seated(stacked, weight) | {WEIGHT: weight}

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
        if terms:
            found = pressed(found, meta, tasks, absent)
        found = found._replace(figures=found.figures | {"starts_a_task": entropy(held).exp()})
        return cooling.cooled(kept_in_use(found, meta, held.mean(0), upkeep), meta)

    def pressed(
        found: MetaGradient, meta: Meta, tasks: Tasks, absent: Tensor | None
    ) -> MetaGradient:
        """Add what the gate's weights cost to its gradient; the losses stay the queries' own."""
        code = leaves(meta["encoder"])
        with torch.enable_grad():
            given = responsible(meta | {"encoder": code}, tasks.support_x, tasks.support_y, absent)
            cost = pressure(
                given, meta[USAGE]["share"], balance=balance_loss, sharpness=entropy_loss
            )
            pulls = pull_back([cost.mean()], list(code.values()), [cost.new_ones(())])
        own = found.gradient["encoder"]
        sums = {n: own[n] + pull for n, pull in zip(code, pulls, strict=True) if pull is not None}
        return found._replace(
            gradient=found.gradient | {"encoder": own | sums},
            figures=found.figures | {"pressure": cost.detach()},
        )

    def assign(meta: Meta, x: Tensor, y: Tensor) -> Tensor:
        with torch.no_grad():
            return responsible(meta, x, y).argmax(1)

    def each(meta: Meta, x: Tensor, y: Tensor, count: int) -> list[Iterator[Params]]:
        def alone(which: int) -> Iterator[Params]:
            def start(meta: Meta, x: Tensor, y: Tensor) -> Params:
                params = from_starts(
                    every_start(meta), torch.full((len(x),), which, device=x.device)
                )
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
        exact=is_exact(estimator) and (weights == "gate" or starts == 1) and not terms,
        assign=assign,
        problem=judge if mixed else None,
        each=each,
        least_shots=least_shots(score, FOLDS) if weights == "em" and starts > 1 else 1,
    )


def _check_terms(weights: str, share_rate: float, balance: float, entropy: float) -> None:
    if weights == "em" and (balance or entropy):
        name = "balance_loss" if balance else "entropy_loss"
        raise ConfigError(
            f"algo.{name}: no gradient goes through what em makes of losses; use "
            "algo.weights=gate, or algo.balance and algo.temperature"
        )
    if balance and not share_rate:
        raise ConfigError(
            "algo.balance_loss: algo.share_rate=0 follows no shares that could be balanced; set it "
            "above 0"
        )


def _check(problem: Problem, weights: str, combine: str, score: Score, starts: int) -> None:
    if weights == "em" and starts > 1:
        check_score(problem, score, "algo.score")
    if combine == "predictions" and getattr(problem.model, "bn_mode", None) == "running":
        raise ConfigError(
            "model.bn_mode=running: algo.combine=predictions asks several models at once, and "
            "averages are kept of one; use model.bn_mode=transductive or algo.combine=parameters"
        )
