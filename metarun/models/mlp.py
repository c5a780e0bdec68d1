"""The multi-layer perceptrons of the MAML paper: 1-40-40-1, and 256-128-64-64 for Omniglot."""

from __future__ import annotations

from itertools import pairwise
from math import prod
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor, nn

from metarun.models.layers import ACTIVATIONS, Activation, BatchNormMode, Norm, NormKind
from metarun.models.net import Net


class Layers(nn.Module):
    """Flatten, then linear, normalisation and activation, once for each hidden width."""

    def __init__(self, widths: list[int], norm: NormKind, activation: Activation) -> None:
        super().__init__()
        self.linears = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.norms = nn.ModuleList(Norm(width, norm) for width in widths[1:])
        self.activation = ACTIVATIONS[activation]

    def forward(self, x: Tensor, reference: int | None = None) -> Tensor:
        h = x.flatten(1)
        for linear, norm in zip(self.linears, self.norms, strict=True):
            h = self.activation(norm(linear(h), reference))
        return h


def mlp(
    features: tuple[int, ...],
    outputs: int,
    *,
    hidden: Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=1)],
    norm: NormKind,
    bn_mode: BatchNormMode,
    adapt_norm: bool,
    activation: Activation,
    init: Literal["default", "small"],
) -> Net:
    """Build a perceptron; `init=small` is normal(0, 0.01) cut at 0.02 with zero biases.

    Finn et al., 2017, arXiv:1703.03400, appendix A.1 (Omniglot, no convolution) and section 5.1.
    """
    widths = [prod(features), *hidden]
    body = Layers(widths, norm, activation)
    net = Net(body, widths[-1], outputs, norm=norm, bn_mode=bn_mode, adapt_norm=adapt_norm)
    if init == "small":
        for module in net.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.01, a=-0.02, b=0.02)
                nn.init.zeros_(module.bias)
    return net
