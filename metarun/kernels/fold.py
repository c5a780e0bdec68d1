"""How `vmap` hands tasks to a kernel: as a leading axis, merged with the kernel's own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class PerTask(torch.autograd.Function):
    """A function whose tensors, given and returned, all lead with the task axis [T]."""

    @classmethod
    def vmap(  # pyright: ignore[reportIncompatibleMethodOverride]
        cls, info: Any, in_dims: tuple[Any, ...], *inputs: Any
    ) -> tuple[Any, Any]:
        """Apply the function once, with the vmapped axis merged into that of the tasks."""
        count = info.batch_size
        folded = (
            fold(x, dim, count) if isinstance(x, Tensor) else x
            for x, dim in zip(inputs, in_dims, strict=True)
        )
        found = cls.apply(*folded)
        if isinstance(found, Tensor):
            return unfold(found, count), 0
        return tuple(unfold(x, count) for x in found), (0,) * len(found)


def fold(x: Tensor, dim: int | None, count: int) -> Tensor:
    """Return [V*T, ...] from [T, ...] with a vmapped axis of length `count` at `dim`, or none."""
    moved = x.unsqueeze(0).expand(count, *x.shape) if dim is None else x.movedim(dim, 0)
    return moved.flatten(0, 1)


def unfold(x: Tensor, count: int) -> Tensor:
    """Return [V, T, ...] from [V*T, ...]."""
    return x.unflatten(0, (count, -1))


def channels_inside(x: Tensor) -> Tensor:
    """Return [T, B, H, W, C], contiguous, from [T, B, C, H, W]; no copy where memory is so."""
    return x.permute(0, 1, 3, 4, 2).contiguous()


def channels_outside(x: Tensor) -> Tensor:
    """Return [T, B, C, H, W] as a view of [T, B, H, W, C]."""
    return x.permute(0, 1, 4, 2, 3)


def like(x: Tensor, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
    """Return a contiguous tensor of a shape, not yet filled."""
    return torch.empty(shape, dtype=dtype or x.dtype)
