"""Ways to compute the meta-gradient, each for any learner.

A learner says what is adapted; an estimator says how the query's gradient finds its way back
through the inner loop. All take T tasks at once and return means over them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple
from zlib import crc32

import torch
from pydantic import ConfigDict, Field
from torch import Tensor

from metarun.errors import ConfigError
from metarun.inner import Learner, adapt, inner_step, leaves, meta_leaves, over_tasks
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
    """Return the meta-gradient of adapt-then-query by the chosen estimator.

    The first three are exact and equal: `adjoint` keeps the graphs of the last few steps,
    `recompute` of one, `unrolled` builds one graph of all. `first_order` is FOMAML, {last: T} is
    truncation, {pairs: n, sigma: s} evolution strategies.

    Raises:
        ConfigError: more steps to differentiate than there are.
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
        case Truncated(last=last):
            if last > steps:
                raise ConfigError(
                    f"algo.estimator: {{last: {last}}} is more than algo.steps={steps}; "
                    f"must be at most {steps}, and adjoint goes through them all"
                )
            return adjoint(problem, learner, steps, last=last, kept=KEPT)
        case Evolution(pairs=pairs, sigma=sigma):
            return evolution(problem, learner, steps, pairs=pairs, sigma=sigma)


def is_exact(estimator: Estimator) -> bool:
    """Tell whether an estimator gives the gradient of the query loss after adaptation."""
    return estimator in ("adjoint", "recompute", "unrolled")


def query_losses(problem: Problem, params: Params, tasks: Tasks) -> Tensor:
    """Return the query loss of every task under its own parameters, [T]."""
    lifted = over_tasks(problem.query_loss, shared=0, count=len(tasks))
    return lifted(params, tasks.support_x, tasks.query_x, tasks.query_y)


def unrolled(problem: Problem, learner: Learner, steps: int) -> MetaGrad:
    """Differentiate through one graph of the whole inner loop: exact, memory linear in steps.

    Finn et al., 2017, arXiv:1703.03400, equation 1 and algorithm 1. The oracle of `adjoint`.
    """

    def meta_grad(meta: Meta, tasks: Tasks, step: int) -> MetaGradient:
        meta, support = meta_leaves(meta), (tasks.support_x, tasks.support_y)
        with torch.enable_grad():
            params = learner.start(meta, *support)
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
            begun = params = leaves(first)
            early = steps - last
            for k in range(early):  # one graph, of the updates alone: nothing of it is stored
                params = advance(k, params, False)
            reached, params = params, leaves(params) if early else params
            trace: list[tuple[Params, Params | None]] = []
            for k in range(early, steps):
                keep = k >= steps - kept
                after = advance(k, params, keep)
                trace.append((params, after if keep else None))
                params = leaves(after)
            losses = query_losses(problem, params, tasks)
            pull = _zip(params, torch.autograd.grad(losses.mean(), list(params.values())))
            for k in reversed(range(early, steps)):
                before, after = trace.pop()
                after = after or advance(k, before, True)
                pull = _through_step(learner, before, after, pull, total)
            if early:
                pull = _through_step(learner, begun, reached, pull, total)
            total.add(pull_back(list(first.values()), total.leaves, list(pull.values())))
        return MetaGradient(total.gradient(), losses.detach())

    return meta_grad


def evolution(
    problem: Problem, learner: Learner, steps: int, *, pairs: int, sigma: float
) -> MetaGrad:
    """Estimate the gradient of the loss smoothed by noise of deviation `sigma`, by values alone.

    The mean over antithetic pairs of noise * (J(meta + sigma noise) - J(meta - sigma noise)) /
    (2 sigma), without fitness shaping, hence unbiased: Song et al., 2020, arXiv:1910.01215,
    algorithm 3. Both of a pair see the same task. Each task has noise of its own, seeded by the
    meta-step and by its support, which the run's seed and the task's number decide: it is the
    same in any chunk and any order. The relative error is about sqrt(numbers / (tasks * pairs)).
    """

    def objective(meta: Meta, task: Tasks) -> Tensor:
        support = (task.support_x, task.support_y)
        params = deque(adapt(learner, meta, *support, steps), maxlen=1)[0]
        with torch.no_grad():
            return query_losses(problem, params, task)

    def meta_grad(meta: Meta, tasks: Tasks, step: int) -> MetaGradient:
        meta = {group: {n: v.detach() for n, v in params.items()} for group, params in meta.items()}
        total, losses = MetaSum(meta), list[Tensor]()
        for task in tasks.chunks(1):
            losses.append(objective(meta, task))
            generator = torch.Generator().manual_seed(_task_seed(task, step))
            for _ in range(pairs):
                noise = [_normal(leaf, generator) for leaf in total.leaves]
                up, down = (objective(total.moved(noise, by), task) for by in (sigma, -sigma))
                weight = (up - down) / (2 * sigma * pairs * len(tasks))
                total.add([weight * part for part in noise])
        return MetaGradient(total.gradient(), torch.cat(losses))

    return meta_grad


def _task_seed(task: Tasks, step: int) -> int:
    seed = crc32(str(step).encode())
    for tensor in (task.support_x, task.support_y):
        seed = crc32(tensor.double().cpu().contiguous().numpy().tobytes(), seed)
    return seed


def _normal(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, dtype=torch.float64, generator=generator).to(like)


def _through_step(
    learner: Learner, before: Params, after: Params, pull: Params, total: MetaSum
) -> Params:
    """Return the pull on a step's input, given the pull on its output; add the meta part."""
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
        return self._named(
            torch.zeros_like(leaf) if found is None else found.detach()
            for leaf, found in zip(self.leaves, self.sums, strict=True)
        )

    def moved(self, direction: Sequence[Tensor], by: float) -> Meta:
        """Return the meta-parameters some way along a direction."""
        return self._named(v + by * d for v, d in zip(self.leaves, direction, strict=True))

    def _named(self, values: Iterable[Tensor]) -> Meta:
        flat = iter(values)
        return {group: {name: next(flat) for name in params} for group, params in self.meta.items()}
