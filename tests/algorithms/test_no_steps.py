"""Without inner steps every method is plain training; and what training adapts is what tests adapt.

What iMAML has in the place of no steps is a proximal force without bound.
"""

from __future__ import annotations

import pytest
import torch
from cases import CASES, Case
from oracles import DOUBLE, distance, finite_difference, image_tasks, norm, problem
from torch import Tensor
from torch.nn.functional import one_hot

from metarun.algorithms.base import MetaAlgorithm
from metarun.algorithms.reptile import reptile
from metarun.config import check, compose_job
from metarun.gradients.metagradient import MetaGradient, query_losses
from metarun.numerics.chunks import map_meta
from metarun.problem import Meta, Params, Problem
from metarun.tasks import Tasks

MODEL = "conv4-support"
ON, TASKS = problem(MODEL), image_tasks(MODEL, 4)
OWN_START = ("protomaml", "mmaml", "mixture-gate")  # a function of the support, which is learned


GRADED = ("clustered-graded", "reptile")  # queries grade, or train: no support alone adapts
# See below; a noisy estimate, and one that is refused without a last step: see test_closed_forms;
# and one of which a task moves starts beside its own: see test_guards_of_starts.
NEVER = ("imaml", "es_maml", "maml-truncated", "clustered-ranked")
STEPPED = [c for c in CASES if "steps" in c.settings and not c.name.startswith(GRADED)]
WITHOUT = [case for case in STEPPED if not case.name.startswith(NEVER)]


def built(case: Case, **changes: object) -> tuple[MetaAlgorithm, Problem, Meta]:
    algorithm = case.factory(ON, **{**case.settings, **changes})
    judge = algorithm.problem or ON
    meta = map_meta(lambda v: v.to(DOUBLE), algorithm.init(judge.initial()))
    if algorithm.turn is not None:
        meta |= algorithm.turn.change(meta, [image_tasks(MODEL, 8)])
    return algorithm, judge, meta


def adapted(algorithm: MetaAlgorithm, meta: Meta, tasks: Tasks, steps: int) -> Params:
    """Return what the parameters of every task are at test, where only the support is given."""
    adapt = algorithm.oracle(tasks.mode) if algorithm.oracle else algorithm.adapt
    *_, last = adapt(meta, tasks.support_x, tasks.support_y, steps)
    return last


@pytest.mark.parametrize("case", STEPPED, ids=lambda case: case.name)
def test_training_s_losses_are_those_of_what_the_support_alone_adapts(case: Case) -> None:
    """No label of a query, and no other query, reaches the adapted parameters in training."""
    algorithm, judge, meta = built(case)
    found = algorithm.meta_grad(meta, TASKS, 200)  # MAML++'s loss of all steps is over
    params = adapted(algorithm, meta, TASKS, case.settings["steps"])
    expected = query_losses(judge, params, TASKS).detach()
    torch.testing.assert_close(found.losses, expected, rtol=1e-11, atol=0)
    still = query_losses(judge, adapted(algorithm, meta, TASKS, 0), TASKS).detach()
    assert not torch.allclose(found.losses, still, rtol=1e-4)


def shares(case: Case, algorithm: MetaAlgorithm, meta: Meta, first: Params) -> Tensor | None:
    """Return how much each of several starts counts for each task, [T, M]; None where all do."""
    if algorithm.oracle:
        return one_hot(TASKS.mode).double()
    if case.name.startswith(("clustered", "tsamaml")):
        assert algorithm.assign is not None
        return one_hot(algorithm.assign(meta, TASKS.support_x, TASKS.support_y), 2).double()
    if case.name == "mixture-em-start":  # a mean of the starts, weighed by what these numbers are
        starts, mean = (of["head.weight"].detach().flatten(1) for of in (meta["params"], first))
        return torch.linalg.lstsq(starts.T, mean.T).solution.T
    return None


def pulled(counts: Tensor, pull: Tensor) -> Tensor:
    return torch.tensordot(counts.T, pull, dims=1)


@pytest.mark.parametrize("case", WITHOUT, ids=lambda case: case.name)
def test_without_steps_it_is_the_query_s_gradient_at_the_start(case: Case) -> None:
    """A task's pull goes to the start that it has, and nothing pulls at rates or curvatures."""
    algorithm, judge, meta = built(case, steps=0)
    found = algorithm.meta_grad(meta, TASKS, 0)
    if case.name.startswith(OWN_START):

        def objective(there: Meta) -> MetaGradient:
            return MetaGradient({}, query_losses(judge, adapted(algorithm, there, TASKS, 0), TASKS))

        assert finite_difference(objective, meta, found.gradient) < 1e-7
        return
    first = {n: v.clone().requires_grad_() for n, v in adapted(algorithm, meta, TASKS, 0).items()}
    loss = query_losses(judge, first, TASKS).mean()
    pulls = torch.autograd.grad(loss, list(first.values()), allow_unused=True)
    pull = {n: v for n, v in zip(first, pulls, strict=True) if v is not None}
    expected = map_meta(torch.zeros_like, found.gradient)
    counts = shares(case, algorithm, meta, first)
    for group in ("params", "starts"):
        for name in expected.get(group, {}):
            whole = pull[name].sum(0)
            expected[group][name] = whole if counts is None else pulled(counts, pull[name])
    for name in expected.get("shared", {}):
        expected["shared"][name] = pull[name].sum(0)
    for name in expected.get("norms", {}):  # MAML++'s, of which the first is the start's
        expected["norms"][name][0] = pull[name].sum(0)
    assert norm(expected) > 0.1
    assert distance(found.gradient, expected) < 1e-12


def test_reptile_without_steps_stays_and_with_one_is_joint_training() -> None:
    def pull(steps: int) -> Meta:
        walk = dict(optimizer="sgd", inner_lr=0.01, batch=100, beta2=0.999)
        return reptile(ON, **walk, steps=steps).meta_grad({"params": start}, TASKS, 0).gradient

    start = ON.initial()
    assert norm(pull(0)) == 0.0
    params = {n: v.clone().requires_grad_() for n, v in start.items()}
    x = torch.cat([TASKS.support_x, TASKS.query_x], 1)
    y = torch.cat([TASKS.support_y, TASKS.query_y], 1)
    loss = torch.stack([ON.loss(params, x[t], y[t]) for t in range(len(TASKS))]).mean()
    joint = dict(zip(params, torch.autograd.grad(loss, list(params.values())), strict=True))
    scaled = {"params": {name: 0.01 * value for name, value in joint.items()}}
    assert distance(pull(1), scaled) < 1e-12


def bound(strength: float) -> MetaGradient:
    """Return the shipped iMAML's meta-gradient under a proximal force of some strength."""
    words = [f"algo.proximal={strength}", f"algo.inner_lr={0.5 / strength}", "algo.steps=60"]
    part = check(compose_job(["dataset=omniglot", "algo=imaml", *words])).parts["algo"]
    algorithm = part.factory(ON, **part.values)
    return algorithm.meta_grad(algorithm.init(ON.initial()), TASKS, 0)


@pytest.mark.slow
def test_a_proximal_force_without_bound_leaves_the_query_s_gradient_at_the_start() -> None:
    """As lambda grows, phi* goes to theta and its Jacobian to 1: what is left falls by 1/lambda."""
    params = {n: v.clone().requires_grad_() for n, v in ON.initial().items()}
    start = {n: v.expand(len(TASKS), *v.shape) for n, v in params.items()}
    losses = query_losses(ON, start, TASKS)
    pulls = torch.autograd.grad(losses.mean(), list(params.values()))
    expected = {"params": dict(zip(params, pulls, strict=True))}
    found = [bound(strength) for strength in (1e4, 1e6, 1e8)]
    left = [distance(each.gradient, expected) for each in found]
    torch.testing.assert_close(found[-1].losses, losses.detach(), rtol=1e-5, atol=0)
    assert left[-1] < 1e-5
    for nearer, farther in zip(left[1:], left, strict=False):
        assert nearer / farther == pytest.approx(0.01, rel=0.1)
