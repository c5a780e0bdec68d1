"""Ways to compute the meta-gradient, each for any learner.

A learner says what is adapted; an estimator says how the query's gradient finds its way back
through the inner loop. All take T tasks at once and return means over them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from metarun.inner import Learner, inner_step, meta_leaves, over_tasks
from metarun.problem import Meta, Params, Problem
from metarun.tasks import Tasks

Estimator = Literal["adjoint", "recompute", "unrolled", "first_order"]
ALONE = 32_000  # numbers in a query set, above which tasks do not gain by company
KEPT = 5  # steps whose graphs the adjoint keeps: typical loops whole, long ones in flat memory
_NO_FIGURES: dict[str, Tensor] = {}
_NO_SHIFT: Meta = {}


class MetaGradient(NamedTuple):
    """A batch's meta-gradient and what was seen on the way."""

    gradient: Meta  # mean over the tasks; groups that are not meta-learned are absent
    losses: Tensor  # [T] query losses after adaptation
    figures: dict[str, Tensor] = _NO_FIGURES  # further figures a task, each [T]
    shift: Meta = _NO_SHIFT  # added to the meta-parameters as it is; state without a gradient


MetaGrad = Callable[[Meta, Tasks, int], MetaGradient]  # meta-parameters, tasks, meta-step


def estimate(estimator: Estimator, problem: Problem, learner: Learner, steps: int) -> MetaGrad:
    """Return the meta-gradient of adapt-then-query by the named estimator.

    The first three are exact and equal: `adjoint` keeps the graphs of the last few steps,
    `recompute` of one, `unrolled` builds one graph of all.
    """
    match estimator:
        case "unrolled":
            return unrolled(problem, learner, steps)
        case "adjoint":
            return adjoint(problem, learner, steps, last=steps, kept=KEPT)
        case "recompute":
            return adjoint(problem, learner, steps, last=steps, kept=1)
        case "first_order":
            return adjoint(problem, learner, steps, last=0, kept=0)


def query_losses(problem: Problem, params: Params, tasks: Tasks) -> Tensor:
    """Return the query loss of every task under its own parameters, [T]."""
    lifted = over_tasks(problem.query_loss, shared=0, count=len(tasks))
    return lifted(params, tasks.support_x, tasks.query_x, tasks.query_y)


def query_gradients(problem: Problem, params: Params, tasks: Tasks) -> tuple[Tensor, Params]:
    """Return the query losses [T] and the gradient of their mean for what is not constant.

    Nothing differentiates it again, and a large query set fills a core by itself: then tasks are
    taken one at a time, so that what one computes stays in the cache.
    """
    if tasks.query_x.is_cuda or tasks.query_x[0].numel() < ALONE:
        return _query_gradients(problem, params, tasks)
    found: list[tuple[Tensor, Params]] = []
    for index in range(len(tasks)):
        mine = slice(index, index + 1)
        one = {
            name: value.detach()[mine].requires_grad_(value.requires_grad)
            for name, value in params.items()
        }
        loss, pull = _query_gradients(problem, one, tasks[mine])
        found.append((loss.detach(), pull))
    losses = torch.cat([loss for loss, _ in found])
    names = _moving(params)
    return losses, {n: torch.cat([pull[n] for _, pull in found]) / len(tasks) for n in names}


def _query_gradients(problem: Problem, params: Params, tasks: Tasks) -> tuple[Tensor, Params]:
    losses, given = query_losses(problem, params, tasks), _moving(params)
    # The query may not use every entry: then nothing pulls at it.
    grads = torch.autograd.grad(losses.mean(), list(given.values()), materialize_grads=True)
    return losses, _zip(given, grads)


def unrolled(problem: Problem, learner: Learner, steps: int) -> MetaGrad:
    """Differentiate through one graph of the whole inner loop: exact, memory linear in steps.

    Finn et al., 2017, arXiv:1703.03400, equation 1 and algorithm 1. The oracle of `adjoint`.
    """

    def meta_grad(meta: Meta, tasks: Tasks, step: int) -> MetaGradient:
        meta, support = meta_leaves(meta), (tasks.support_x, tasks.support_y)
        with torch.enable_grad():
            first = learner.start(meta, *support)
            params = restart(learner, first) | _moving(first)
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
            params = restart(learner, first)
            trace: list[tuple[Params, Params | None]] = []
            for k in range(steps):
                exact = k >= steps - last
                keep = not exact or k >= steps - kept  # a first-order graph is the update's own
                after = advance(k, params, exact and keep)
                trace.append((params, after if keep else None))
                params = restart(learner, after)
            losses, pull = query_gradients(problem, params, tasks)
            for k in reversed(range(steps)):
                before, after = trace.pop()
                after = after or advance(k, before, True)
                pull = _through_step(learner, before, after, pull, total)
            total.add(pull_back([first[n] for n in pull], total.leaves, list(pull.values())))
        return MetaGradient(total.gradient(), losses.detach())

    return meta_grad


def restart(learner: Learner, params: Params) -> Params:
    """Return the same values as fresh leaves; a constant that is not adapted stays one."""
    return {
        name: value.detach().requires_grad_(value.requires_grad or name in learner.adapted)
        for name, value in params.items()
    }


def _moving(params: Params) -> Params:
    return {name: value for name, value in params.items() if value.requires_grad}


def _through_step(
    learner: Learner, before: Params, after: Params, pull: Params, total: MetaSum
) -> Params:
    """Return the pull on a step's input, given the pull on its output; add the meta part."""
    before = _moving(before)
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


def pull_back(
    outputs: Sequence[Tensor], inputs: Sequence[Tensor], pulls: Sequence[Tensor]
) -> list[Tensor | None]:
    """Return the vector-Jacobian product for each input; None where no output depends on it."""
    found = [(o, p) for o, p in zip(outputs, pulls, strict=True) if o.requires_grad]
    if not found:
        return [None] * len(inputs)
    outputs, pulls = zip(*found, strict=True)
    return list(torch.autograd.grad(outputs, inputs, pulls, allow_unused=True))


def _zip(params: Params, values: Sequence[Tensor]) -> Params:
    return dict(zip(params, values, strict=True))


class MetaSum:
    """Sums gradients of the meta-parameters from the places where these act."""

    def __init__(self, meta: Meta) -> None:
        self.meta = meta
        self.leaves = [leaf for params in meta.values() for leaf in params.values()]
        self.sums: list[Tensor | None] = [None] * len(self.leaves)

    def add(self, grads: Sequence[Tensor | None]) -> None:
        for i, grad in enumerate(grads):
            if grad is not None:
                previous = self.sums[i]
                self.sums[i] = grad if previous is None else previous + grad

    def gradient(self) -> Meta:
        flat = iter(
            torch.zeros_like(leaf) if found is None else found.detach()
            for leaf, found in zip(self.leaves, self.sums, strict=True)
        )
        return {group: {name: next(flat) for name in params} for group, params in self.meta.items()}
