"""The ways to a meta-gradient on networks: against each other, a plain loop, and differences."""

from __future__ import annotations

import pytest
import torch
from oracles import CONV, SMOOTH, distance, finite_difference, image_tasks, maml, problem
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from metarun.algorithms.base import plain_learner
from metarun.gradients.estimators import Estimator, Truncated, estimate
from metarun.models.conv4 import conv4
from metarun.problem import Meta, Params, Problem

RATE, STEPS = 0.2, 4
SETTINGS = dict(inner_lr=RATE, steps=STEPS)
ON, TASKS = problem("conv4-batch"), image_tasks("conv4-batch")


def found(estimator: Estimator, on: Problem = ON) -> Meta:
    return (
        maml(on, **SETTINGS, estimator=estimator)
        .meta_grad({"params": on.initial()}, TASKS, 0)
        .gradient
    )


def by_hand(first_order: int) -> Meta:
    """Return the mean gradient of a plain loop whose first steps count as first order.

    Where those end, a task's parameters stand for the start. Each later step is a checkpoint:
    it is run again on the way back.
    """
    total = {name: torch.zeros_like(value) for name, value in ON.initial().items()}
    for t in range(len(TASKS)):
        x, y = TASKS.support_x[t], TASKS.support_y[t]

        def step(*values: Tensor, x: Tensor = x, y: Tensor = y) -> tuple[Tensor, ...]:
            loss = ON.loss(dict(zip(total, values, strict=True)), x, y)
            slopes = torch.autograd.grad(loss, values, create_graph=True)
            return tuple(v - RATE * g for v, g in zip(values, slopes, strict=True))

        values = tuple(v.requires_grad_() for v in ON.initial().values())
        for _ in range(first_order):
            values = tuple(v.detach().requires_grad_() for v in step(*values))
        last = values
        for _ in range(STEPS - first_order):
            values = checkpoint(step, *values, use_reentrant=False)
        params: Params = dict(zip(total, values, strict=True))
        loss = ON.query_loss(params, x, TASKS.query_x[t], TASKS.query_y[t])
        for name, grad in zip(total, torch.autograd.grad(loss, last), strict=True):
            total[name] += grad / len(TASKS)
    return {"params": total}


def most(a: Meta, b: Meta) -> float:
    return max(float((a["params"][n] - v).abs().max()) for n, v in b["params"].items())


@pytest.mark.parametrize("estimator", ["adjoint", "recompute", "unrolled"])
def test_exact_ways_are_a_plain_loop_of_checkpoints(estimator: Estimator) -> None:
    assert most(found(estimator), by_hand(0)) < 1e-12


def test_first_order_is_the_query_s_gradient_where_the_loop_ends() -> None:
    """And the one graph of all steps, whose every inner gradient is detached."""

    def update(meta: Meta, step: int, params: Params, gradient: Params) -> Params:
        return {name: value - RATE * gradient[name].detach() for name, value in params.items()}

    whole = estimate("unrolled", ON, plain_learner(ON, update), STEPS)
    detached = whole({"params": ON.initial()}, TASKS, 0).gradient
    assert most(found("first_order"), by_hand(STEPS)) < 1e-12
    assert most(found("first_order"), detached) < 1e-12
    assert distance(found("first_order"), found("adjoint")) > 0.01


@pytest.mark.parametrize("last", range(1, STEPS + 1))
def test_truncation_takes_where_its_steps_begin_for_the_start(last: int) -> None:
    assert most(found(Truncated(last=last)), by_hand(STEPS - last)) < 1e-12


def errors(on: Problem, gradient: Meta, *widths: float) -> list[float]:
    """Return how far a gradient is from central differences of the losses, by their width."""
    losses = maml(on, **SETTINGS, estimator="first_order").meta_grad
    meta = {"params": on.initial()}
    return [finite_difference(lambda m: losses(m, TASKS, 0), meta, gradient, h) for h in widths]


def test_central_differences_come_nearer_with_the_square_of_their_width() -> None:
    """Which they do to the true gradient alone; from any other they keep their distance."""
    wide, narrow, finest = errors(ON, found("recompute"), 1e-3, 1e-4, 1e-5)
    assert narrow / wide == pytest.approx(0.01, rel=0.1)
    assert finest / narrow == pytest.approx(0.01, rel=0.3)
    wide, narrow = errors(ON, found("first_order"), 1e-3, 1e-4)
    assert narrow / wide == pytest.approx(1.0, rel=0.1)


def test_with_kinks_only_narrow_differences_tell_anything() -> None:
    """ReLU: the reference finds errors up to 40 % from a width of 1e-4 on, and 5e-9 at 1e-5."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        kinked = {**SMOOTH, "activation": "relu"}
        net = conv4((1, 8, 8), 3, **CONV, norm="batch", **kinked).double()
    on = Problem(net, "classification")
    wide, narrow = errors(on, found("recompute", on), 1e-4, 1e-5)
    assert narrow < 1e-7 < 1e-2 < wide
