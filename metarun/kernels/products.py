"""Convolution as one product of matrices, for devices that have no kernel of ours.

Under `vmap` a convolution whose weights differ by task is a grouped one. Torch takes its second
derivative group by group, one task after the other, and libraries are slow at many small groups.
This one is a batched product with a task axis, and so are all its derivatives.
Letters in shapes: B images, I and O channels, H and W pixels, k the kernel's size.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def conv2d(x: Tensor, weight: Tensor, bias: Tensor, *, stride: int, padding: int) -> Tensor:
    """Convolve [B, I, H, W] with [O, I, k, k], by torch's own operations."""
    images, size = x.shape[0], weight.shape[-1]
    windows = F.pad(x, (padding,) * 4).unfold(2, size, stride).unfold(3, size, stride)
    _, _, height, width, _, _ = windows.shape  # [B, I, H, W, k, k]
    rows = windows.permute(0, 2, 3, 1, 4, 5).reshape(images * height * width, -1)
    found = F.linear(rows, weight.flatten(1), bias)
    return found.view(images, height, width, -1).permute(0, 3, 1, 2).contiguous()
