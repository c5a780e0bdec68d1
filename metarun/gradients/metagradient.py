"""What every estimator gives, and the parts that they share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from metarun.inner import over_tasks
from metarun.precision import products
from metarun.problem import Meta, Params, Problem
from metarun.tasks import Tasks

ALONE = 32_000  # numbers in a query set, above which tasks do not gain by company
_NO_FIGURES: dict[str, Tensor] = {}
_NO_SHIFT: Meta = {}


class MetaGradient(NamedTuple):
    """A batch's meta-gradient and what was seen on the way."""

    gradient: Meta  # mean over the tasks; groups that are not meta-learned are absent
    losses: Tensor  # [T] query losses after adaptation
    figures: dict[str, Tensor] = _NO_FIGURES  # further figures a task, each [T]
    shift: Meta = _NO_SHIFT  # added to the meta-parameters as it is; state without a gradient


MetaGrad = Callable[[Meta, Tasks, int], MetaGradient]  # meta-parameters, tasks, meta-step


def query_losses(problem: Problem, params: Params, tasks: Tasks) -> Tensor:
    """Return the query loss of every task under its own parameters, [T]."""
    lifted = over_tasks(problem.query_loss, shared=0, count=len(tasks))
    return lifted(params, tasks.support_x, tasks.query_x, tasks.query_y)


def query_gradients(problem: Problem, params: Params, tasks: Tasks) -> tuple[Tensor, Params]:
    """Return the query losses [T] and the gradient of their mean for what is not constant.

    Nothing differentiates it again, and a large query set fills a core by itself: then tasks are
    taken one at a time, so that what one computes stays in the cache.
    """
    if tasks.query_x.device.type != "cpu" or tasks.query_x[0].numel() < ALONE:
        return _query_gradients(problem, params, tasks)
    count, losses = len(tasks), list[Tensor]()
    pulls = {name: value.new_empty(value.shape) for name, value in moving(params).items()}
    for index in range(count):
        mine = slice(index, index + 1)
        one = {
            name: value.detach()[mine].requires_grad_(value.requires_grad)
            for name, value in params.items()
        }
        loss, pull = _query_gradients(problem, one, tasks[mine])
        losses.append(loss.detach())
        for name, value in pull.items():
            torch.div(value, count, out=pulls[name][mine])
    return torch.cat(losses), pulls


def _query_gradients(problem: Problem, params: Params, tasks: Tasks) -> tuple[Tensor, Params]:
    given = moving(params)
    with products(problem.precision, tasks.query_x.device.type):
        losses = query_losses(problem, params, tasks)
        grads = pull_back([losses.mean()], list(given.values()), [losses.new_ones(())])
    # The query may not use every entry: then nothing pulls at it, and zeros take no memory.
    nothing = losses.new_zeros(()).detach()
    return losses, {
        name: nothing.to(value).expand_as(value) if grad is None else grad
        for (name, value), grad in zip(given.items(), grads, strict=True)
    }


def moving(params: Params) -> Params:
    """Return what is not a constant."""
    return {name: value for name, value in params.items() if value.requires_grad}


def pull_back(
    outputs: Sequence[Tensor], inputs: Sequence[Tensor], pulls: Sequence[Tensor]
) -> list[Tensor | None]:
    """Return the vector-Jacobian product for each input; None where no output depends on it."""
    found = [(o, p) for o, p in zip(outputs, pulls, strict=True) if o.requires_grad]
    if not found:
        return [None] * len(inputs)
    outputs, pulls = zip(*found, strict=True)
    return list(torch.autograd.grad(outputs, inputs, pulls, allow_unused=True))


class MetaSum:
    """Sums gradients of the meta-parameters from the places where these act."""

    def __init__(self, meta: Meta) -> None:
        self.meta = meta
        self.leaves = [leaf for params in meta.values() for leaf in params.values()]
        self.sums: list[Tensor | None] = [None] * len(self.leaves)

    def add(self, grads: Sequence[Tensor | None]) -> None:
        """Add a gradient of each leaf, in their order; None is none."""
        for i, grad in enumerate(grads):
            if grad is not None:
                previous = self.sums[i]
                self.sums[i] = grad if previous is None else previous + grad

    def gradient(self) -> Meta:
        """Return the sums under the meta-parameters' names; zeros where nothing was added."""
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
