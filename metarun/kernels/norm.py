"""Batch normalisation, ReLU and max-pool as one operation, twice differentiable, with a task axis.

The C code does in one pass what takes torch five to ten; the formulas stand in `norm.c`.
Letters in shapes: T tasks, B images, C channels, H and W pixels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from metarun.kernels.build import call
from metarun.kernels.fold import PerTask, channels_inside, channels_outside, like


def norm_act_pool(
    x: Tensor, gain: Tensor, bias: Tensor, *, pool: int, eps: float, slope: float
) -> Tensor:
    """Normalise [B, C, H, W] by its own statistics, then leaky ReLU, then max-pool by 1 or 2."""
    # Not by [0]: the gradient of an index is a tensor of zeros to be filled.
    found = _Norm.apply(x[None], gain[None], bias[None], pool, eps, slope)
    return found[0].squeeze(0)


class _Norm(PerTask):
    """All tensors have a leading [T]; the result is out, and what its gradient needs."""

    @staticmethod
    def forward(
        x: Tensor, gain: Tensor, bias: Tensor, pool: int, eps: float, slope: float
    ) -> tuple[Tensor, ...]:
        x = channels_inside(x)
        tasks, batch, height, width, channels = shape = x.shape
        pooled = (tasks, batch, height // pool, width // pool, channels)
        out, mean, r = like(x, *pooled), like(x, tasks, channels), like(x, tasks, channels)
        maxima = pooled if pool == 2 else (tasks, 0)  # what is greatest in each window, and where
        peak, which = like(x, *maxima), like(x, *maxima, dtype=torch.uint8)
        arrays = [x, gain.contiguous(), bias.contiguous(), out, peak, which, mean, r]
        call("norm_forward", arrays, shape, pool, eps, slope)
        return channels_outside(out), peak, which, mean, r

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, gain, bias, ctx.pool, _, ctx.slope = inputs
        ctx.mark_non_differentiable(*output[1:])  # `_Backward` knows how they depend on x
        ctx.save_for_backward(x, gain, bias, *output[1:])

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        found = _Backward.apply(grads[0], *ctx.saved_tensors, ctx.pool, ctx.slope)
        return *found, None, None, None


class _Backward(PerTask):
    @staticmethod
    def forward(
        dout: Tensor,
        x: Tensor,
        gain: Tensor,
        bias: Tensor,
        peak: Tensor,
        which: Tensor,
        mean: Tensor,
        r: Tensor,
        pool: int,
        slope: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        dout, x = channels_inside(dout), channels_inside(x)
        dx, dgain, dbias = torch.empty_like(x), torch.empty_like(mean), torch.empty_like(mean)
        given = [dout, x, gain.contiguous(), bias.contiguous(), peak, which, mean, r]
        call("norm_backward", [*given, dx, dgain, dbias], x.shape, pool, slope)
        return channels_outside(dx), dgain, dbias

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        *tensors, ctx.pool, ctx.slope = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grads: Any
    ) -> tuple[Tensor | None, ...]:
        dout, x, gain, bias, peak, which, mean, r = ctx.saved_tensors
        dout, x, of_dx = channels_inside(dout), channels_inside(x), channels_inside(grads[0])
        of_dout, of_x, of_gain = torch.empty_like(dout), torch.empty_like(x), torch.empty_like(mean)
        given = [of_dx, grads[1].contiguous(), grads[2].contiguous(), dout, x]
        given += [gain.contiguous(), bias.contiguous(), peak, which, mean, r]
        found = [of_dout, of_x, of_gain]
        call("norm_double_backward", [*given, *found], x.shape, ctx.pool, ctx.slope)
        return channels_outside(of_dout), channels_outside(of_x), of_gain, *(None,) * 7
