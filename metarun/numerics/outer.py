"""The outer optimiser: how a meta-gradient moves the meta-parameters."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from metarun.numerics.chunks import map_meta
from metarun.problem import Meta
from metarun.settings.sections import Outer

Moments = dict[str, Tensor]  # "group/name/moment"


class OuterOptimizer:
    """A torch optimiser over named meta-parameters, which it moves in place."""

    def __init__(self, settings: Outer, meta: Meta, *, capturable: bool = False) -> None:
        self.settings, self.capturable = settings, capturable
        self.meta = meta
        self.names = [f"{group}/{name}" for group, params in meta.items() for name in params]
        self.values = [value for params in meta.values() for value in params.values()]
        self.torch = _optimizer(settings, self.values, capturable)

    def step(self, gradient: Meta, shift: Meta, done: float) -> None:
        """Move by the gradient and add the shift; `done` is the spent fraction of the budget."""
        self.move(gradient, learning_rate(self.settings, done))
        for group, params in shift.items():
            for name, value in params.items():
                self.meta[group][name] += value

    def move(self, gradient: Meta, rate: float) -> None:
        """Move by the gradient at a rate."""
        for name, value in zip(self.names, self.values, strict=True):
            group, _, leaf = name.partition("/")
            value.grad = gradient.get(group, {}).get(leaf)
        for options in self.torch.param_groups:
            options["lr"] = rate
        self.torch.step()
        for value in self.values:
            value.grad = None

    def moments_in_place(self, gradient: Meta) -> list[dict[str, Tensor]]:
        """Return the moments of each tensor of a gradient, which steps change in place.

        Before the first step they are zeros.
        """
        if not self.torch.state:  # torch makes them in a step, so take one and take it back
            before = [value.clone() for value in self.values]
            self.move(map_meta(torch.zeros_like, gradient), self.settings.lr)
            for value, old in zip(self.values, before, strict=True):
                value.copy_(old)
            for moments in self.torch.state.values():
                for value in moments.values():
                    value.zero_()
        moved = [self.meta[group][name] for group, some in gradient.items() for name in some]
        return [self.torch.state.get(value, {}) for value in moved]

    def moments(self) -> Moments:
        """Return the optimiser's state as named tensors."""
        state = self.torch.state_dict()["state"]
        return {
            f"{self.names[index]}/{key}": torch.as_tensor(value)
            for index, moments in state.items()
            for key, value in moments.items()
            if value is not None
        }

    def restore(self, moments: Moments) -> None:
        """Take back what `moments` gave.

        Steps go where the optimiser counts them: it reads those that are not capturable as
        numbers, for which the host would wait at every tensor.
        """
        indices = {name: index for index, name in enumerate(self.names)}
        state: dict[int, dict[str, Tensor]] = {}
        for path, value in moments.items():
            name, _, key = path.rpartition("/")
            counted = key == "step" and not self.capturable
            state.setdefault(indices[name], {})[key] = value.cpu() if counted else value
        groups = self.torch.state_dict()["param_groups"]
        self.torch.load_state_dict({"state": state, "param_groups": groups})


def _optimizer(settings: Outer, values: list[Tensor], capturable: bool) -> torch.optim.Optimizer:
    lr, eps, decay = settings.lr, settings.eps, settings.weight_decay
    # Capturable ones count steps on the device. Never fused: on a CPU that goes wrong where strides
    # differ.
    match settings.optimizer:
        case "adam":
            return torch.optim.Adam(
                values, lr=lr, eps=eps, weight_decay=decay, capturable=capturable
            )
        case "adamw":
            return torch.optim.AdamW(
                values, lr=lr, eps=eps, weight_decay=decay, capturable=capturable
            )
        case "sgd":
            momentum = settings.momentum
            return torch.optim.SGD(values, lr=lr, momentum=momentum, weight_decay=decay)
        case "rmsprop":
            return torch.optim.RMSprop(
                values,
                lr=lr,
                eps=eps,
                momentum=settings.momentum,
                weight_decay=decay,
                capturable=capturable,
            )


def learning_rate(settings: Outer, done: float) -> float:
    """Return the outer rate when the fraction `done` of the budget is spent."""
    done = min(max(done, 0.0), 1.0)
    span = settings.lr - settings.lr_min
    match settings.schedule:
        case "constant":
            return settings.lr
        case "linear":
            return settings.lr - span * done
        case "cosine":
            return settings.lr_min + 0.5 * span * (1 + math.cos(math.pi * done))


def gradient_norm(gradient: Meta) -> Tensor:
    """Return the Euclidean norm over all meta-parameters, a scalar in float64.

    By sums, whose order is fixed; the bits of torch's own vector norm change with where in memory
    a tensor happens to lie.
    """
    squares = [v.double().square().sum() for params in gradient.values() for v in params.values()]
    return torch.stack(squares).sum().sqrt()


def clipped(gradient: Meta, norm: Tensor, largest: float | None) -> Meta:
    """Scale the gradient so that its norm is at most `largest`."""
    length = 0.0 if largest is None else float(norm)  # read once: a GPU waits for it
    if largest is None or length <= largest:
        return gradient
    factor = largest / length
    return {
        group: {name: value * factor for name, value in params.items()}
        for group, params in gradient.items()
    }
