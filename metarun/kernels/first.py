"""A network's first block as one operation, twice differentiable, with a task axis.

Its input is data, so the mean and variance of every channel of the convolution follow from those
of the patches, and no map of full size is made; the C code and its formulas stand in `first.c`.
Letters in shapes: T tasks, B images, I and O channels, H and W pixels, K numbers of a patch.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.func import debug_unwrap

from metarun.kernels.build import call
from metarun.kernels.fold import PerTask, channels_inside, channels_outside, like

_MOST = 63  # numbers under an output pixel that the C code has room for
_LANES = 16  # channels of a vector in float32; twice two in float64


class Window(NamedTuple):
    """How a first block looks at an image."""

    size: int
    stride: int
    padding: int
    pool: int


def suits(x: Tensor, weight: Tensor) -> bool:
    """Is x [..., H, W] data that nothing differentiates, and thin enough for whole patches."""
    outputs, inputs, size, _ = weight.shape
    return inputs * size**2 <= _MOST and outputs % _LANES == 0 and _is_data(x)


def _is_data(x: Tensor) -> bool:
    """A vmapped tensor hides that what it wraps requires a gradient."""
    while not x.requires_grad:
        inside = debug_unwrap(x, recurse=False)
        if inside is x:
            return True
        x = inside
    return False


def first_block(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    gain: Tensor,
    shift: Tensor,
    *,
    stride: int,
    padding: int,
    pool: int,
    eps: float,
    slope: float,
) -> Tensor:
    """Convolve data [B, I, H, W], normalise by its own statistics, leaky ReLU, pool by 1 or 2."""
    window = Window(weight.shape[-1], stride, padding, pool)
    level, mean, covariance = _Moments.apply(x[None], window)
    mean, covariance = mean.squeeze(0), covariance.squeeze(0)
    rows = weight.permute(2, 3, 1, 0).flatten(0, 2).double()  # [K, O]
    variance = ((covariance @ rows) * rows).sum(0)
    scale = gain * torch.rsqrt(variance + eps)
    centre = mean @ rows + bias
    weights = (rows * scale).to(x.dtype)
    biases = ((bias - centre) * scale + shift).to(x.dtype)
    found = _First.apply(x[None], level, weights[None], biases[None], window, slope)
    return found[0].squeeze(0)


def _shape(x: Tensor, outputs: int, window: Window) -> tuple[int, ...]:
    tasks, batch, inputs, height, width = x.shape
    size, stride, padding, pool = window
    down, across = ((side + 2 * padding - size) // stride + 1 for side in (height, width))
    sides = (height, width, down, across)
    return (tasks, batch, *sides, inputs, outputs, size, stride, padding, pool)


class _Moments(PerTask):
    """Of the patches [T, ...] under the output pixels: constants."""

    @staticmethod
    def forward(x: Tensor, window: Window) -> tuple[Tensor, Tensor, Tensor]:
        x, tasks, inputs = x.contiguous(), x.shape[0], x.shape[2]
        taps = inputs * window.size**2
        level, mean = like(x, tasks, inputs), like(x, tasks, taps, dtype=torch.float64)
        covariance = like(x, tasks, taps, taps, dtype=torch.float64)
        shape = _shape(x, 0, window)
        call("first_moments", [x, level, mean, covariance], shape)
        return level, mean, covariance

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.mark_non_differentiable(*output)


class _First(PerTask):
    """All tensors have a leading [T]; the result is out, and where its maxima lie."""

    @staticmethod
    def forward(
        x: Tensor, level: Tensor, weights: Tensor, bias: Tensor, window: Window, slope: float
    ) -> tuple[Tensor, Tensor]:
        outputs, x = weights.shape[-1], x.contiguous()
        shape = _shape(x, outputs, window)
        cells = [side // window.pool for side in shape[4:6]]
        out = like(x, *shape[:2], *cells, outputs)
        which = like(x, *out.shape, dtype=torch.uint8)
        arrays = [x, level, weights.contiguous(), bias.contiguous(), out, which]
        call("first_forward", arrays, shape, slope)
        return channels_outside(out), which

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, level, _, _, ctx.window, ctx.slope = inputs
        out, which = output
        ctx.mark_non_differentiable(which)
        ctx.save_for_backward(x, level, out, which)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        assert not ctx.needs_input_grad[0], "the first block's input is data"
        x, level, out, which = ctx.saved_tensors
        found = _Backward.apply(grads[0], x, level, out.detach(), which, ctx.window, ctx.slope)
        return None, None, *found, None, None


class _Backward(PerTask):
    """Linear in dout; what is greatest, and on which side of zero, does not move."""

    @staticmethod
    def forward(
        dout: Tensor,
        x: Tensor,
        level: Tensor,
        out: Tensor,
        which: Tensor,
        window: Window,
        slope: float,
    ) -> tuple[Tensor, Tensor]:
        x, dout, out = x.contiguous(), channels_inside(dout), channels_inside(out)
        outputs, taps = out.shape[-1], x.shape[2] * window.size**2
        dweights, dbias = like(x, len(x), taps, outputs), like(x, len(x), outputs)
        shape = _shape(x, outputs, window)
        call("first_gradient", [x, level, dout, out, which, dweights, dbias], shape, slope)
        return dweights, dbias

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        _, *tensors, ctx.window, ctx.slope = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grads: Any
    ) -> tuple[Tensor | None, ...]:
        x, level, out, which = ctx.saved_tensors
        x, out = x.contiguous(), channels_inside(out)
        of_dout = torch.empty_like(out)
        given = [x, level, grads[0].contiguous(), grads[1].contiguous(), out, which, of_dout]
        shape = _shape(x, out.shape[-1], ctx.window)
        call("first_pull", given, shape, ctx.slope)
        return channels_outside(of_dout), *(None,) * 6
