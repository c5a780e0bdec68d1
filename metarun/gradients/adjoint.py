"""The meta-gradient by way of the inner loop: pulled back step by step, or through one graph.

Point k is where the tasks stand after k of K inner steps. What is asked of the query is a weight
for each point's loss: ordinarily the last one's is 1 and there are no others.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import comb

import torch
from torch import Tensor

from metarun.gradients.metagradient import (
    MetaGrad,
    MetaGradient,
    MetaSum,
    moving,
    pull_back,
    query_gradients,
    query_losses,
)
from metarun.inner import Learner, inner_step, meta_leaves
from metarun.problem import Meta, Params, Problem
from metarun.tasks import Tasks


def unrolled(
    problem: Problem, learner: Learner, steps: int, weights: Sequence[float] | None = None
) -> MetaGrad:
    """Differentiate through one graph of the whole inner loop: exact, memory linear in steps.

    Finn et al., 2017, arXiv:1703.03400, equation 1 and algorithm 1. The oracle of `adjoint`.
    """
    weigh = _of_points(steps, weights)

    def meta_grad(meta: Meta, tasks: Tasks, step: int) -> MetaGradient:
        meta, support = meta_leaves(meta), (tasks.support_x, tasks.support_y)
        found: dict[int, Tensor] = {}
        with torch.enable_grad():
            first = learner.start(meta, *support)
            params = restart(learner, first) | moving(first)
            for point in range(steps + 1):
                if point:
                    params = inner_step(
                        learner, meta, point - 1, params, support, second_order=True
                    )
                if weigh[point]:
                    found[point] = query_losses(problem, params, tasks)
            losses = _weighed(weigh, found)
            total = MetaSum(meta)
            total.add(torch.autograd.grad(losses.mean(), total.leaves, allow_unused=True))
        return _result(total, losses.detach(), found, weights)

    return meta_grad


def adjoint(
    problem: Problem,
    learner: Learner,
    steps: int,
    *,
    last: int,
    kept: int,
    sets: int,
    weights: Sequence[float] | None = None,
) -> MetaGrad:
    """Pull the query gradient back one inner step at a time, through the `last` steps exactly.

    Each step's own vector-Jacobian product is taken on its own graph. At most `kept` steps have
    theirs at a time; for the others the inner loop is run again from the nearest of at most
    `sets` parameter sets that were stored on the way (Griewank and Walther, 2000, algorithm 799),
    so that memory is bounded whatever the number of steps. `last=steps` is exact; `last=0` is
    first order (FOMAML): the inner gradients are constants, which leaves learned rates their
    gradient and never builds a second-order graph; in between is truncation.
    """
    weigh, early = _of_points(steps, weights), steps - last

    def meta_grad(meta: Meta, tasks: Tasks, step: int) -> MetaGradient:
        meta, support = meta_leaves(meta), (tasks.support_x, tasks.support_y)
        total, found = MetaSum(meta), dict[int, Tensor]()

        def advance(k: int, params: Params, exact: bool) -> Params:
            return inner_step(learner, meta, k, params, support, second_order=exact)

        def asked(point: int, params: Params, pull: Params | None) -> Params:
            """Add the pull of a point's own query."""
            if pull is not None and not weigh[point]:
                return pull
            losses, mine = query_gradients(problem, params, tasks)
            found[point] = losses.detach()
            if weigh[point] != 1:
                mine = {name: weigh[point] * value for name, value in mine.items()}
            return mine if pull is None else {n: value + pull[n] for n, value in mine.items()}

        def back(low: int, high: int, params: Params, pull: Params | None, sets: int) -> Params:
            """Return the pull on point `low`, whose parameters are given, from that on `high`."""
            if high - low > kept:
                middle = low + _stride(high - low, kept, sets)
                reached = params
                for k in range(low, middle):
                    reached = restart(learner, advance(k, reached, False))
                pull = back(middle, high, reached, pull, sets - 1)
                del reached
                return back(low, middle, params, pull, sets)
            trace: list[tuple[Params, Params]] = []
            for k in range(low, high):
                after = advance(k, params, k >= early)
                trace.append((params, after))
                params = restart(learner, after)
            if pull is None:
                pull = asked(steps, params, None)
            for k in reversed(range(low, high)):
                before, after = trace.pop()
                pull = asked(k, before, _through_step(learner, before, after, pull, total))
            return pull

        with torch.enable_grad():
            first = learner.start(meta, *support)
            begun = params = restart(learner, first)
            straight = 0 if weights else early
            for k in range(straight):  # one graph, of the updates alone: nothing of it is stored
                params = advance(k, params, False)
            reached, params = params, restart(learner, params) if straight else params
            pull = back(straight, steps, params, None, sets)
            if straight:
                pull = _through_step(learner, begun, reached, pull, total)
            total.add(pull_back([first[n] for n in pull], total.leaves, list(pull.values())))
        return _result(total, _weighed(weigh, found), found, weights)

    return meta_grad


def _stride(steps: int, kept: int, sets: int) -> int:
    """Return how far to go before the next set is stored, so that the fewest steps run again.

    With s sets and no stretch run more than r times again, C(s + r, s) stretches can be reversed:
    what lies beyond the next set with one set less, what lies before it with one time less.
    """
    stretches, again = -(-steps // kept), 1
    while comb(sets + again, sets) < stretches:
        again += 1
    beyond = min(stretches - 1, comb(sets - 1 + again, sets - 1))
    return steps - beyond * kept


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


def _of_points(steps: int, weights: Sequence[float] | None) -> list[float]:
    """Return the weight of each point's query loss, 0 to K."""
    return [0.0] * steps + [1.0] if weights is None else [0.0, *weights]


def _weighed(weigh: list[float], found: dict[int, Tensor]) -> Tensor:
    terms = [found[p] if weigh[p] == 1 else weigh[p] * found[p] for p in sorted(found)]
    return torch.stack(terms).sum(0) if len(terms) > 1 else terms[0]


def _result(
    total: MetaSum,
    losses: Tensor,
    found: dict[int, Tensor],
    weights: Sequence[float] | None,
) -> MetaGradient:
    if weights is None:
        return MetaGradient(total.gradient(), losses)
    return MetaGradient(total.gradient(), losses, {"final_loss": found[max(found)].detach()})
