"""Layers that the models share, safe to differentiate twice and to run under `vmap`.

Letters in shapes: B images or points, C channels, H and W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Literal, TypedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metarun.errors import ConfigError
from metarun.kernels import products
from metarun.kernels.conv import conv2d
from metarun.kernels.first import first_block, suits
from metarun.kernels.norm import norm_act_pool

NormKind = Literal["batch", "group", "layer", "none"]
BatchNormMode = Literal["transductive", "support", "one_by_one", "running"]
Activation = Literal["relu", "leaky_relu", "tanh", "softplus"]

ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "leaky_relu": F.leaky_relu,
    "tanh": torch.tanh,
    "softplus": F.softplus,
}
SLOPES: dict[Activation, float] = {"relu": 0.0, "leaky_relu": 0.01}  # left of zero


class Norm(nn.Module):
    """Normalise [B, C] or [B, C, H, W], by plain tensor operations.

    The fused batch normalisation of torch 2.13 gives a wrong second-order gradient under `vmap`,
    without a warning; this one is right there, and the contract test compares both.
    `reference` rows at the head of the batch give the statistics; None means all rows.
    """

    mean: Tensor
    variance: Tensor

    def __init__(self, channels: int, kind: NormKind, groups: int = 8, eps: float = 1e-5) -> None:
        super().__init__()
        if kind == "group" and channels % groups:
            raise ConfigError(
                f"model.norm=group: {channels} channels do not make {groups} equal groups; give "
                f"every layer a multiple of {groups}, or use model.norm=layer"
            )
        self.channels, self.kind, self.eps = channels, kind, eps
        self.groups = groups if kind == "group" else 1
        self.frozen = False  # normalise by the stored averages
        self.observed: tuple[Tensor, Tensor] | None = None
        self.observing = False
        if kind != "none":
            self.weight = nn.Parameter(torch.ones(channels))
            self.bias = nn.Parameter(torch.zeros(channels))
        if kind == "batch":
            self.register_buffer("mean", torch.zeros(channels))
            self.register_buffer("variance", torch.ones(channels))

    @property
    def special(self) -> bool:
        """Does it use, or measure, statistics other than the batch's own."""
        return self.frozen or self.observing

    def forward(self, x: Tensor, reference: int | None = None) -> Tensor:
        if self.kind == "none":
            return x
        x = x.to(self.weight.dtype)  # whatever the precision of the product before
        per_channel = (1, -1) + (1,) * (x.dim() - 2)
        weight, bias = self.weight.view(per_channel), self.bias.view(per_channel)
        if self.kind == "batch":
            centred, variance = self._centred(x, reference, per_channel)
            return centred * (weight * torch.rsqrt(variance + self.eps)) + bias
        grouped = x.reshape(x.shape[0], self.groups, -1)
        centred = grouped - grouped.mean(2, keepdim=True)
        scale = torch.rsqrt(centred.square().mean(2, keepdim=True) + self.eps)
        return (centred * scale).view_as(x) * weight + bias

    def _centred(
        self, x: Tensor, reference: int | None, per_channel: tuple[int, ...]
    ) -> tuple[Tensor, Tensor]:
        # Two passes are as exact as torch.var_mean, and six times faster on a CPU.
        if self.frozen:
            return x - self.mean.view(per_channel), self.variance.view(per_channel)
        dims = [d for d in range(x.dim()) if d != 1]
        mean = (x if reference is None else x[:reference]).mean(dims, keepdim=True)
        centred = x - mean
        rows = centred if reference is None else centred[:reference]
        variance = rows.square().mean(dims, keepdim=True)
        if self.observing:
            self.observed = (mean.detach().flatten(), variance.detach().flatten())
        return centred, variance


class Kernel(TypedDict):
    """What the kernels must know of a block."""

    pool: int
    eps: float
    slope: float


class Switch:
    """Whether kernels are used. A block's copies, one for each thread, obey the same switch."""

    on = False

    def __deepcopy__(self, _: dict[int, object]) -> Switch:
        return self


class ConvBlock(nn.Module):
    """3x3 convolution, normalisation, activation, halving by stride or by 2x2 max-pool."""

    def __init__(
        self,
        channels: int,
        filters: int,
        *,
        downsample: Literal["stride", "max_pool"],
        norm: NormKind,
        activation: Activation,
    ) -> None:
        super().__init__()
        self.stride, self.pool = (2, 1) if downsample == "stride" else (1, 2)
        self.conv = nn.Conv2d(channels, filters, 3, stride=self.stride, padding=1)
        self.norm = Norm(filters, norm)
        self.activation = ACTIVATIONS[activation]
        self.slope = SLOPES.get(activation) if norm == "batch" else None
        self.kernels = Switch()  # see `use_kernels`

    def forward(self, x: Tensor, reference: int | None = None) -> Tensor:
        norm, slope, on = self.norm, self.slope, self.kernels.on
        products_alone = on and x.device.type != "cpu"
        on = on and not products_alone
        if on and slope is not None and reference is None and not norm.special:
            weight, bias = self.conv.weight, self.conv.bias
            assert bias is not None
            how: Kernel = {"pool": self.pool, "eps": norm.eps, "slope": slope}
            if suits(x, weight):
                given = x, weight, bias, norm.weight, norm.bias
                return first_block(*given, stride=self.stride, padding=1, **how)
            h = conv2d(x, weight, bias, stride=self.stride, padding=1)
            return norm_act_pool(h, norm.weight, norm.bias, **how)
        h = self._product(x) if products_alone else self.conv(x)
        h = self.activation(norm(h, reference))
        return F.max_pool2d(h, 2) if self.pool == 2 else h

    def _product(self, x: Tensor) -> Tensor:
        weight, bias = self.conv.weight, self.conv.bias
        assert bias is not None
        return products.conv2d(x, weight, bias, stride=self.stride, padding=1)


def kernel_blocks(model: nn.Module) -> int:
    """Return how many blocks have kernels."""
    return len(_blocks(model))


def use_kernels(model: nn.Module, on: bool) -> None:
    """Switch the blocks that have kernels to them, or back to torch's operations."""
    for block in _blocks(model):
        block.kernels.on = on


@contextmanager
def without_kernels(model: nn.Module) -> Generator[None]:
    """Compute by torch's operations for a while."""
    before = [block for block in _blocks(model) if block.kernels.on]
    use_kernels(model, False)
    try:
        yield
    finally:
        for block in before:
            block.kernels.on = True


def _blocks(model: nn.Module) -> list[ConvBlock]:
    blocks = (module for module in model.modules() if isinstance(module, ConvBlock))
    return [block for block in blocks if block.slope is not None and not _altered(block)]


def _altered(block: ConvBlock) -> bool:
    """Does something, such as an adapter, act on a layer's output, which kernels never show."""
    return any(layer._forward_hooks for layer in block.modules())  # pyright: ignore[reportPrivateUsage]
