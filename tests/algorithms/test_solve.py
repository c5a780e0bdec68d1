"""The inner problem by L-BFGS: solved where descent does not get, and never made worse."""

from __future__ import annotations

import sys
from itertools import islice, pairwise
from pathlib import Path

import pytest
import torch
from oracles import distance, image_tasks, imaml, maml, problem
from torch import Tensor

from metarun.algorithms.parts.lbfgs import Rows, iterates
from metarun.config import compose_job
from metarun.errors import ConfigError
from metarun.gradients.estimators import Evolution
from metarun.inner import over_tasks
from metarun.problem import Params, Problem
from metarun.tasks import Tasks

sys.path.insert(0, str(Path(__file__).parents[1] / "train"))

from tiny import tiny

ON, TASKS = problem("conv4-none"), image_tasks("conv4-none")
SUPPORT = TASKS.support_x, TASKS.support_y
META = {"params": ON.initial()}
SEARCH = dict(inner_optimizer="lbfgs", inner_lr=0.05, proximal=2.0)


def inner_losses(on: Problem, tasks: Tasks, **settings) -> list[Tensor]:
    """Return each task's proximal loss on the way of 12 steps."""
    first = on.initial()

    def one(params: Params, x: Tensor, y: Tensor) -> Tensor:
        apart = sum((params[name] - first[name]).square().sum() for name in first)
        return on.loss(params, x, y) + apart

    algorithm = imaml(on, proximal=2.0, steps=12, iterations=5, **settings)
    support = tasks.support_x, tasks.support_y
    whole = over_tasks(one, shared=0, count=len(tasks))
    return [whole(params, *support) for params in algorithm.adapt({"params": first}, *support, 12)]


def test_it_solves_what_as_many_steps_of_descent_do_not() -> None:
    settings = dict(steps=16, iterations=20, inner_lr=0.05, proximal=2.0)
    searched, walked = (
        imaml(ON, **settings, inner_optimizer=way).meta_grad(META, TASKS, 0)
        for way in ("lbfgs", "sgd")
    )
    assert searched.figures["inner_residual"].max() < 1e-6
    assert walked.figures["inner_residual"].min() > 0.1


def test_the_first_step_is_the_rate_times_the_slope() -> None:
    """A descent's, where that decreases the loss; the steps after it go farther."""
    searched, walked = (
        list(
            imaml(ON, **{**SEARCH, "inner_optimizer": way}, steps=2, iterations=5).adapt(
                META, *SUPPORT, 2
            )
        )
        for way in ("lbfgs", "sgd")
    )
    for name in ON.initial():
        torch.testing.assert_close(searched[1][name], walked[1][name], rtol=1e-12, atol=1e-14)
    moved = [
        sum((p[2][n] - p[1][n]).square().sum() for n in META["params"]) for p in (searched, walked)
    ]
    assert moved[0] > 2 * moved[1]


@pytest.mark.slow
def test_the_gradient_is_that_of_the_solution() -> None:
    found = imaml(ON, **SEARCH, steps=30, iterations=30).meta_grad(META, TASKS, 0)
    exact = maml(ON, inner_lr=0.05, proximal=2.0, steps=200, estimator="adjoint")
    expected = exact.meta_grad(META, TASKS, 0)
    assert found.figures["inner_residual"].max() < 1e-7
    assert distance(found.gradient, expected.gradient) < 1e-6
    torch.testing.assert_close(found.losses, expected.losses, rtol=1e-7, atol=0)


@pytest.mark.parametrize("inner_lr", [1e-3, 0.1, 1e4])
@pytest.mark.parametrize("model", ["conv4-none", "conv4-batch"])
def test_the_inner_loss_never_rises_whatever_the_rate(model: str, inner_lr: float) -> None:
    """With batch normalisation too, where no method found brings the gradient down."""
    on, tasks = problem(model), image_tasks(model)
    losses = inner_losses(on, tasks, inner_lr=inner_lr, inner_optimizer="lbfgs")
    assert all((after <= before + 1e-12).all() for before, after in pairwise(losses))
    assert (losses[-1] < losses[0] - 1e-3).all()
    if inner_lr > 1:  # where descent runs away
        walked = inner_losses(on, tasks, inner_lr=inner_lr)
        assert not all((after <= before + 1e-12).all() for before, after in pairwise(walked))


def test_a_task_alone_goes_the_same_way() -> None:
    algorithm = imaml(ON, **SEARCH, steps=6, iterations=5)
    together = list(algorithm.adapt(META, *SUPPORT, 6))
    for index, one in enumerate(TASKS.chunks(1)):
        for step, params in enumerate(algorithm.adapt(META, one.support_x, one.support_y, 6)):
            for name, value in params.items():
                torch.testing.assert_close(
                    value[0], together[step][name][index], rtol=1e-8, atol=1e-10
                )


def test_a_step_too_long_for_one_task_is_asked_again_of_that_task_alone() -> None:
    curvature = torch.tensor([1.0, 1000.0, 30.0], dtype=torch.float64)[:, None]
    start = torch.linspace(1, 2, 12, dtype=torch.float64).view(3, 4)

    def asked(tasks: slice) -> tuple[int, Tensor]:
        bowl, counts = curvature[tasks], list[int]()

        def objective(x: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:
            counts.append(len(x))
            return (bowl[rows] * x.square() / 2).sum(1), bowl[rows] * x

        *_, point = islice(iterates(objective, start[tasks], 0.0, pairs=2, first=0.9), 3)
        return sum(counts), point

    count, point = asked(slice(None))
    alone = [asked(slice(i, i + 1)) for i in range(3)]
    assert count == sum(counts for counts, _ in alone)
    assert max(counts for counts, _ in alone) >= min(counts for counts, _ in alone) + 8
    torch.testing.assert_close(point, torch.cat([p for _, p in alone]))


@pytest.mark.slow
def test_steps_after_the_end_stay_there() -> None:
    algorithm = imaml(ON, **SEARCH, steps=99, iterations=5)
    curve = list(algorithm.adapt(META, *SUPPORT, 99))
    assert len(curve) == 100
    for name, value in curve[-1].items():
        torch.testing.assert_close(value, curve[40][name], rtol=0, atol=1e-11)


def test_only_estimators_that_need_no_way_back_take_it() -> None:
    maml(ON, **SEARCH, steps=2, estimator=Evolution(pairs=1, sigma=0.1))
    for estimator in ("adjoint", "recompute", "unrolled", "first_order"):
        with pytest.raises(ConfigError, match="no gradient leads back through a search; use algo"):
            maml(ON, **SEARCH, steps=2, estimator=estimator)
    with pytest.raises(
        ConfigError, match=r"nothing to learn for algo.rates=tensor; use algo.rates"
    ):
        maml(ON, **SEARCH, steps=2, estimator=Evolution(pairs=1, sigma=0.1), rates="tensor")


def test_imaml_searches_by_default() -> None:
    assert compose_job(["algo=imaml"])["algo"]["inner_optimizer"] == "lbfgs"
    experiment = tiny("algo=imaml", "algo.steps=8", "hardware.dtype=float64")
    found = experiment.algorithm.meta_grad(experiment.initial(), experiment.batch(0), 0)
    assert found.figures["inner_residual"].median() < 0.5


@pytest.mark.parametrize("count", [1, 3])
def test_what_is_no_number_stays_none_and_in_its_task(count: int) -> None:
    on, tasks = problem("mlp"), image_tasks("mlp")[:count]
    first = {"params": on.initial()}
    data = {"support_x": tasks.support_x.clone(), "support_y": tasks.support_y}
    healthy = list(imaml(on, **SEARCH, steps=3, iterations=5).adapt(first, *data.values(), 3))
    data["support_x"][0, 0] = torch.inf
    curve = list(imaml(on, **SEARCH, steps=3, iterations=5).adapt(first, *data.values(), 3))
    assert len(curve) == 4
    for params, sound in zip(curve[1:], healthy[1:], strict=True):
        for name, value in params.items():
            if " " not in name:
                assert value[0].isnan().all()
                torch.testing.assert_close(value[1:], sound[name][1:])
