"""Heads that are computed from a support, and what the algorithms that do so share.

Letters in shapes: T tasks, S support rows, N ways, B rows, W width of the features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metarun.algorithms.base import Adapt
from metarun.errors import ConfigError
from metarun.inner import Learner, over_tasks
from metarun.problem import Meta, Params, Problem

TINY = 1e-12  # below any length that matters; keeps the second derivative at zero finite
Head = Callable[[Meta, Tensor, Tensor], Params]  # meta, one task's support -> "head.*"
Start = Callable[[Meta, Tensor, Tensor], Params]


def unit(x: Tensor) -> Tensor:
    """Scale rows [..., W] to unit length; a row of zeros stays one, with finite derivatives."""
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + TINY)


class Cosine(nn.Module):
    """Logits [B, N] that are cosines with a direction a class, times the class's own norm.

    Chen et al., 2019, arXiv:1904.04232, section 3.2; with weight normalisation as in their code,
    and `scale` the constant factor on top.
    """

    def __init__(self, width: int, outputs: int, scale: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(nn.Linear(width, outputs).weight.detach())
        self.norm = nn.Parameter(self.weight.detach().norm(dim=1))
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.norm * F.linear(unit(x), unit(self.weight))


class Reshaped(nn.Linear):
    """A linear head on features that are shifted, then divided by a power of their length.

    As it is built, the shift is zero and the power one: features of unit length.
    """

    shift: Tensor
    power: Tensor

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__(width, outputs)
        self.register_buffer("shift", torch.zeros(width))
        self.register_buffer("power", torch.ones(()))

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(reshaped(input, self.shift, self.power))


def reshaped(x: Tensor, shift: Tensor, power: Tensor) -> Tensor:
    """Return (x - shift) / |x - shift|^power by rows [..., W]."""
    apart = x - shift
    return apart * (apart.square().sum(-1, keepdim=True) + TINY).pow(-0.5 * power)


def with_head(problem: Problem, head: nn.Module) -> Problem:
    """Return the problem with a head of another form on the same body."""
    net = deepcopy(problem.model)
    net.register_module("head", head.to(problem.model.head.weight))
    names = frozenset(f"head.{name}" for name, _ in head.named_parameters())
    net.adapted = frozenset(n for n in net.adapted if not n.startswith("head.")) | names
    return replace(problem, model=net)


def only_classes(problem: Problem, algorithm: str) -> int:
    """Return the number of ways.

    Raises:
        ConfigError: the data set is of regression.
    """
    if problem.kind != "classification":
        raise ConfigError(
            f"algo={algorithm}: tells classes apart, and this data set is of regression; "
            "use algo=r2d2, transfer or maml"
        )
    return problem.model.outputs


def body_of(params: Params) -> Params:
    """Return the parameters without the head's."""
    return {name: value for name, value in params.items() if name.startswith("body.")}


def class_means(features: Tensor, y: Tensor, ways: int) -> Tensor:
    """Return the means [N, W] of the rows [S, W] of each class; a class without rows is zero."""
    member = F.one_hot(y, ways).to(features.dtype)
    return member.T @ features / member.sum(0).clamp_min(1)[:, None]


def nearest_mean(means: Tensor) -> Params:
    """Return the linear head that orders classes by squared distance to their means [N, W].

    Snell et al., 2017, arXiv:1703.05175, equation 8: -|f - c|^2 is 2 c'f - |c|^2, up to what all
    classes share.
    """
    return {"head.weight": 2 * means, "head.bias": -means.square().sum(1)}


def starting_with(head: Head) -> Start:
    """Start every task from the shared body, with a head of its own."""

    def one(meta: Meta, x: Tensor, y: Tensor) -> Params:
        return body_of(meta["params"]) | head(meta, x, y)

    def start(meta: Meta, support_x: Tensor, support_y: Tensor) -> Params:
        return over_tasks(one, shared=1, count=len(support_x))(meta, support_x, support_y)

    return start


def solved(start: Start) -> Adapt:
    """Return the adaptation of a closed form: the same parameters whatever the number of steps."""

    def adapt(meta: Meta, support_x: Tensor, support_y: Tensor, steps: int) -> Iterator[Params]:
        with torch.no_grad():
            params = start(meta, support_x, support_y)
        for _ in range(steps + 1):
            yield params

    return adapt


def without_steps(start: Start) -> Learner:
    """Return the learner of a closed form, for estimators that take no step."""

    def none(*_: object) -> Tensor:
        raise AssertionError("a closed form takes no inner step")

    def still(meta: Meta, step: int, params: Params, gradient: Params) -> Params:
        return params

    return Learner(start, none, still, frozenset())
