"""The task encoder is one of sets, and its modulation is what it claims to be."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from families import PLAIN, begin, regression, two_levels
from oracles import DOUBLE, distance, image_tasks, maml, norm, problem
from torch import Tensor
from torch.func import functional_call

from metarun.algorithms.mmaml import FILM, channels, folded, mmaml
from metarun.algorithms.parts.encoder import set_encoder


@pytest.mark.parametrize("model", ["mlp", "conv4-none"])
def test_the_encoder_sees_a_set_without_numbers_for_classes(model: str) -> None:
    on, tasks = problem(model), image_tasks(model, 1)
    encoder = set_encoder(on, 6, 4)
    params = {n: v.double() for n, v in encoder.init().items()}
    x, y = tasks.support_x[0], tasks.support_y[0]
    code = encoder.encode(params, x, y)
    torch.testing.assert_close(encoder.encode(params, x.flip(0), 2 - y), code)
    assert not torch.allclose(encoder.encode(params, 1 - x, y), code, rtol=1e-3)


@pytest.mark.parametrize("model", ["mlp", "conv4-none"])
def test_codes_begin_near_zero(model: str) -> None:
    """A modulation by them is nearly none, and a gate's starts count nearly alike."""
    on, tasks = problem(model), image_tasks(model)
    encoder = set_encoder(on, 40, 30)
    params = {n: v.double() for n, v in encoder.init().items()}
    for x, y in zip(tasks.support_x, tasks.support_y, strict=True):
        assert 0 < encoder.encode(params, x, y).abs().max() < 0.2


def test_the_encoder_of_curves_sees_their_targets() -> None:
    on, tasks = regression(), two_levels(2)
    encoder = set_encoder(on, 6, 4)
    params = {n: v.double() for n, v in encoder.init().items()}
    x, y = tasks.support_x[0], tasks.support_y[0]
    code = encoder.encode(params, x, y)
    torch.testing.assert_close(encoder.encode(params, x.flip(0), y.flip(0)), code)
    assert not torch.allclose(encoder.encode(params, x, y.flip(0)), code, rtol=1e-6)


@pytest.mark.parametrize(
    "model", ["mlp", "mlp-batch", "conv4-batch", "conv4-group", "conv4-none", "resnet12"]
)
def test_folding_is_scaling_and_shifting_hidden_channels(model: str) -> None:
    on, tasks = problem(model), image_tasks(model, 1)
    units = channels(on.model)
    total = sum(count for _, count in units)
    film = torch.randn(2 * total, dtype=DOUBLE, generator=torch.Generator().manual_seed(2))
    x, first, hooks = tasks.query_x[0], 0, []
    modules = dict(on.model.named_modules())
    for name, count in units:
        scale, shift = film[first : first + count], film[total + first : total + first + count]
        first += count

        def modulate(_: Any, __: Any, out: Tensor, scale: Tensor = scale, shift: Tensor = shift):
            wide = (1, -1) + (1,) * (out.dim() - 2)
            return out * (1 + scale.view(wide)) + shift.view(wide)

        hooks.append(modules[name].register_forward_hook(modulate))
    expected = on.model(x)
    for hook in hooks:
        hook.remove()
    params = folded(on.initial() | {FILM: film}, units)
    torch.testing.assert_close(functional_call(on.model, params, (x,)), expected)
    assert not torch.allclose(on.model(x), expected)


def test_without_modulation_mmaml_is_maml() -> None:
    on, tasks = problem("conv4-batch"), image_tasks("conv4-batch")
    algorithm, parent = mmaml(on, **PLAIN, width=5, inner_clip=None), maml(on, **PLAIN)
    meta = begin(algorithm, on)
    meta["encoder"] |= {
        n: torch.zeros_like(meta["encoder"][n]) for n in ("code.weight", "code.bias")
    }
    found, expected = (
        a.meta_grad(m, tasks, 0) for a, m in ((algorithm, meta), (parent, begin(parent, on)))
    )
    assert torch.equal(found.losses, expected.losses)
    assert distance({"params": found.gradient["params"]}, expected.gradient) < 1e-13
    assert norm({"code": {"bias": found.gradient["encoder"]["code.bias"]}}) > 1e-4


def test_no_number_of_an_inner_gradient_moves_by_more_than_its_clip() -> None:
    """Upwards and downwards; what is smaller moves as without one."""
    on, tasks = regression(), two_levels(1)
    plain, clipped = (mmaml(on, **PLAIN, width=5, inner_clip=clip) for clip in (None, 0.5))
    meta, support = begin(plain, on), (tasks.support_x, tasks.support_y)
    (first, free), (_, held) = (list(a.adapt(meta, *support, 1)) for a in (plain, clipped))
    slopes = {n: (first[n] - free[n]) / PLAIN["inner_lr"] for n in on.initial()}
    every = torch.cat([value.flatten() for value in slopes.values()])
    assert every.min() < -0.5 < every.abs().min() < 0.5 < every.max()
    for name, slope in slopes.items():
        expected = first[name] - PLAIN["inner_lr"] * slope.clamp(-0.5, 0.5)
        torch.testing.assert_close(held[name], expected)
