"""The implicit meta-gradient, its two solvers, and what they do where there is no solution."""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from oracles import (
    DOUBLE,
    Quadratic,
    imaml,
    quadratic_tasks,
)
from quadratics import EYE, PROBLEM, RATE, SIZE, TASKS, THETA, gradient, mean, pull
from torch import Tensor

from metarun.algorithms.base import MetaAlgorithm, plain_start
from metarun.config import check, compose_job
from metarun.errors import ConfigError
from metarun.gradients.implicit import conjugate_gradient, implicit, neumann
from metarun.inner import Learner, gradient_descent

sys.path.insert(0, str(Path(__file__).parents[1] / "train"))


STRENGTH = 2.0
SOLVER = dict(solver="cg", iterations=SIZE)
IMPLICIT = dict(inner_lr=RATE, steps=400, proximal=STRENGTH, **SOLVER)


def regularised(task: int) -> tuple[Tensor, Tensor]:
    """Return phi* and (A + lambda I)^-1."""
    a, target = TASKS.support_x[task], TASKS.support_y[task]
    inverse = torch.linalg.inv(a + STRENGTH * EYE)
    return inverse @ (a @ target + STRENGTH * THETA), inverse


def test_imaml() -> None:
    found = gradient(imaml(PROBLEM, **IMPLICIT))
    expected = mean(
        STRENGTH * inverse @ pull(t, phi)
        for t in range(len(TASKS))
        for phi, inverse in [regularised(t)]
    )
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_imaml_gives_the_proximal_strength_its_gradient() -> None:
    """dJ/d lambda = -u'(phi* - theta) / lambda with u = (I + A/lambda)^-1 B(phi* - b)."""

    def loss(meta, params, x, y):
        apart = (params["phi"] - meta["params"]["phi"]).square().sum()
        return PROBLEM.loss(params, x, y) + 0.5 * meta["strength"]["lambda"] * apart

    adapted = PROBLEM.model.adapted
    learner = Learner(plain_start, loss, gradient_descent(RATE), adapted, STRENGTH)
    meta = {
        "params": PROBLEM.initial(),
        "strength": {"lambda": torch.tensor(STRENGTH, dtype=DOUBLE)},
    }
    found = implicit(PROBLEM, learner, 400, **SOLVER, tolerance=0.0, damping=0.0)(meta, TASKS, 0)
    expected = mean(
        -(STRENGTH * inverse @ pull(t, phi)) @ (phi - THETA) / STRENGTH
        for t in range(len(TASKS))
        for phi, inverse in [regularised(t)]
    )
    torch.testing.assert_close(found.gradient["strength"]["lambda"], expected)
    assert found.figures["inner_residual"].max() < 1e-12
    assert found.figures["solver_residual"].max() < 1e-10


def test_imaml_damping_is_added_to_the_hessian() -> None:
    found = gradient(imaml(PROBLEM, **{**IMPLICIT, "damping": 10.0}))
    expected = mean(
        STRENGTH
        * torch.linalg.solve(
            TASKS.support_x[t] + (STRENGTH + 10.0) * EYE, pull(t, regularised(t)[0])
        )
        for t in range(len(TASKS))
    )
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("damping", [0.0, 3.0])
@pytest.mark.parametrize("terms", [0, 1, 5, 20])
def test_neumann_series(terms: int, damping: float) -> None:
    """The sum of (-A/c)^j over j from 0 to `terms`, on the query gradient at phi*, times lambda/c.

    Undamped, c is lambda; damping adds to it.
    """
    series = {**IMPLICIT, "steps": 100, "solver": "neumann", "iterations": terms}
    found = gradient(imaml(PROBLEM, **series, damping=damping))
    centre = STRENGTH + damping
    powers = [
        sum(torch.linalg.matrix_power(-a / centre, j) for j in range(terms + 1))
        for a in TASKS.support_x
    ]
    expected = mean(
        STRENGTH / centre * powers[t] @ pull(t, regularised(t)[0]) for t in range(len(TASKS))
    )
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_conjugate_gradient_without_an_iteration_is_refused() -> None:
    """Its first iterate is zero: training would take all its meta-steps and move nothing."""
    with pytest.raises(ConfigError, match=r"\{solver: cg, iterations: 0\} solves nothing"):
        imaml(PROBLEM, **{**IMPLICIT, "iterations": 0})


def test_the_neumann_series_converges_by_the_hessian_over_the_strength_a_term() -> None:
    solved = {**IMPLICIT, "steps": 100}
    cg = gradient(imaml(PROBLEM, **solved))
    series = {**solved, "solver": "neumann"}
    errors = [
        float((gradient(imaml(PROBLEM, **{**series, "iterations": terms})) - cg).norm())
        for terms in (10, 20)
    ]
    ratio = float(torch.linalg.eigvalsh(TASKS.support_x).max()) / STRENGTH
    assert 0.1 * ratio**10 < errors[1] / errors[0] < 1.01 * ratio**10


def test_the_neumann_series_diverges_beyond_the_strength_and_its_residual_says_so() -> None:
    weak = {**IMPLICIT, "steps": 100, "proximal": 0.5, "solver": "neumann"}
    largest = torch.linalg.eigvalsh(TASKS.support_x)[:, -1]
    assert (largest > 0.5).all()
    meta = {"params": PROBLEM.initial()}
    residuals, sizes = [], []
    for terms in (1, 10, 40):
        found = imaml(PROBLEM, **{**weak, "iterations": terms}).meta_grad(meta, TASKS, 0)
        residuals.append(found.figures["solver_residual"])
        sizes.append(float(found.gradient["params"]["phi"].norm()))
    assert (residuals[2] > 1e3).all()
    assert (residuals[0] < residuals[1]).all()
    assert (residuals[1] < residuals[2]).all()
    assert sizes[0] < sizes[1] < sizes[2]
    solved_anyway = imaml(PROBLEM, **{**weak, "solver": "cg"}).meta_grad(meta, TASKS, 0)
    assert solved_anyway.figures["solver_residual"].max() < 1e-8


def test_conjugate_gradient_is_exact_after_as_many_steps_as_dimensions() -> None:
    target = [torch.randn(4, SIZE, dtype=DOUBLE)]

    def product(vector):
        return [(TASKS.support_x @ vector[0][:, :, None])[:, :, 0]]

    exact = torch.linalg.solve(TASKS.support_x, target[0])
    residuals = []
    for steps in range(1, SIZE + 1):
        solution, residual = conjugate_gradient(product, target, steps, 0.0, 1.0)
        residuals.append(residual)
    torch.testing.assert_close(solution[0], exact, rtol=1e-9, atol=1e-10)
    assert residuals[-1].max() < 1e-10 < residuals[0].min()


@pytest.mark.parametrize("solver", [conjugate_gradient, neumann])
def test_a_task_is_left_alone_once_it_is_solved_to_the_tolerance(solver) -> None:
    """Its residual is the first that is small enough; and where all are, no product is taken."""
    target, tolerance, asked = [TASKS.query_y], 0.02, list[int]()

    def product(vector):
        asked.append(1)
        return [(TASKS.support_x @ vector[0][:, :, None])[:, :, 0]]

    path = [solver(product, target, steps, 0.0, 1.0)[1] for steps in range(1, 30)]
    small = torch.stack(path) <= tolerance  # [steps, tasks]
    assert small[-1].all()
    assert not small[0].any()
    first = small.long().argmax(0)
    assert len(first.unique()) > 1
    asked.clear()
    _, residual = solver(product, target, 99, tolerance, 1.0)
    expected = torch.stack(path).gather(0, first[None])[0]
    torch.testing.assert_close(residual, expected)
    assert len(asked) <= int(first.max()) + 2


def test_the_inner_residual_is_what_is_left_over_the_force_that_ought_to_cancel_it() -> None:
    """|g + lambda (phi - theta)| / |lambda (phi - theta)|, g being the support loss's gradient."""
    algorithm = imaml(PROBLEM, **{**IMPLICIT, "steps": 3})
    meta = algorithm.init(PROBLEM.initial())
    *_, end = algorithm.adapt(meta, TASKS.support_x, TASKS.support_y, 3)
    found = algorithm.meta_grad(meta, TASKS, 0).figures["inner_residual"]
    for t in range(len(TASKS)):
        force = STRENGTH * (end["phi"][t] - THETA)
        left = TASKS.support_x[t] @ (end["phi"][t] - TASKS.support_y[t]) + force
        torch.testing.assert_close(found[t], left.norm() / force.norm())
    assert found.max() > 0.01


def test_conjugate_gradient_comes_nearer_with_every_step() -> None:
    """In the matrix's norm and in length: Hestenes and Stiefel, 1952. The residual may rise."""
    target = [torch.randn(4, SIZE, dtype=DOUBLE)]
    exact = torch.linalg.solve(TASKS.support_x, target[0])

    def product(vector):
        return [(TASKS.support_x @ vector[0][:, :, None])[:, :, 0]]

    left = [exact]
    for steps in range(1, SIZE + 1):
        solution, _ = conjugate_gradient(product, target, steps, 0.0, 1.0)
        left.append(exact - solution[0])
    for size in (
        lambda e: (e * product([e])[0]).sum(1),
        lambda e: e.square().sum(1),
    ):
        for before, after in pairwise(size(e) for e in left):
            assert (after < before).all()


SMALL = 5  # as many dimensions as the shipped solver takes steps


def shipped(**settings: object) -> MetaAlgorithm:
    """Return iMAML as it is shipped, with some settings changed."""
    part = check(compose_job(["dataset=sinusoid", "algo=imaml"])).parts["algo"]
    return part.factory(Quadratic(SMALL), **{**part.values, **settings})


@pytest.mark.parametrize(
    ("inner_optimizer", "found_to"),
    [pytest.param("lbfgs", 1e-8, marks=pytest.mark.slow), ("sgd", 1e-12)],
)
def test_what_is_shipped_is_the_gradient_through_the_regularised_solution(
    inner_optimizer: str, found_to: float
) -> None:
    """phi* solves (A + lambda I) phi = A a + lambda theta, here differentiated as it stands.

    A search ends where values fall no more, which is the square root of a rounding away.
    """
    tasks, strength = quadratic_tasks(4, SMALL), 1.5
    algorithm = shipped(
        inner_lr=RATE, steps=200, proximal=strength, inner_optimizer=inner_optimizer
    )
    meta = algorithm.init(Quadratic(SMALL).initial())
    theta = meta["params"]["phi"].clone().requires_grad_()
    a = tasks.support_x
    force = (a @ tasks.support_y[:, :, None])[:, :, 0] + strength * theta
    phi = torch.linalg.solve(a + strength * torch.eye(SMALL, dtype=DOUBLE), force)
    *_, end = algorithm.adapt(meta, tasks.support_x, tasks.support_y, 200)
    torch.testing.assert_close(end["phi"], phi.detach(), rtol=0, atol=found_to)
    apart = phi - tasks.query_y
    loss = 0.5 * (apart * (tasks.query_x @ apart[:, :, None])[:, :, 0]).sum(1).mean()
    (expected,) = torch.autograd.grad(loss, theta)
    found = algorithm.meta_grad(meta, tasks, 0).gradient["params"]["phi"]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)  # its solver's tolerance


def test_an_indefinite_matrix_never_gives_worse_than_first_order() -> None:
    """Steps along almost flat directions go far off before one of negative curvature is met."""
    matrices = TASKS.support_x.clone()
    matrices[1] = torch.diag(torch.tensor([3.0, 1e-3, 1, -2, 1, -2], dtype=DOUBLE))
    matrices[2] = -matrices[2]  # indefinite in its first direction
    target = [torch.ones(4, SIZE, dtype=DOUBLE)]
    centre = 2.0

    def product(vector):
        return [(matrices @ vector[0][:, :, None])[:, :, 0]]

    size = target[0].norm(dim=1)
    first_order = (target[0] - product([target[0] / centre])[0]).norm(dim=1) / size
    for steps in range(1, SIZE + 1):
        solution, residual = conjugate_gradient(product, target, steps, 0.0, centre)
        true = (target[0] - product(solution)[0]).norm(dim=1) / size
        torch.testing.assert_close(residual, true, rtol=1e-6, atol=1e-8)
        assert (residual[1:3] <= first_order[1:3] + 1e-12).all()
    torch.testing.assert_close(solution[0][2], target[0][2] / centre)
    good = [0, 3]
    exact = torch.linalg.solve(matrices[good], target[0][good])
    torch.testing.assert_close(solution[0][good], exact, rtol=1e-9, atol=1e-10)
