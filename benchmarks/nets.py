"""The networks as anyone writes them in plain torch, and as a function of a list of tensors.

Both have their parameters in the order of metarun's own networks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.works import Work

WIDTHS = (40, 40)


class Plain(nn.Module):
    """A body and a linear head; extra keywords are taken and left, as one of the peers asks."""

    def __init__(self, work: Work) -> None:
        super().__init__()
        self.body, width = (_conv4 if work.net == "conv4" else _mlp)(work)
        self.head = nn.Linear(width, work.outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


def _conv4(work: Work) -> tuple[nn.Module, int]:
    layers: list[nn.Module] = []
    channels, *size = work.features
    for _ in range(4):
        layers += [
            nn.Conv2d(channels, work.filters, 3, padding=1),
            nn.BatchNorm2d(work.filters, track_running_stats=False),
            nn.ReLU(),
            nn.MaxPool2d(2),
        ]
        channels, size = work.filters, [side // 2 for side in size]
    return nn.Sequential(*layers, nn.Flatten()), channels * prod(size)


def _mlp(work: Work) -> tuple[nn.Module, int]:
    first, second = WIDTHS
    linear = nn.Linear(prod(work.features), first), nn.Linear(first, second)
    return nn.Sequential(linear[0], nn.ReLU(), linear[1], nn.ReLU()), second


def module(work: Work, values: Sequence[Tensor]) -> Plain:
    """Return the network with these values of its parameters, of their type and device."""
    net = Plain(work).to(values[0].device, values[0].dtype)
    with torch.no_grad():
        for parameter, value in zip(net.parameters(), values, strict=True):
            parameter.copy_(value)
    return net


def initial(work: Work, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    """Return the values that everyone starts from."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = Plain(work)
    return [p.detach().to(device, dtype) for p in net.parameters()]


def features(work: Work) -> Callable[[Sequence[Tensor], Tensor], Tensor]:
    """Return the body as a function of all parameters and the inputs."""

    def conv4(values: Sequence[Tensor], x: Tensor) -> Tensor:
        for k in range(0, 16, 4):
            w, b, scale, shift = values[k : k + 4]
            h = F.batch_norm(F.conv2d(x, w, b, padding=1), None, None, scale, shift, True)
            x = F.max_pool2d(F.relu(h), 2)
        return x.flatten(1)

    def mlp(values: Sequence[Tensor], x: Tensor) -> Tensor:
        for k in (0, 2):
            x = F.relu(F.linear(x, values[k], values[k + 1]))
        return x

    return conv4 if work.net == "conv4" else mlp


def error(work: Work) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the mean loss of outputs and targets."""
    return F.mse_loss if work.net == "mlp" else F.cross_entropy
