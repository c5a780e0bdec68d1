"""Ways to compute the meta-gradient, each for any learner.

A learner says what is adapted; an estimator says how the query's gradient finds its way back
through the inner loop. All take T tasks at once and return means over them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import ConfigDict, Field

from metarun.errors import ConfigError
from metarun.evolution import evolution
from metarun.inner import Learner, inner_step, meta_leaves
from metarun.metagradient import (
    MetaGrad,
    MetaGradient,
    MetaSum,
    moving,
    pull_back,
    query_gradients,
    query_losses,
)
from metarun.precision import refuse_rounding
from metarun.problem import Meta, Params, Problem
from metarun.tasks import Tasks


@dataclass(frozen=True, slots=True, kw_only=True)
class Truncated:
    """Differentiate the last few inner steps only; the earlier ones count as first order."""

    __pydantic_config__ = ConfigDict(extra="forbid")
    last: Annotated[int, Field(ge=1)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Evolution:
    """Differentiate nothing: compare the query loss at pairs of perturbed meta-parameters."""

    __pydantic_config__ = ConfigDict(extra="forbid")
    pairs: Annotated[int, Field(ge=1)]  # a task
    sigma: Annotated[float, Field(gt=0, allow_inf_nan=False)]


Estimator = Literal["adjoint", "recompute", "unrolled", "first_order"] | Truncated | Evolution
KEPT = 5  # steps whose graphs the adjoint keeps: typical loops whole, of long ones the last few


def estimate(estimator: Estimator, problem: Problem, learner: Learner, steps: int) -> MetaGrad:
    """Return the meta-gradient of adapt-then-query by the chosen estimator.

    The first three are exact and equal: `adjoint` keeps the graphs of the last few steps,
    `recompute` of one, `unrolled` builds one graph of all. `first_order` is FOMAML, {last: T} is
    truncation, {pairs: n, sigma: s} evolution strategies.

    Raises:
        ConfigError: more steps to differentiate than there are; a precision that it cannot use.
    """
    check_estimator(estimator, steps, problem)
    match estimator:
        case "unrolled":
            return unrolled(problem, learner, steps)
        case "adjoint":
            return adjoint(problem, learner, steps, last=steps, kept=KEPT)
        case "recompute":
            return adjoint(problem, learner, steps, last=steps, kept=1)
        case "first_order":
            return adjoint(problem, learner, steps, last=0, kept=0)
        case Truncated(last=last):
            return adjoint(problem, learner, steps, last=last, kept=KEPT)
        case Evolution(pairs=pairs, sigma=sigma):
            return evolution(problem, learner, steps, pairs=pairs, sigma=sigma)


def check_estimator(estimator: Estimator, steps: int, problem: Problem) -> None:
    """Refuse what `estimate` would; for families that build theirs inside each meta-step."""
    if isinstance(estimator, Truncated) and estimator.last > steps:
        raise ConfigError(
            f"algo.estimator: {{last: {estimator.last}}} is more than algo.steps={steps}; "
            f"must be at most {steps}, and adjoint goes through them all"
        )
    if estimator == "unrolled":
        refuse_rounding(problem.precision, "algo.estimator=unrolled")
    if isinstance(estimator, Evolution):
        refuse_rounding(problem.precision, "evolution strategies, algo.estimator={pairs, sigma},")


def is_exact(estimator: Estimator) -> bool:
    """Tell whether an estimator gives the gradient of the query loss after adaptation."""
    return estimator in ("adjoint", "recompute", "unrolled")


def has_noise(estimator: Estimator | None) -> bool:
    """Tell whether an estimator draws, by a task's own numbers."""
    return isinstance(estimator, Evolution)


def unrolled(problem: Problem, learner: Learner, steps: int) -> MetaGrad:
    """Differentiate through one graph of the whole inner loop: exact, memory linear in steps.

    Finn et al., 2017, arXiv:1703.03400, equation 1 and algorithm 1. The oracle of `adjoint`.
    """

    def meta_grad(meta: Meta, tasks: Tasks, step: int) -> MetaGradient:
        meta, support = meta_leaves(meta), (tasks.support_x, tasks.support_y)
        with torch.enable_grad():
            first = learner.start(meta, *support)
            params = restart(learner, first) | moving(first)
            for k in range(steps):
                params = inner_step(learner, meta, k, params, support, second_order=True)
            losses = query_losses(problem, params, tasks)
            total = MetaSum(meta)
            total.add(torch.autograd.grad(losses.mean(), total.leaves, allow_unused=True))
        return MetaGradient(total.gradient(), losses.detach())

    return meta_grad


def adjoint(problem: Problem, learner: Learner, steps: int, *, last: int, kept: int) -> MetaGrad:
    """Pull the query gradient back one inner step at a time, through the `last` steps exactly.

    The inner loop keeps the parameters of each step and the graphs of the last `kept`; an
    earlier step is run again for its own vector-Jacobian product, so that memory grows by one
    parameter set a step instead of by one graph. `last=steps` is exact; `last=0` is first order
    (FOMAML): the inner gradients are constants, which leaves learned rates their gradient and
    never builds a second-order graph; in between is truncation.
    """

    def meta_grad(meta: Meta, tasks: Tasks, step: int) -> MetaGradient:
        meta, support = meta_leaves(meta), (tasks.support_x, tasks.support_y)

        def advance(k: int, params: Params, exact: bool) -> Params:
            return inner_step(learner, meta, k, params, support, second_order=exact)

        total = MetaSum(meta)
        with torch.enable_grad():
            first = learner.start(meta, *support)
            begun = params = restart(learner, first)
            early = steps - last
            for k in range(early):  # one graph, of the updates alone: nothing of it is stored
                params = advance(k, params, False)
            reached, params = params, restart(learner, params) if early else params
            trace: list[tuple[Params, Params | None]] = []
            for k in range(early, steps):
                keep = k >= steps - kept
                after = advance(k, params, keep)
                trace.append((params, after if keep else None))
                params = restart(learner, after)
            losses, pull = query_gradients(problem, params, tasks)
            for k in reversed(range(early, steps)):
                before, after = trace.pop()
                after = after or advance(k, before, True)
                pull = _through_step(learner, before, after, pull, total)
            if early:
                pull = _through_step(learner, begun, reached, pull, total)
            total.add(pull_back([first[n] for n in pull], total.leaves, list(pull.values())))
        return MetaGradient(total.gradient(), losses.detach())

    return meta_grad


def restart(learner: Learner, params: Params) -> Params:
    """Return the same values as fresh leaves; a constant that is not adapted stays one."""
    return {
        name: value.detach().requires_grad_(value.requires_grad or name in learner.adapted)
        for name, value in params.items()
    }


def _through_step(
    learner: Learner, before: Params, after: Params, pull: Params, total: MetaSum
) -> Params:
    """Return the pull on a step's input, given the pull on its output; add the meta part."""
    before = moving(before)
    moved = [name for name in after if name in learner.adapted]
    grads = pull_back(
        [after[name] for name in moved],
        [*before.values(), *total.leaves],
        [pull[name] for name in moved],
    )
    total.add(grads[len(before) :])
    back: Params = {}
    for name, grad in zip(before, grads, strict=False):
        if name in learner.adapted:
            back[name] = torch.zeros_like(before[name]) if grad is None else grad
        else:
            back[name] = pull[name] if grad is None else pull[name] + grad
    return back
