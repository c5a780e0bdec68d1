"""Convolution with weights for each task, whose gradient is as cheap to differentiate.

torch's second derivative of a grouped convolution takes each group, here each task, in turn and
exchanges batch and channels; the same sums are ordinary convolutions and their two gradients.
Letters in shapes: T tasks, B images, I and O channels, H and W pixels, k the kernel's size.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from metarun.kernels.build import call
from metarun.kernels.fold import PerTask, channels_inside, channels_outside, like

MANY_PIXELS = 2000  # of a task's output, above which torch's own convolution is as fast
_LANES = 16  # float32 in a vector; float64 goes the same ways, so that a check in it is of them
_LARGEST = 7  # kernel that the C code has room for


def conv2d(x: Tensor, weight: Tensor, bias: Tensor, *, stride: int, padding: int) -> Tensor:
    """Convolve [B, I, H, W] with [O, I, k, k]."""
    # Not by [0]: the gradient of an index is a tensor of zeros to be filled.
    rounded = x.dtype == torch.float32 and torch.is_autocast_enabled("cpu")  # as torch's own do
    how = _How(stride, padding, rounded)
    return _Conv.apply(x[None], weight[None], bias[None], how).squeeze(0)


class _How(NamedTuple):
    """What a convolution does to its input, and whether torch's own may round to bfloat16."""

    stride: int
    padding: int
    rounded: bool


class _Shape(NamedTuple):
    """What the C code must know, in its order."""

    tasks: int
    batch: int
    height: int
    width: int
    out_height: int
    out_width: int
    inputs: int
    outputs: int
    size: int
    stride: int
    padding: int

    @classmethod
    def of(cls, x: Tensor, weight: Tensor, how: _How) -> _Shape:
        stride, padding, _ = how
        tasks, batch, inputs, height, width = x.shape
        outputs, size = weight.shape[1], weight.shape[-1]
        down, across = ((side + 2 * padding - size) // stride + 1 for side in (height, width))
        return cls(
            tasks, batch, height, width, down, across, inputs, outputs, size, stride, padding
        )

    def few(self) -> bool:
        """Are there so few pixels, and whole vectors of channels, that the C code is faster."""
        pixels = self.batch * self.out_height * self.out_width
        whole = self.outputs % _LANES == 0 and self.inputs % _LANES == 0
        return whole and pixels < MANY_PIXELS and self.size <= _LARGEST

    def thin(self) -> bool:
        """Is a whole patch but a vector or two, as in a network's first layer."""
        return self.inputs * self.size**2 <= 2 * _LANES and self.outputs % _LANES == 0


def _weights_inside(weight: Tensor) -> tuple[Tensor, int]:
    """Return [T, O, k, k, I] and how far apart tasks lie: 0 where they share their weights."""
    shared = weight.stride(0) == 0
    inside = channels_inside(weight[:1] if shared else weight)
    return inside, 0 if shared else inside[0].numel()


def _forward(x: Tensor, weight: Tensor, bias: Tensor | None, how: _How) -> Tensor:
    s = _Shape.of(x, weight, how)
    if s.thin():
        x, s = _patches(x, s)
        weight = _flat(weight, s)
    elif not s.few():
        biases = [None] * len(x) if bias is None else _rounded(bias, how)
        pairs = zip(_rounded(x, how), _rounded(weight, how), biases, strict=True)
        outs = [torch.conv2d(_last(a), _last(w), b, how.stride, how.padding) for a, w, b in pairs]
        out = outs[0][None] if len(outs) == 1 else torch.stack(outs)
        return out.to(x.dtype)
    else:
        x = channels_inside(x)
    inside, apart = _weights_inside(weight)
    out = like(x, s.tasks, s.batch, s.out_height, s.out_width, s.outputs)
    bias = None if bias is None else bias.contiguous()
    call("conv_forward", [x, inside, apart, bias, out], s)
    return channels_outside(out)


def _gradients(
    dout: Tensor, x: Tensor, weight: Tensor, how: _How, wanted: list[bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return the gradients of x, of the weights and of the bias, as wanted."""
    s = _Shape.of(x, weight, how)
    if not (s.few() or (s.thin() and not wanted[0])):
        return _gradients_by_torch(dout, x, weight, how, wanted)
    dout = channels_inside(dout)
    dx = dweight = dbias = None
    if wanted[0]:
        inside, apart = _weights_inside(weight)
        dx = like(x, s.tasks, s.batch, s.height, s.width, s.inputs)
        call("conv_input", [dout, inside, apart, dx], s)
        dx = channels_outside(dx)
    if wanted[1]:
        rows, shape = _patches(x, s) if s.thin() else (channels_inside(x), s)
        dweight = like(x, s.tasks, s.outputs, shape.size, shape.size, shape.inputs)
        dbias = like(x, s.tasks, s.outputs) if wanted[2] else None
        call("conv_weight", [rows, dout, dweight, dbias], shape)
        if s.thin():
            dweight = dweight.flatten(2)[:, :, : s.size**2 * s.inputs]
            dweight = dweight.unflatten(2, (s.size, s.size, s.inputs))
        dweight = channels_outside(dweight)
    return dx, dweight, dbias


def _gradients_by_torch(
    dout: Tensor, x: Tensor, weight: Tensor, how: _How, wanted: list[bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    sizes = [weight.shape[1]] if wanted[2] else None
    by, around = [how.stride] * 2, [how.padding] * 2
    given = (_rounded(t, how) for t in (dout, x, weight))
    found = [
        torch.ops.aten.convolution_backward(
            _last(d), _last(a), _last(w), sizes, by, around, [1, 1], False, [0, 0], 1, wanted
        )
        for d, a, w in zip(*given, strict=True)
    ]
    dx, dweight, dbias = (
        torch.stack(parts).to(x.dtype) if want else None
        for parts, want in zip(zip(*found, strict=True), wanted, strict=True)
    )
    return dx, dweight, dbias


def _rounded(x: Tensor, how: _How) -> Tensor:
    return x.bfloat16() if how.rounded else x


def _last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _patches(x: Tensor, s: _Shape) -> tuple[Tensor, _Shape]:
    """Return the patch under each output pixel as channels, so that the kernel is of size 1."""
    row = -(-s.inputs * s.size**2 // _LANES) * _LANES
    out = like(x, s.tasks, s.batch, s.out_height, s.out_width, row)
    call("patches", [channels_inside(x), out, row], s)
    height, width = s.out_height, s.out_width
    flat = s._replace(height=height, width=width, inputs=row, size=1, stride=1, padding=0)
    return out, flat


def _flat(weight: Tensor, s: _Shape) -> Tensor:
    """Return weights [T, O, row, 1, 1] that belong to patches."""
    rows = weight.permute(0, 1, 3, 4, 2).flatten(2)
    filled = torch.nn.functional.pad(rows, (0, s.inputs - rows.shape[2]))
    return filled[..., None, None]


class _Conv(PerTask):
    """All tensors have a leading [T]."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor, how: _How) -> Tensor:
        return _forward(x, weight, bias, how)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, _, ctx.how = inputs
        ctx.save_for_backward(x, weight)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        deep = ctx.needs_input_grad[0]
        dx, dweight, dbias = _Backward.apply(*grads, *ctx.saved_tensors, ctx.how, deep)
        return dx if deep else None, dweight, dbias, None


class _Backward(PerTask):
    """Not `deep` means that x is data, whose gradient nobody wants."""

    @staticmethod
    def forward(
        dout: Tensor, x: Tensor, weight: Tensor, how: _How, deep: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        dx, dweight, dbias = _gradients(dout, x, weight, how, [deep, True, True])
        assert dweight is not None
        assert dbias is not None
        return x.new_empty(len(x), 0) if dx is None else dx, dweight, dbias

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        dout, x, weight, ctx.how, ctx.deep = inputs
        ctx.save_for_backward(dout, x, weight)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grads: Any
    ) -> tuple[Tensor | None, ...]:
        of_dx, of_dweight, of_dbias = grads
        dout, x, weight = ctx.saved_tensors
        how = ctx.how
        of_dout = _forward(x, of_dweight, of_dbias, how)
        of_x = of_weight = None
        if ctx.deep:
            of_dout = of_dout + _forward(of_dx, weight, None, how)
            of_x = _gradients(dout, x, of_dweight, how, [True, False, False])[0]
            of_weight = _gradients(dout, of_dx, weight, how, [False, True, False])[1]
        return of_dout, of_x, of_weight, None, None
