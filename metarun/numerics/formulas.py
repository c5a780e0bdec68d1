"""The outer optimisers as operations on tensors alone, for a meta-step that is one graph.

The formulas and the names of the moments are those of torch.optim, which takes all other steps.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from metarun.settings.sections import Outer

BETAS = (0.9, 0.999)  # torch's defaults
DECAY = 0.99  # of RMSprop's mean square, likewise
Moved = tuple[Tensor, dict[str, Tensor]]


def moved(
    outer: Outer, value: Tensor, gradient: Tensor, moments: Mapping[str, Tensor], rate: Tensor
) -> Moved:
    """Return a tensor after a step by its gradient, and its moments; nothing is changed in place.

    `rate` is a scalar in float64, in which all scalars are computed.
    """
    if outer.optimizer == "adamw":
        value = value * (1 - rate * outer.weight_decay).to(value.dtype)
    elif outer.weight_decay:
        gradient = gradient + outer.weight_decay * value
    match outer.optimizer:
        case "adam" | "adamw":
            return _adam(outer, value, gradient, moments, rate)
        case "sgd":
            return _sgd(outer, value, gradient, moments, rate)
        case "rmsprop":
            return _rmsprop(outer, value, gradient, moments, rate)


def _adam(
    outer: Outer, value: Tensor, gradient: Tensor, moments: Mapping[str, Tensor], rate: Tensor
) -> Moved:
    (first, second), step = BETAS, moments["step"] + 1
    mean = torch.lerp(moments["exp_avg"], gradient, 1 - first)
    square = moments["exp_avg_sq"] * second + (1 - second) * gradient.square()
    begun = 1 - first ** step.double(), (1 - second ** step.double()).sqrt()
    scale = square.sqrt() / begun[1].to(value.dtype) + outer.eps
    value = value - (rate / begun[0]).to(value.dtype) * mean / scale
    return value, {"step": step, "exp_avg": mean, "exp_avg_sq": square}


def _sgd(
    outer: Outer, value: Tensor, gradient: Tensor, moments: Mapping[str, Tensor], rate: Tensor
) -> Moved:
    kept = dict[str, Tensor]()
    if outer.momentum:
        gradient = moments["momentum_buffer"] * outer.momentum + gradient
        kept = {"momentum_buffer": gradient}
    return value - rate.to(value.dtype) * gradient, kept


def _rmsprop(
    outer: Outer, value: Tensor, gradient: Tensor, moments: Mapping[str, Tensor], rate: Tensor
) -> Moved:
    square = moments["square_avg"] * DECAY + (1 - DECAY) * gradient.square()
    kept = {"step": moments["step"] + 1, "square_avg": square}
    gradient = gradient / (square.sqrt() + outer.eps)
    if outer.momentum:
        gradient = moments["momentum_buffer"] * outer.momentum + gradient
        kept["momentum_buffer"] = gradient
    return value - rate.to(value.dtype) * gradient, kept
