"""Learned rates: where they begin, which step they belong to, and MAML where they are constant."""

from __future__ import annotations

import pytest
import torch
from oracles import DOUBLE, distance, image_tasks, maml, problem

from metarun.algorithms.parts.rates import InnerRates, at_step, initial_rates, learned_descent

SETTINGS = dict(inner_lr=0.3, steps=3, estimator="adjoint")
LEARNED = ("global", "tensor", "parameter")
PARAMS = {"a": torch.ones(2, 3), "b": torch.ones(4)}


@pytest.mark.parametrize("transform", ["raw", "softplus", "exp"])
@pytest.mark.parametrize("per_step", [0, 4])
@pytest.mark.parametrize("learned", LEARNED)
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_rates_begin_exactly_at_the_inner_rate(
    learned: str, per_step: int, transform: str, dtype: torch.dtype
) -> None:
    rates = InnerRates(0.013, learned, per_step, transform)
    params = {name: value.to(dtype) for name, value in PARAMS.items()}
    meta = initial_rates(rates, params)
    leading = (per_step,) if per_step else ()
    shapes = {
        "global": {"all": leading},
        "tensor": {"a": leading, "b": leading},
        "parameter": {"a": (*leading, 2, 3), "b": (*leading, 4)},
    }[learned]
    assert {n: tuple(v.shape) for n, v in meta["rates_learned"].items()} == shapes
    zero = {name: torch.zeros_like(value) for name, value in params.items()}
    for step in (0, 3, 9):
        moved = learned_descent(rates)(meta, step, zero, params)
        for value in moved.values():
            assert torch.equal(value, torch.full_like(value, -0.013))


def test_transforms_keep_rates_positive_and_raw_does_not() -> None:
    for transform, positive in {"raw": False, "softplus": True, "exp": True}.items():
        meta = {"rates_learned": {"all": torch.tensor(-3.0)}}
        update = learned_descent(InnerRates(0.1, "global", 0, transform))
        moved = update(meta, 0, {"a": torch.zeros(1)}, {"a": torch.ones(1)})
        assert bool(moved["a"] < 0) is positive


def test_steps_beyond_the_trained_ones_take_the_last_rates() -> None:
    values = torch.tensor([1.0, 2.0, 3.0])
    assert [float(at_step(values, step)) for step in range(6)] == [1, 2, 3, 3, 3, 3]


@pytest.mark.parametrize("transform", ["raw", "softplus", "exp"])
@pytest.mark.parametrize("per_step", [False, True])
@pytest.mark.parametrize("learned", LEARNED)
def test_constant_rates_are_maml(learned: str, per_step: bool, transform: str) -> None:
    on, tasks = problem("conv4-batch"), image_tasks("conv4-batch")
    plain = maml(on, **SETTINGS)
    algorithm = maml(on, **SETTINGS, rates=learned, per_step=per_step, transform=transform)
    expected = plain.meta_grad(plain.init(on.initial()), tasks, 0)
    found = algorithm.meta_grad(algorithm.init(on.initial()), tasks, 0)
    assert distance({"params": found.gradient["params"]}, expected.gradient) < 1e-12
    torch.testing.assert_close(found.losses, expected.losses, rtol=1e-12, atol=0)


def test_metasgd_of_one_step_has_its_closed_form() -> None:
    """dJ/da is minus the inner gradient times the query's, entry by entry."""
    on, tasks = problem("mlp"), image_tasks("mlp", 1)
    algorithm = maml(on, **{**SETTINGS, "steps": 1}, rates="parameter")
    meta = algorithm.init(on.initial())
    found = algorithm.meta_grad(meta, tasks, 0).gradient["rates_learned"]
    params = on.initial()
    inner = torch.func.grad(on.loss)(params, tasks.support_x[0], tasks.support_y[0])
    moved = {n: v - SETTINGS["inner_lr"] * inner[n] for n, v in params.items()}
    outer = torch.func.grad(on.loss)(moved, tasks.query_x[0], tasks.query_y[0])
    for name, value in found.items():
        torch.testing.assert_close(value, -inner[name] * outer[name], rtol=1e-12, atol=1e-14)
