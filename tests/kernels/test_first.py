"""The first block's kernel against torch's own operations, to the second derivative."""

from __future__ import annotations

import shutil

import pytest
import torch
from against_torch import DOUBLE, EPS, assert_same, draw, plain_norm, second_order
from torch import Tensor
from torch.nn import functional as F

from metarun.kernels.first import first_block, suits

COMPILER = any(map(shutil.which, ("cc", "gcc", "clang")))
pytestmark = pytest.mark.skipif(not COMPILER, reason="no C compiler")
BLOCKS = [
    pytest.param(inputs, outputs, side, stride, pool, slope, id=name)
    for name, inputs, outputs, side, stride, pool, slope in (
        ("omniglot", 1, 64, 28, 1, 2, 0.0),
        ("strided", 1, 64, 28, 2, 1, 0.0),
        ("colour-and-a-border", 3, 32, 21, 1, 2, 0.01),
        ("odd-vectors", 2, 48, 7, 1, 2, 0.0),
        ("most-channels", 7, 16, 8, 1, 1, 0.01),
        ("one-window", 1, 16, 2, 1, 2, 0.0),
    )
]


def block(x: Tensor, *params: Tensor, stride: int, pool: int, slope: float) -> Tensor:
    how = dict(stride=stride, padding=1, pool=pool, eps=EPS, slope=slope)
    return first_block(x, *params, **how)


def by_torch(x: Tensor, *params: Tensor, stride: int, pool: int, slope: float) -> Tensor:
    weight, bias, gain, shift = params
    return plain_norm(F.conv2d(x, weight, bias, stride, 1), gain, shift, pool, slope)


def parameters(inputs: int, outputs: int, dtype: torch.dtype = DOUBLE) -> list[Tensor]:
    shapes = [(outputs, inputs, 3, 3), (outputs,), (outputs,), (outputs,)]
    return [draw(*shape, seed=1 + i, dtype=dtype) for i, shape in enumerate(shapes)]


@pytest.mark.parametrize(("inputs", "outputs", "side", "stride", "pool", "slope"), BLOCKS)
def test_to_the_second_derivative(
    inputs: int, outputs: int, side: int, stride: int, pool: int, slope: float
) -> None:
    """Of images far from zero, as a bright background is."""
    x, params = draw(3, inputs, side, side).detach() + 5, parameters(inputs, outputs)
    how = dict(stride=stride, pool=pool, slope=slope)
    assert suits(x, params[0])
    found = second_order(lambda *p: block(x, *p, **how), params)
    wanted = second_order(lambda *p: by_torch(x, *p, **how), params)
    assert_same(found, wanted, 1e-11)


def test_float_is_as_exact_as_torch() -> None:
    x, how = draw(5, 1, 28, 28).detach() + 5, dict(stride=1, pool=2, slope=0.0)
    exact = by_torch(x, *parameters(1, 64), **how)
    params = parameters(1, 64, torch.float32)
    found, theirs = (f(x.float(), *params, **how) for f in (block, by_torch))
    assert (found - exact).norm() <= 2 * (theirs - exact).norm()


def test_tasks_at_once_are_the_loop() -> None:
    tasks, how = 3, dict(stride=1, pool=2, slope=0.0)
    x = draw(tasks, 2, 1, 9, 9).detach()
    given = [
        (p * draw(tasks, *(1,) * p.dim())).detach().requires_grad_() for p in parameters(1, 16)
    ]

    def at_once(*p: Tensor) -> Tensor:
        return torch.vmap(lambda x, *p: block(x, *p, **how))(x, *p).sin()

    def loop(*p: Tensor) -> Tensor:
        each = zip(x, *p, strict=True)
        return torch.stack([by_torch(x, *p, **how) for x, *p in each]).sin()

    assert_same(second_order(at_once, given), second_order(loop, given), 1e-10)


def test_gradient_taken_inside_vmap() -> None:
    x, (weight, *rest) = draw(3, 2, 1, 4, 4).detach(), parameters(1, 16)

    def inner(function, x: Tensor) -> Tensor:
        def loss(w: Tensor) -> Tensor:
            return function(x, w, *rest, stride=1, pool=2, slope=0.0).square().sum()

        return torch.func.grad(loss)(weight)

    found = torch.vmap(lambda x: inner(block, x))(x)
    wanted = torch.stack([inner(by_torch, one) for one in x])
    torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-11)


def test_only_data_suits() -> None:
    """What is learned, also where vmap or a gradient hides it, goes the differentiable way."""
    weight = parameters(1, 16)[0]
    learned = draw(3, 2, 1, 4, 4)
    seen: list[bool] = []

    def look(x: Tensor) -> Tensor:
        seen.append(suits(x, weight))
        return x.sum()

    torch.vmap(look)(learned.detach())
    assert seen.pop()
    torch.vmap(look)(learned)
    assert not seen.pop()
    torch.func.grad(lambda x: torch.vmap(look)(x).sum())(learned.detach())
    assert not seen.pop()
    assert not suits(learned[0], weight)
    assert not suits(learned.detach()[0], weight[:8]), "not whole vectors of channels"
    assert not suits(draw(1, 8, 4, 4).detach(), parameters(8, 16)[0]), "a patch too large"


def test_what_is_not_a_number_stays_so() -> None:
    x = draw(2, 3, 1, 4, 4).detach()
    x[1, 2, 0, 1, 1] = float("nan")
    params = [p.detach() for p in parameters(1, 16)]
    out = torch.vmap(lambda x: block(x, *params, stride=1, pool=2, slope=0.0))(x)
    assert out[0].isfinite().all()
    assert out[1].isnan().all()


def roundings(function, dtype: torch.dtype) -> list[Tensor]:
    """Return what a block of the miniImageNet shape gives, and its gradients, in float64."""
    x = torch.rand(25, 3, 84, 84, generator=torch.Generator().manual_seed(0))
    params = [p.float().to(dtype).requires_grad_() for p in parameters(3, 32)]
    out = function(x.to(dtype), *params, stride=1, pool=2, slope=0.0)
    return [out.detach().double(), *torch.autograd.grad(out.square().mean(), params[:1])]


def test_it_rounds_no_more_than_torch_does() -> None:
    exact = roundings(by_torch, DOUBLE)
    ours, theirs = (
        [
            float((found.double() - true).norm() / true.norm())
            for found, true in zip(roundings(function, torch.float32), exact, strict=True)
        ]
        for function in (block, by_torch)
    )
    assert all(our <= their for our, their in zip(ours, theirs, strict=True)), (ours, theirs)
