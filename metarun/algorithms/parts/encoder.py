"""A task's support set as one vector, whatever the order of its rows.

Letters in shapes: S support rows, H encoder width, C code.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from metarun.problem import Params, Problem

CONVOLUTIONS = 4  # of stride 2, for images
SMALL = 0.01  # standard deviation of the last layer at first: codes begin near zero


class Encoder(NamedTuple):
    """Two pure functions; the parameters are a group of the meta-parameters."""

    init: Callable[[], Params]
    encode: Callable[[Params, Tensor, Tensor], Tensor]  # parameters, one support -> [C]


def set_encoder(problem: Problem, width: int, outputs: int) -> Encoder:
    """Embed every row alone, average, and read the code off the average.

    Zaheer et al., 2017, arXiv:1703.06114, theorem 2. A row is an input beside its target; with
    classes it is the input alone, since which number a class has says nothing of the task.
    Images go through convolutions when the model's own first layer is one.
    """
    first = next(problem.model.body.parameters())  # [out, in] or [out, channels, 3, 3]
    images, regression = first.dim() == 4, problem.kind == "regression"
    inputs = first.shape[1] + (problem.model.outputs if regression and not images else 0)
    shapes = [("row0", (width, inputs)), ("row1", (width, width))]
    if images:
        channels = [inputs, *[width] * CONVOLUTIONS]
        shapes = [(f"row{i}", (width, channels[i], 3, 3)) for i in range(CONVOLUTIONS)]
    rows = [name for name, _ in shapes]
    shapes += [("mean", (width, width)), ("code", (outputs, width))]

    drawn: Params = {}  # here, where the run's seed rules
    for name, shape in shapes:
        deviation = SMALL if name == "code" else (2 / prod(shape[1:])) ** 0.5
        drawn[f"{name}.weight"] = deviation * torch.randn(shape)
        drawn[f"{name}.bias"] = torch.zeros(shape[0])

    def init() -> Params:
        return {name: value.clone() for name, value in drawn.items()}

    def layer(params: Params, name: str, x: Tensor) -> Tensor:
        weight, bias = params[f"{name}.weight"], params[f"{name}.bias"]
        if weight.dim() == 4:
            return F.conv2d(x, weight, bias, stride=2, padding=1)
        return F.linear(x, weight, bias)

    def encode(params: Params, x: Tensor, y: Tensor) -> Tensor:
        h = x if images else x.flatten(1)
        if regression and not images:
            h = torch.cat([h, y.flatten(1)], 1)
        for name in rows:
            h = F.silu(layer(params, name, h))
        h = h.flatten(2).mean(2) if images else h
        # Bounded, as a recurrent encoder's state is: large targets must not make large codes.
        h = torch.tanh(layer(params, "mean", h.mean(0)))
        return layer(params, "code", h)

    return Encoder(init, encode)
