"""What torch's own operations give, to the second derivative, for the tests of the kernels."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

DOUBLE = torch.float64
EPS = 1e-5


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = DOUBLE) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=dtype).requires_grad_()


def plain_norm(x: Tensor, gain: Tensor, bias: Tensor, pool: int, slope: float) -> Tensor:
    mean = x.mean((0, 2, 3), keepdim=True)
    variance = (x - mean).square().mean((0, 2, 3), keepdim=True)
    y = (x - mean) / (variance + EPS).sqrt() * gain.view(1, -1, 1, 1) + bias.view(1, -1, 1, 1)
    return F.max_pool2d(F.leaky_relu(y, slope), pool)


def second_order(function, inputs: list[Tensor], seed: int = 9) -> list[Tensor]:
    """Return the value, its gradients, and the gradients of a random product of those."""
    value = function(*inputs)
    pull = draw(*value.shape, seed=seed, dtype=value.dtype).detach()
    first = torch.autograd.grad(value, inputs, pull, create_graph=True)
    product = sum((g * draw(*g.shape, seed=seed + 1, dtype=g.dtype)).sum() for g in first)
    second = torch.autograd.grad(product, inputs, allow_unused=True)
    return [
        value,
        *first,
        *(torch.zeros_like(x) if s is None else s for x, s in zip(inputs, second, strict=True)),
    ]


def assert_same(found: list[Tensor], wanted: list[Tensor], tolerance: float) -> None:
    for a, b in zip(found, wanted, strict=True):
        assert (a - b).norm() <= tolerance * max(1.0, float(b.detach().norm()))
