"""The kernels against torch's own operations, to the second derivative, alone and under vmap."""

from __future__ import annotations

import shutil

import pytest
import torch
from against_torch import DOUBLE, EPS, assert_same, draw, plain_norm, second_order
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.nn import functional as F

from metarun.kernels.build import why_not
from metarun.kernels.conv import MANY_PIXELS, conv2d
from metarun.kernels.norm import norm_act_pool

COMPILER = any(map(shutil.which, ("cc", "gcc", "clang")))
# Without a compiler there is nothing to test; with one, kernels that cannot be built are a failure.
pytestmark = pytest.mark.skipif(not COMPILER, reason="no C compiler")


def test_they_are_built_where_there_is_a_compiler() -> None:
    assert why_not() == ""


def norm(x: Tensor, gain: Tensor, bias: Tensor, pool: int, slope: float) -> Tensor:
    return norm_act_pool(x, gain, bias, pool=pool, eps=EPS, slope=slope)


NORMS = [
    pytest.param(side, channels, pool, slope, id=f"{side}px-{channels}ch-pool{pool}-slope{slope}")
    for side, channels in ((4, 3), (5, 40), (1, 64))
    for pool in (1, 2)
    for slope in (0.0, 0.01)
    if side >= pool
]


@pytest.mark.parametrize(("side", "channels", "pool", "slope"), NORMS)
def test_norm(side: int, channels: int, pool: int, slope: float) -> None:
    """With whole and broken blocks of channels, and a border that no window covers."""
    inputs = [draw(3, channels, side, side), draw(channels, seed=1), draw(channels, seed=2)]
    found = second_order(lambda *a: norm(*a, pool, slope), inputs)
    wanted = second_order(lambda *a: plain_norm(*a, pool, slope), inputs)
    assert_same(found, wanted, 1e-11)


def test_norm_against_finite_differences() -> None:
    inputs = (draw(2, 2, 4, 4), draw(2, seed=1), draw(2, seed=2))
    for pool in (1, 2):
        assert gradcheck(lambda *a, p=pool: norm(*a, p, 0.1), inputs, eps=1e-6)
        assert gradgradcheck(lambda *a, p=pool: norm(*a, p, 0.1), inputs, eps=1e-6)


CONVS = [
    pytest.param(inputs, outputs, side, stride, batch, id=name)
    for name, inputs, outputs, side, stride, batch in (
        ("few-pixels", 16, 24, 5, 2, 3),
        ("one-pixel", 8, 8, 1, 1, 1),
        ("odd-tile", 8, 16, 4, 1, 1),
        ("first-layer", 1, 16, 6, 2, 2),
        ("colour", 3, 8, 5, 1, 2),
        ("odd-channels", 3, 5, 5, 2, 2),
        ("many-pixels", 8, 8, 8, 1, MANY_PIXELS // 64 + 1),
    )
]


@pytest.mark.parametrize(("inputs", "outputs", "side", "stride", "batch"), CONVS)
@pytest.mark.parametrize("of_data", [False, True])
def test_conv(inputs: int, outputs: int, side: int, stride: int, batch: int, of_data: bool) -> None:
    x = draw(batch, inputs, side, side)
    weights = [draw(outputs, inputs, 3, 3, seed=1), draw(outputs, seed=2)]

    def both(function) -> list[Tensor]:
        if of_data:
            return second_order(lambda *a: function(x.detach(), *a).tanh(), weights)
        return second_order(lambda *a: function(*a).tanh(), [x, *weights])

    found = both(lambda *a: conv2d(*a, stride=stride, padding=1))
    wanted = both(lambda *a: F.conv2d(*a, stride=stride, padding=1))
    assert_same(found, wanted, 1e-11)


@pytest.mark.parametrize("shared", [False, True], ids=["own-weights", "shared-weights"])
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE], ids=["float", "double"])
def test_block_under_vmap_is_the_loop(shared: bool, dtype: torch.dtype) -> None:
    """Layers of every kind in a row, tasks at once: as one task after the other by torch."""
    tasks = 3
    x = draw(tasks, 2, 1, 9, 9, dtype=dtype).detach()
    shapes = [(16, 1, 3, 3), (16,), (16,), (16,), (16, 16, 3, 3), (16,), (16,), (16,)]
    start = [draw(*s, seed=i, dtype=dtype) for i, s in enumerate(shapes)]
    if shared:
        given = [s.detach().expand(tasks, *s.shape).requires_grad_() for s in start]
    else:
        given = [(s * draw(tasks, *(1,) * s.dim(), dtype=dtype)).detach() for s in start]
        given = [g.requires_grad_() for g in given]

    def kernel(x: Tensor, w: Tensor, b: Tensor, gain: Tensor, bias: Tensor, pool: int) -> Tensor:
        return norm(conv2d(x, w, b, stride=1, padding=1), gain, bias, pool, 0.0)

    def torch_s(x: Tensor, w: Tensor, b: Tensor, gain: Tensor, bias: Tensor, pool: int) -> Tensor:
        return plain_norm(F.conv2d(x, w, b, padding=1), gain, bias, pool, 0.0)

    def net(block, x: Tensor, *p: Tensor) -> Tensor:
        return block(block(x, *p[:4], 2), *p[4:], 1).mean((2, 3)).sin()

    def by_loop(*p: Tensor) -> Tensor:
        return torch.stack([net(torch_s, x[t], *(v[t] for v in p)) for t in range(tasks)])

    found = second_order(lambda *p: torch.vmap(lambda *a: net(kernel, *a))(x, *p), given)
    wanted = second_order(by_loop, given)
    assert_same(found, wanted, 1e-10 if dtype == DOUBLE else 2e-3)


def test_gradient_taken_inside_vmap() -> None:
    x, gain, bias = draw(4, 3, 2, 4, 4).detach(), draw(4, 2), draw(4, 2)

    def inner(x: Tensor, gain: Tensor, bias: Tensor) -> Tensor:
        return torch.func.grad(lambda g: norm(x, g, bias, 2, 0.0).square().sum())(gain)

    found = torch.vmap(inner)(x, gain, bias)
    wanted = torch.stack([inner(*a) for a in zip(x, gain, bias, strict=True)])
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


def test_what_is_not_a_number_stays_so() -> None:
    x = torch.ones(2, 2, 16, 4, 4, dtype=DOUBLE)
    x[1, 0, 3, 1, 1] = float("nan")
    weight, bias = draw(2, 16, 16, 3, 3).detach(), draw(2, 16).detach()

    def block(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return norm(conv2d(x, w, b, stride=1, padding=1), b, b, 2, 0.0)

    out = torch.vmap(block)(x, weight, bias)
    assert out[0].isfinite().all()
    assert out[1].isnan().all()
