"""ALFA and Meta-Curvature: MAML at the identity, and their published steps away from it."""

from __future__ import annotations

import pytest
import torch
from oracles import distance, finite_difference, image_tasks, maml, problem

from metarun.algorithms.alfa import alfa
from metarun.algorithms.metacurvature import metacurvature
from metarun.problem import Meta, Params

SETTINGS = dict(inner_lr=0.3, steps=3, estimator="adjoint")
RULES = {
    "alfa": lambda on, **changed: alfa(on, **{**SETTINGS, **changed}, decay=0.0),
    "metacurvature": lambda on, **changed: metacurvature(on, **{**SETTINGS, **changed}),
}
MODEL = "conv4-batch"


def shaken(meta: Meta) -> Meta:
    """Return the same groups, all but the start's moved a little."""
    generator = torch.Generator().manual_seed(2)
    return {
        group: {
            name: value
            if group == "params"
            else value + 0.1 * torch.randn(value.shape, generator=generator, dtype=value.dtype)
            for name, value in params.items()
        }
        for group, params in meta.items()
    }


@pytest.mark.parametrize("estimator", ["adjoint", "first_order"])
@pytest.mark.parametrize("rule", RULES)
def test_at_the_identity_it_is_maml(rule: str, estimator: str) -> None:
    on, tasks = problem(MODEL), image_tasks(MODEL)
    algorithm = RULES[rule](on, estimator=estimator)
    plain = maml(on, **{**SETTINGS, "estimator": estimator})
    found = algorithm.meta_grad(algorithm.init(on.initial()), tasks, 0)
    expected = plain.meta_grad(plain.init(on.initial()), tasks, 0)
    assert distance({"params": found.gradient["params"]}, expected.gradient) < 1e-12
    torch.testing.assert_close(found.losses, expected.losses, rtol=1e-12, atol=0)


@pytest.mark.parametrize("rule", RULES)
def test_away_from_it_the_gradient_is_exact_and_reaches_every_part(rule: str) -> None:
    on, tasks = problem(MODEL), image_tasks(MODEL)
    algorithm = RULES[rule](on)
    meta = shaken(algorithm.init(on.initial()))
    found = algorithm.meta_grad(meta, tasks, 0)
    error = finite_difference(lambda there: algorithm.meta_grad(there, tasks, 0), meta, found[0])
    assert error < 1e-7
    for group, params in found.gradient.items():
        sizes = [float(value.norm()) for value in params.values()]
        assert max(sizes) > 1e-6, group
    plain = maml(on, **SETTINGS)
    expected = plain.meta_grad({"params": meta["params"]}, tasks, 0).gradient
    assert distance({"params": found.gradient["params"]}, expected) > 1e-3


def test_a_step_of_metacurvature_is_the_published_one() -> None:
    on, task = problem(MODEL), image_tasks(MODEL, 1)
    algorithm = RULES["metacurvature"](on)
    meta = shaken(algorithm.init(on.initial()))
    start, curvature = meta["params"], meta["curvature"]
    gradient = torch.func.grad(on.loss)(start, task.support_x[0], task.support_y[0])
    _, moved = algorithm.adapt(meta, task.support_x, task.support_y, 1)
    for name, value in start.items():
        if value.dim() < 2:
            expected = curvature[name] * gradient[name]
        else:
            axes = [a for a in ("out", "in", "filter") if f"{name}.{a}" in curvature]
            assert len(axes) == min(value.dim(), 3)
            whole = torch.ones(1, 1, dtype=value.dtype)
            for axis in axes:  # vec of a product of all modes is the Kronecker product's
                whole = torch.kron(whole, curvature[f"{name}.{axis}"])
            expected = (whole @ gradient[name].flatten()).view_as(value)
        torch.testing.assert_close(
            moved[name][0], value - SETTINGS["inner_lr"] * expected, rtol=1e-10, atol=1e-12
        )


def alfa_step(meta: Meta, step: int, params: Params, gradient: Params) -> Params:
    rule, names = meta["rule"], list(params)
    state = torch.stack([g.mean() for g in gradient.values()] + [p.mean() for p in params.values()])
    hidden = (rule["hidden.weight"] @ state + rule["hidden.bias"]).clamp_min(0)
    out = rule["out.weight"] @ hidden + rule["out.bias"]
    assert rule["hidden.weight"].shape == (2 * len(names), 2 * len(names))
    found: Params = {}
    for place, name in enumerate(names):
        alpha = out[place] * meta["rates_base"][name][step]
        beta = 1 - out[len(names) + place] * meta["rates_decay"][name][step]
        found[name] = beta * params[name] - alpha * gradient[name]
    return found


def test_steps_of_alfa_are_the_published_ones() -> None:
    """Each by the rates of its own step; one beyond those of training by the last."""
    on, task = problem(MODEL), image_tasks(MODEL, 1)
    algorithm = RULES["alfa"](on)
    meta = shaken(algorithm.init(on.initial()))
    params = meta["params"]
    curve = list(algorithm.adapt(meta, task.support_x, task.support_y, 4))
    for step, moved in enumerate(curve[1:]):
        gradient = torch.func.grad(on.loss)(params, task.support_x[0], task.support_y[0])
        params = alfa_step(meta, min(step, 2), params, gradient)
        for name, value in params.items():
            torch.testing.assert_close(moved[name][0], value, rtol=1e-9, atol=1e-11)


def test_alfa_begins_at_one_rate_and_a_decay_of_so_much_of_it() -> None:
    """beta is 1 - decay * rate and alpha the rate, in every step, whatever the state."""
    on, task = problem(MODEL), image_tasks(MODEL, 1)
    algorithm = alfa(on, **SETTINGS, decay=0.05)
    meta = algorithm.init(on.initial())
    first, *others = algorithm.adapt(meta, task.support_x, task.support_y, 3)
    for after in others:
        start = {name: value[0] for name, value in first.items()}
        gradient = torch.func.grad(on.loss)(start, task.support_x[0], task.support_y[0])
        for name, value in start.items():
            expected = (1 - 0.05 * 0.3) * value - 0.3 * gradient[name]
            torch.testing.assert_close(after[name][0], expected, rtol=1e-9, atol=1e-11)
        first = after
