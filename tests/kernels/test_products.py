"""The convolution that is one product of matrices: torch's, to the second derivative, by task."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from metarun.kernels import products
from metarun.models.layers import ConvBlock, use_kernels

Convolution = Callable[[Tensor, Tensor, Tensor], Tensor]


def derivatives(one: Convolution, *given: Tensor) -> list[Tensor]:
    """Return outputs, gradients and second derivatives over three tasks."""
    given = tuple(value.clone().requires_grad_() for value in given)
    out = torch.vmap(one)(*given)
    first = torch.autograd.grad(out.tanh().square().sum(), given, create_graph=True)
    second = torch.autograd.grad(sum(g.square().sum() for g in first), given)  # pyright: ignore
    return [value.detach() for value in (out, *first, *second)]


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("side", [5, 8])
def test_products_are_torch_s_convolutions(stride: int, side: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (
        torch.randn(3, *shape, generator=generator, dtype=torch.float64)
        for shape in ((4, 2, side, side), (5, 2, 3, 3), (5,))
    )
    by_products = derivatives(
        lambda x, w, b: products.conv2d(x, w, b, stride=stride, padding=1), x, weight, bias
    )
    by_torch = derivatives(
        lambda x, w, b: F.conv2d(x, w, b, stride=stride, padding=1), x, weight, bias
    )
    for found, wanted in zip(by_products, by_torch, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)


def test_they_are_for_devices_without_kernels_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch's `meta` device, which computes shapes alone, stands for such a device."""
    seen: list[torch.Size] = []
    inner = products.conv2d

    def counted(x: Tensor, weight: Tensor, bias: Tensor, *, stride: int, padding: int) -> Tensor:
        seen.append(x.shape)
        return inner(x, weight, bias, stride=stride, padding=padding)

    monkeypatch.setattr(products, "conv2d", counted)
    block = ConvBlock(1, 4, downsample="max_pool", norm="batch", activation="relu").to("meta")
    x = torch.empty(2, 1, 8, 8, device="meta")
    for on in (False, True):
        use_kernels(block, on)
        assert block(x).shape == (2, 4, 4, 4)
    assert seen == [x.shape]
