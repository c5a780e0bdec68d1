"""Heads that are computed from the support: against their definitions and their parents."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from oracles import DOUBLE, SMOOTH, distance, finite_difference, image_tasks, problem
from torch.nn import functional as F

from metarun.algorithms.parts.heads import class_means, unit
from metarun.algorithms.protomaml import protomaml
from metarun.algorithms.protonet import protonet
from metarun.algorithms.r2d2 import r2d2, ridge_regression
from metarun.config import compose_job
from metarun.errors import ConfigError
from metarun.models.mlp import mlp
from metarun.numerics.chunks import in_chunks, map_meta
from metarun.numerics.parallel import Workers
from metarun.problem import Problem
from metarun.run import run_job
from metarun.tasks import Tasks
from metarun.verbs import evaluate_again

MODEL = "mlp"
ON = problem(MODEL)
TASKS = image_tasks(MODEL, shots=3)
EUCLIDEAN = dict(distance="euclidean", scale=1.0)


def started(algorithm, on: Problem = ON):
    return map_meta(lambda v: v.to(DOUBLE), algorithm.init(on.initial()))


def answers(algorithm, meta, task: int):
    """Return logits, support features, labels and query features of one task."""
    on = algorithm.problem or ON
    params = next(algorithm.adapt(meta, TASKS.support_x, TASKS.support_y, 0))
    own = {name: value[task] for name, value in params.items()}
    logits = on.predict(own, TASKS.support_x[task], TASKS.query_x[task])
    features = [ON.features(ON.initial(), x[task]) for x in (TASKS.support_x, TASKS.query_x)]
    return logits, features[0], TASKS.support_y[task], features[1]


def means_of(features, y):
    return torch.stack([features[y == way].mean(0) for way in range(3)])


def test_a_class_without_rows_has_a_mean_of_zero() -> None:
    rows = torch.tensor([[1.0, 2.0], [3.0, 6.0], [5.0, 5.0]])
    found = class_means(rows, torch.tensor([2, 2, 0]), 4)
    assert found.tolist() == [[5.0, 5.0], [0.0, 0.0], [2.0, 4.0], [0.0, 0.0]]


def test_protonet_orders_by_squared_distance_to_the_class_means() -> None:
    algorithm = protonet(ON, **EUCLIDEAN)
    logits, features, y, query = answers(algorithm, started(algorithm), 1)
    apart = torch.cdist(query, means_of(features, y)).square()
    torch.testing.assert_close(logits.softmax(1), (-apart).softmax(1), rtol=1e-10, atol=1e-12)


def test_protonet_of_cosines_scales_them() -> None:
    algorithm = protonet(ON, distance="cosine", scale=7.0)
    logits, features, y, query = answers(algorithm, started(algorithm), 1)
    expected = 7 * F.cosine_similarity(query[:, None], means_of(features, y)[None], dim=2)
    torch.testing.assert_close(logits, expected, rtol=1e-9, atol=1e-10)


def test_protomaml_that_does_not_move_is_protonet() -> None:
    parent = protonet(ON, **EUCLIDEAN)
    for estimator in ("adjoint", "first_order"):
        still = protomaml(ON, inner_lr=1e-300, steps=2, estimator=estimator, proximal=0.0)
        meta = started(parent)
        found, expected = still.meta_grad(meta, TASKS, 0), parent.meta_grad(meta, TASKS, 0)
        assert distance(found.gradient, expected.gradient) < 1e-13
        torch.testing.assert_close(found.losses, expected.losses)


def test_first_order_protomaml_keeps_the_gradient_through_the_means() -> None:
    """It is the gradient of the exact one whose inner gradients are constants, heads included."""
    algorithm = protomaml(ON, inner_lr=0.1, steps=1, estimator="first_order", proximal=0.0)
    meta = started(algorithm)
    found = algorithm.meta_grad(meta, TASKS, 0).gradient
    start = next(algorithm.adapt(meta, TASKS.support_x, TASKS.support_y, 0))
    moved = list(algorithm.adapt(meta, TASKS.support_x, TASKS.support_y, 1))[1]
    body = {n: v.clone().requires_grad_() for n, v in meta["params"].items()}
    losses = []
    for t in range(len(TASKS)):
        means = means_of(ON.features(body, TASKS.support_x[t]), TASKS.support_y[t])
        begun = {**body, "head.weight": 2 * means, "head.bias": -means.square().sum(1)}
        params = {n: v + (moved[n][t] - start[n][t]) for n, v in begun.items()}
        x = TASKS.support_x[t], TASKS.query_x[t]
        losses.append(F.cross_entropy(ON.predict(params, *x), TASKS.query_y[t]))
    expected = torch.autograd.grad(torch.stack(losses).mean(), list(body.values()))
    assert distance(found, {"params": dict(zip(body, expected, strict=True))}) < 1e-12


def test_another_head_is_the_algorithms_own_in_every_thread() -> None:
    """Threads that have a copy of the plain model do not answer with that one."""
    workers = Workers(2)
    plain, cosine = protonet(ON, **EUCLIDEAN), protonet(ON, distance="cosine", scale=7.0)
    for algorithm in (plain, cosine, plain):
        meta = started(algorithm)
        alone, _ = in_chunks(algorithm.meta_grad, meta, TASKS, 0, 1)
        found, _ = in_chunks(algorithm.meta_grad, meta, TASKS, 0, 1, workers)
        assert torch.equal(found.losses, alone.losses)


@pytest.mark.slow
def test_what_was_trained_with_more_ways_is_tested_with_fewer(outputs: Path, capsys) -> None:
    """As in Snell et al.: the head belongs to the task, so that only the body has to fit."""
    small = ["model.filters=4", "debug=default", "dataset=glyphs", "hardware=cpu"]
    config = compose_job(["algo=protonet", "task.ways=8", *small])
    assert run_job(config, outputs / "more") == 0
    assert evaluate_again.main([str(outputs / "more"), "task.ways=5"]) == 0
    assert "5-way" in capsys.readouterr().out


@pytest.mark.parametrize(("rows", "width"), [(4, 9), (9, 4), (5, 5)])
def test_ridge_regression_is_at_the_minimum_whichever_form_is_used(rows: int, width: int) -> None:
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(rows, width, dtype=DOUBLE, generator=generator)
    y = torch.randn(rows, 2, dtype=DOUBLE, generator=generator)
    ridge = torch.tensor(0.3, dtype=DOUBLE)
    weights = ridge_regression(z, y, ridge).requires_grad_()
    loss = (z @ weights - y).square().sum() / rows + ridge * weights.square().sum()
    (left,) = torch.autograd.grad(loss, weights)
    assert left.abs().max() < 1e-13


def test_r2d2_is_a_scaled_ridge_regression_of_one_hot_labels() -> None:
    algorithm = r2d2(ON, ridge=0.2, scale=3.0)
    meta = started(algorithm)
    meta["solver"]["bias"] += 0.5
    logits, features, y, query = answers(algorithm, meta, 2)
    z, q = (torch.cat([f, torch.ones(len(f), 1, dtype=DOUBLE)], 1) for f in (features, query))
    gram = z.T @ z + 0.2 * len(z) * torch.eye(z.shape[1], dtype=DOUBLE)
    expected = 3 * q @ torch.linalg.solve(gram, z.T @ F.one_hot(y).double()) + 0.5
    torch.testing.assert_close(logits, expected, rtol=1e-7, atol=1e-8)  # log of a 32-bit 0.2


def points() -> tuple[Problem, Tasks]:
    """Return a regression of two targets on a small perceptron."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        net = mlp((1,), 2, hidden=[6], norm="none", init="default", **SMOOTH).to(DOUBLE)
    generator = torch.Generator().manual_seed(2)

    def draw(rows: int, width: int):
        return torch.randn(3, rows, width, dtype=DOUBLE, generator=generator)

    tasks = Tasks(draw(5, 1), draw(5, 2), draw(4, 1), draw(4, 2), torch.zeros(3, dtype=torch.long))
    return Problem(net, "regression"), tasks


def test_r2d2_does_regression() -> None:
    """Its gradient is exact, and with hardly any ridge it goes through 5 points of 7 weights."""
    on, tasks = points()
    algorithm = r2d2(on, ridge=0.1, scale=10.0)
    meta = started(algorithm, on)
    objective = lambda there: algorithm.meta_grad(there, tasks, 0)  # noqa: E731
    assert finite_difference(objective, meta, objective(meta).gradient) < 1e-7
    left = []
    for ridge in (0.1, 1e-12):
        meta = started(r2d2(on, ridge=ridge, scale=10.0), on)
        params = next(algorithm.adapt(meta, tasks.support_x, tasks.support_y, 0))
        own = {name: value[0] for name, value in params.items()}
        left.append(float(on.loss(own, tasks.support_x[0], tasks.support_y[0])))
    assert left[1] < 1e-5 < 0.1 < left[0]


def test_a_length_of_zero_has_finite_derivatives() -> None:
    x = torch.zeros(2, 3, dtype=DOUBLE, requires_grad=True)
    (first,) = torch.autograd.grad(unit(x).square().sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    assert first.isfinite().all()
    assert second.isfinite().all()


@pytest.mark.parametrize(
    "factory",
    [
        lambda on: protonet(on, **EUCLIDEAN),
        lambda on: protomaml(on, inner_lr=0.1, steps=1, estimator="adjoint", proximal=0.0),
    ],
)
def test_regression_is_refused_where_only_classes_make_sense(factory) -> None:
    with pytest.raises(ConfigError, match=r"^algo=\w+: tells classes apart, .*regression; use"):
        factory(points()[0])
