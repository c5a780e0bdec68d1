"""Reptile and Sign-MAML against what defines them."""

from __future__ import annotations

import pytest
import torch
from oracles import DOUBLE, Quadratic, distance, image_tasks, outer, problem

from metarun.algorithms.base import plain_learner
from metarun.algorithms.reptile import reptile
from metarun.algorithms.signmaml import sign_descent, signmaml
from metarun.gradients.estimators import estimate
from metarun.numerics.chunks import map_meta
from metarun.numerics.outer import OuterOptimizer
from metarun.tasks import Tasks

ON = problem("conv4-none")
TASKS = image_tasks("conv4-none")
WALK = dict(inner_lr=0.02, steps=4, batch=5, beta2=0.9)


def start(algorithm):
    return map_meta(lambda v: v.to(DOUBLE), algorithm.init(ON.initial()))


def joined(tasks: Tasks) -> Tasks:
    """Return tasks whose support is all of their data, and whose query is empty."""
    return Tasks(
        torch.cat([tasks.support_x, tasks.query_x], 1),
        torch.cat([tasks.support_y, tasks.query_y], 1),
        tasks.query_x[:, :0],
        tasks.query_y[:, :0],
        tasks.mode,
    )


@pytest.mark.parametrize("optimizer", ["adam", "adam_fresh", "sgd"])
def test_an_outer_rate_of_one_on_one_task_ends_where_its_training_ends(optimizer: str) -> None:
    algorithm = reptile(ON, **WALK, optimizer=optimizer)
    meta, task = start(algorithm), joined(TASKS[:1])
    *_, trained = algorithm.adapt(meta, task.support_x, task.support_y, WALK["steps"])
    found = algorithm.meta_grad(meta, TASKS[:1], 0)
    OuterOptimizer(outer("sgd", 1.0), meta).step(found.gradient, found.shift, 0.0)
    for name, value in meta["params"].items():
        torch.testing.assert_close(value, trained[name][0], rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("optimizer", ["adam", "adam_fresh"])
def test_the_squares_of_adam_are_those_of_torch_carried_from_task_to_task(optimizer: str) -> None:
    """With one task a meta-step and whole batches, as one optimiser over all tasks has them.

    Fresh ones are those of an optimiser for each task.
    """
    algorithm = reptile(ON, **{**WALK, "batch": 100}, optimizer=optimizer)
    meta = start(algorithm)
    names = list(meta["params"])
    values = [meta["params"][name].clone().requires_grad_() for name in names]
    adam = torch.optim.Adam(values, lr=WALK["inner_lr"], betas=(0.0, WALK["beta2"]))
    for step, task in enumerate(TASKS.chunks(1)):
        found = algorithm.meta_grad(meta, task, step)
        data = joined(task)
        with torch.no_grad():
            for value, name in zip(values, names, strict=True):
                value.copy_(meta["params"][name])
        if optimizer == "adam_fresh":
            adam.state.clear()
        for _ in range(WALK["steps"]):
            adam.zero_grad()
            loss = ON.loss(
                dict(zip(names, values, strict=True)), data.support_x[0], data.support_y[0]
            )
            loss.backward()
            adam.step()
        expected = {n: meta["params"][n] - v.detach() for n, v in zip(names, values, strict=True)}
        assert distance(found.gradient, {"params": expected}) < 1e-10
        for group, params in found.shift.items():
            meta[group] = {n: v + params[n] for n, v in meta[group].items()}


def test_batches_walk_through_the_data_and_change_with_the_meta_step() -> None:
    algorithm = reptile(ON, **WALK, optimizer="sgd")
    meta = start(algorithm)
    first, again, later = (algorithm.meta_grad(meta, TASKS, step).gradient for step in (0, 0, 1))
    assert distance(first, again) == 0.0
    assert distance(first, later) > 1e-3
    one_pass = reptile(ON, **{**WALK, "batch": 12, "steps": 1}, optimizer="sgd")
    whole = reptile(ON, **{**WALK, "batch": 100, "steps": 1}, optimizer="sgd")
    of_all = whole.meta_grad(meta, TASKS, 0).gradient
    assert distance(one_pass.meta_grad(meta, TASKS, 3).gradient, of_all) < 1e-12


def test_every_pass_sees_all_rows_in_an_order_of_its_own() -> None:
    """Seen by an inner loss that notes the rows it is given."""
    seen: list[tuple[int, ...]] = []

    class Noting(Quadratic):
        def loss(self, params, x, y):
            seen.append(tuple(int(row) for row in y[:, 0]))
            return (params["phi"] * x.sum()).sum()

    rows = torch.arange(6, dtype=DOUBLE).view(1, 6, 1)
    tasks = Tasks(rows[:, :4], rows[:, :4], rows[:, 4:], rows[:, 4:], torch.zeros(1).long())
    on = Noting(2)
    algorithm = reptile(on, **{**WALK, "batch": 2, "steps": 9}, optimizer="sgd")
    algorithm.meta_grad({"params": on.initial()}, tasks, 0)
    passes = [sum(seen[first : first + 3], ()) for first in (0, 3, 6)]
    assert [sorted(one) for one in passes] == [list(range(6))] * 3
    assert len(set(passes)) == 3


def test_sign_maml_unrolled_is_its_first_order_gradient() -> None:
    learner = plain_learner(ON, sign_descent(0.01))
    meta = {"params": ON.initial()}
    unrolled = estimate("unrolled", ON, learner, 3)(meta, TASKS, 0)
    found = signmaml(ON, inner_lr=0.01, steps=3).meta_grad(meta, TASKS, 0)
    assert distance(found.gradient, unrolled.gradient) < 1e-12


def test_a_sign_step_moves_every_parameter_by_the_rate_whatever_the_loss() -> None:
    algorithm = signmaml(ON, inner_lr=0.01, steps=1)
    meta = {"params": ON.initial()}
    before, after = algorithm.adapt(meta, TASKS.support_x, TASKS.support_y, 1)
    for name, value in after.items():
        moved = (value - before[name]).abs()
        unused = moved == 0  # a border of a kernel that sees padding alone has no gradient
        assert ((moved - 0.01).abs()[~unused] < 1e-12).all()
        assert not unused.all()
