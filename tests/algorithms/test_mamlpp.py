"""MAML++: all switches off is MAML, and each alone does what it says and nothing else."""

from __future__ import annotations

import pytest
import torch
from oracles import PLAIN, distance, finite_difference, image_tasks, maml, norm, problem

from metarun.algorithms.base import plain_learner
from metarun.algorithms.mamlpp import mamlpp, step_weights
from metarun.config import compose_job
from metarun.errors import ConfigError
from metarun.gradients.estimators import Estimator, Evolution, Truncated, estimate
from metarun.gradients.metagradient import query_losses
from metarun.inner import gradient_descent
from metarun.problem import Meta

PARTS = dict(inner_lr=0.3, steps=3, estimator="adjoint")
OFF = dict(multi_step_until=0, per_step_norm=False, first_order_until=0)
RATES = {key: PLAIN[key] for key in ("rates", "per_step", "transform")}
ON, TASKS = problem("conv4-batch"), image_tasks("conv4-batch")


def found(algorithm, step: int = 0, meta: Meta | None = None):
    return algorithm.meta_grad(meta or algorithm.init(ON.initial()), TASKS, step)


LAST, NOISY = Truncated(last=2), Evolution(pairs=1, sigma=0.1)


@pytest.mark.parametrize(
    "estimator", ["adjoint", "recompute", "unrolled", "first_order", LAST, NOISY], ids=str
)
def test_all_switches_off_is_maml_bit_for_bit(estimator: Estimator) -> None:
    settings = {**PARTS, "estimator": estimator}
    ours, theirs = found(mamlpp(ON, **settings, **RATES, **OFF)), found(maml(ON, **settings))
    assert torch.equal(ours.losses, theirs.losses)
    for name, value in theirs.gradient["params"].items():
        assert torch.equal(ours.gradient["params"][name], value)


def test_weights_are_the_published_schedule() -> None:
    """Their code, with K steps, epoch e of E: the first form for all but the last step."""
    k, epochs = 5, 10
    for epoch in range(epochs):
        early = max(1 / k - epoch / (k * epochs), 0.03 / k)
        last = min(1 / k + epoch * (k - 1) / (k * epochs), 1 - 0.03 * (k - 1) / k)
        assert step_weights(k, epoch / epochs) == pytest.approx([early] * (k - 1) + [last])
    assert step_weights(k, 1.0)[0] == pytest.approx(0.03 / k)
    assert step_weights(1, 0.3) == [1.0]


@pytest.mark.parametrize("estimator", ["adjoint", "recompute", "unrolled", "first_order"])
def test_the_multi_step_loss_is_the_weighted_sum_of_shorter_loops(estimator: str) -> None:
    settings = {**PARTS, "estimator": estimator}
    algorithm = mamlpp(ON, **settings, **RATES, **{**OFF, "multi_step_until": 10})
    for step in (0, 4):
        whole = found(algorithm, step)
        weights = step_weights(3, step / 10)
        parts = [found(maml(ON, **{**settings, "steps": k})) for k in (1, 2, 3)]
        expected = {
            name: sum(w * p.gradient["params"][name] for w, p in zip(weights, parts, strict=True))
            for name in whole.gradient["params"]
        }
        assert distance(whole.gradient, {"params": expected}) < 1e-12
        losses = sum(w * p.losses for w, p in zip(weights, parts, strict=True))
        torch.testing.assert_close(whole.losses, losses, rtol=1e-12, atol=0)
        assert torch.equal(whole.figures["final_loss"], parts[-1].losses)
    after = found(algorithm, 10)
    assert distance(after.gradient, found(maml(ON, **settings)).gradient) == 0.0


def test_truncation_leaves_early_losses_no_exact_step() -> None:
    """Of three steps the last is exact: the other two losses come before it."""
    settings = {**PARTS, "estimator": Truncated(last=1)}
    whole = found(mamlpp(ON, **settings, **RATES, **{**OFF, "multi_step_until": 10}), 4)
    first = {**PARTS, "estimator": "first_order"}
    parts = [found(maml(ON, **{**first, "steps": k})) for k in (1, 2)] + [
        found(maml(ON, **settings))
    ]
    weighed = list(zip(step_weights(3, 0.4), parts, strict=True))
    expected = {n: sum(w * p.gradient["params"][n] for w, p in weighed) for n in ON.initial()}
    assert distance(whole.gradient, {"params": expected}) < 1e-12


def test_noise_asks_at_the_end_alone_and_cannot_be_weighed() -> None:
    with pytest.raises(ConfigError, match=r"every step are wanted; use adjoint, or algo\.multi_s"):
        mamlpp(ON, **{**PARTS, "estimator": NOISY}, **RATES, **{**OFF, "multi_step_until": 1})


def test_all_weight_on_the_last_step_is_maml() -> None:
    learner = plain_learner(ON, gradient_descent(PARTS["inner_lr"]))
    meta = {"params": ON.initial()}
    last = estimate("adjoint", ON, learner, 3, [0.0, 0.0, 1.0])(meta, TASKS, 0)
    assert distance(last.gradient, found(maml(ON, **PARTS)).gradient) < 1e-12


def test_the_derivative_order_changes_when_it_should() -> None:
    algorithm = mamlpp(ON, **PARTS, **RATES, **{**OFF, "first_order_until": 3})
    first = found(maml(ON, **{**PARTS, "estimator": "first_order"})).gradient
    second = found(maml(ON, **PARTS)).gradient
    assert not algorithm.exact
    assert distance(found(algorithm, 2).gradient, first) == 0.0
    assert distance(found(algorithm, 3).gradient, second) == 0.0
    assert distance(first, second) > 1e-3


def test_equal_norms_at_every_step_share_one_gradient() -> None:
    """The sum over the steps' own sets is the gradient of one set that no inner loop moves."""
    held = problem("conv4-held-norm")
    algorithm = mamlpp(ON, **PARTS, **RATES, **{**OFF, "per_step_norm": True})
    whole = found(algorithm).gradient
    shared = maml(held, **PARTS)
    expected = shared.meta_grad(shared.init(ON.initial()), TASKS, 0).gradient["params"]
    summed = {name: value.sum(0) for name, value in whole["norms"].items()}
    assert distance({"": {**whole["params"], **summed}}, {"": expected}) < 1e-12
    assert all(value.shape[0] == 4 for value in whole["norms"].values())


def test_every_step_answers_with_its_own_norm() -> None:
    algorithm = mamlpp(ON, **PARTS, **RATES, **{**OFF, "per_step_norm": True})
    meta = algorithm.init(ON.initial())
    for name, value in meta["norms"].items():
        meta["norms"][name] = value + torch.arange(4.0).view(4, 1)
    curve = list(algorithm.adapt(meta, TASKS.support_x, TASKS.support_y, 6))
    for step, params in enumerate(curve):
        for name, value in meta["norms"].items():
            assert torch.equal(params[name], value[min(step, 3)].expand_as(params[name]))


@pytest.mark.parametrize("step", [0, 5, 10])
def test_everything_together_is_exact(step: int) -> None:
    settings = dict(rates="tensor", per_step=True, transform="raw")
    switches = dict(multi_step_until=10, per_step_norm=True, first_order_until=0)
    algorithm = mamlpp(ON, **PARTS, **settings, **switches)
    meta = algorithm.init(ON.initial())
    generator = torch.Generator().manual_seed(1)
    for group in ("norms", "rates_learned"):
        for name, value in meta[group].items():
            noise = torch.randn(value.shape, generator=generator, dtype=value.dtype)
            meta[group][name] = value + 0.1 * noise
    whole = found(algorithm, step, meta)
    objective = lambda there: found(algorithm, step, there)  # noqa: E731
    assert finite_difference(objective, meta, whole.gradient) < 1e-7
    assert all(norm({"": {n: v}}) > 0 for n, v in whole.gradient["rates_learned"].items())


def test_without_steps_it_is_the_query_s_gradient_at_the_start() -> None:
    algorithm = mamlpp(ON, **{**PARTS, "steps": 0}, **RATES, **{**OFF, "multi_step_until": 10})
    expected = found(maml(ON, **{**PARTS, "steps": 0}))
    assert distance(found(algorithm).gradient, expected.gradient) == 0.0
    assert torch.equal(found(algorithm).losses, expected.losses)


def test_a_model_without_norms_needs_none() -> None:
    on, tasks = problem("mlp"), image_tasks("mlp")
    algorithm = mamlpp(on, **PARTS, **RATES, **{**OFF, "per_step_norm": True})
    meta = algorithm.init(on.initial())
    assert set(meta) == {"params"}
    (*_, last) = algorithm.adapt(meta, tasks.support_x, tasks.support_y, 3)
    losses = algorithm.meta_grad(meta, tasks, 0).losses
    torch.testing.assert_close(losses, query_losses(on, last, tasks).detach())


def test_the_schedule_comes_with_the_preset() -> None:
    plain = compose_job(["algo=mamlpp", "dataset=omniglot"])
    assert (plain["outer"]["schedule"], plain["outer"]["lr_min"]) == ("cosine", 1e-5)
    assert (plain["algo"]["inner_lr"], plain["algo"]["steps"]) == (0.1, 5)
    changed = compose_job(["algo=mamlpp", "outer.schedule=constant"])
    assert changed["outer"]["schedule"] == "constant"
