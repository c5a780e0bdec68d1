"""Meta-gradients of quadratic tasks against their closed forms (algorithms reference, 11.1)."""

from __future__ import annotations

import pytest
import torch
from oracles import DOUBLE, Quadratic, maml, quadratic_tasks
from torch import Tensor

from metarun.algorithms.base import plain_learner, plain_start
from metarun.algorithms.clustered import clustered
from metarun.algorithms.imaml import imaml
from metarun.algorithms.reptile import reptile
from metarun.errors import ConfigError
from metarun.estimators import Evolution, Truncated, adjoint
from metarun.implicit import conjugate_gradient, implicit
from metarun.inner import Learner, gradient_descent
from metarun.tasks import Tasks

SIZE, RATE = 6, 0.3
PROBLEM = Quadratic(SIZE)
TASKS = quadratic_tasks(4, SIZE)
THETA = PROBLEM.initial()["phi"]
EYE = torch.eye(SIZE, dtype=DOUBLE)


def gradient(algorithm, tasks: Tasks = TASKS) -> Tensor:
    meta = algorithm.init(PROBLEM.initial())
    return algorithm.meta_grad(meta, tasks, 0).gradient["params"]["phi"]


def solved(task: int, steps: int) -> tuple[Tensor, Tensor]:
    """Return phi_K and M^K of one task."""
    contraction = torch.linalg.matrix_power(EYE - RATE * TASKS.support_x[task], steps)
    target = TASKS.support_y[task]
    return target + contraction @ (THETA - target), contraction


def pull(task: int, phi: Tensor) -> Tensor:
    return TASKS.query_x[task] @ (phi - TASKS.query_y[task])


def mean(vectors) -> Tensor:
    return torch.stack(list(vectors)).mean(0)


@pytest.mark.parametrize("steps", [1, 3, 10])
@pytest.mark.parametrize("estimator", ["adjoint", "recompute", "unrolled"])
def test_maml(steps: int, estimator: str) -> None:
    found = gradient(maml(PROBLEM, inner_lr=RATE, steps=steps, estimator=estimator))
    expected = mean(
        contraction.T @ pull(t, phi)
        for t in range(len(TASKS))
        for phi, contraction in [solved(t, steps)]
    )
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("steps", [1, 3, 10])
def test_fomaml(steps: int) -> None:
    found = gradient(maml(PROBLEM, inner_lr=RATE, steps=steps, estimator="first_order"))
    expected = mean(pull(t, solved(t, steps)[0]) for t in range(len(TASKS)))
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("last", [0, 1, 2, 5])
def test_truncation_differentiates_the_last_steps_only(last: int) -> None:
    learner = plain_learner(PROBLEM, gradient_descent(RATE))
    found = adjoint(PROBLEM, learner, 5, last=last, kept=2)({"params": PROBLEM.initial()}, TASKS, 0)
    expected = mean(solved(t, last)[1].T @ pull(t, solved(t, 5)[0]) for t in range(len(TASKS)))
    torch.testing.assert_close(found.gradient["params"]["phi"], expected, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("last", [1, 2, 5])
def test_truncation_is_a_choice_of_estimator(last: int) -> None:
    found = gradient(maml(PROBLEM, inner_lr=RATE, steps=5, estimator=Truncated(last=last)))
    expected = mean(solved(t, last)[1].T @ pull(t, solved(t, 5)[0]) for t in range(len(TASKS)))
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-14)


def test_truncation_to_more_steps_than_there_are_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"last: 6.* more than algo.steps=5; must be at most 5"):
        maml(PROBLEM, inner_lr=RATE, steps=5, estimator=Truncated(last=6))


@pytest.mark.parametrize("sigma", [0.01, 30.0])
def test_evolution_strategies_are_unbiased_at_any_sigma(sigma: int) -> None:
    """On a quadratic a pair gives (g'e) e exactly, whose mean is g; error sqrt((d+1)/n)."""
    pairs = 150
    found = gradient(
        maml(PROBLEM, inner_lr=RATE, steps=1, estimator=Evolution(pairs=pairs, sigma=sigma))
    )
    exact = gradient(maml(PROBLEM, inner_lr=RATE, steps=1, estimator="adjoint"))
    again = gradient(
        maml(PROBLEM, inner_lr=RATE, steps=1, estimator=Evolution(pairs=pairs, sigma=1.0))
    )
    torch.testing.assert_close(found, again, rtol=1e-8, atol=1e-8)
    predicted = ((SIZE + 1) / pairs) ** 0.5
    each = []
    for t in range(len(TASKS)):
        phi, contraction = solved(t, 1)
        each.append((contraction.T @ pull(t, phi)).norm())
    expected_error = predicted * torch.stack(each).norm() / len(TASKS)
    assert 0.2 * expected_error < (found - exact).norm() < 2 * expected_error


@pytest.mark.parametrize("last", [0, 4])
def test_learned_rates_get_their_gradient(last: int) -> None:
    """Each step's own rate: -<A(phi_k - a), (M^(K-1-k))' B(phi_K - b)>, or with M = I."""
    steps = 4

    def update(meta, step, params, gradient):
        return {n: v - meta["rates"]["each"][step] * gradient[n] for n, v in params.items()}

    learner = plain_learner(PROBLEM, update)
    meta = {
        "params": PROBLEM.initial(),
        "rates": {"each": torch.full((steps,), RATE, dtype=DOUBLE)},
    }
    found = adjoint(PROBLEM, learner, steps, last=last, kept=2)(meta, TASKS, 0).gradient
    expected = []
    for k in range(steps):
        terms = []
        for t in range(len(TASKS)):
            inner = TASKS.support_x[t] @ (solved(t, k)[0] - TASKS.support_y[t])
            back = pull(t, solved(t, steps)[0])
            if last:
                back = solved(t, steps - 1 - k)[1].T @ back
            terms.append(-inner @ back)
        expected.append(mean(terms))
    torch.testing.assert_close(
        found["rates"]["each"], torch.stack(expected), rtol=1e-12, atol=1e-13
    )


STRENGTH = 2.0
SOLVER = dict(solver="cg", cg_steps=SIZE, cg_tolerance=0.0, terms=0, damping=0.0)
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

    learner = Learner(plain_start, loss, gradient_descent(RATE), PROBLEM.model.adapted)
    options = dict(proximal=STRENGTH, **SOLVER)
    meta = {
        "params": PROBLEM.initial(),
        "strength": {"lambda": torch.tensor(STRENGTH, dtype=DOUBLE)},
    }
    found = implicit(PROBLEM, learner, 400, **options)(meta, TASKS, 0)
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


@pytest.mark.parametrize("terms", [0, 1, 5, 20])
def test_neumann_series(terms: int) -> None:
    """The sum of (-A/lambda)^j over j from 0 to `terms`, on the query gradient at phi*."""
    series = {**IMPLICIT, "steps": 100, "solver": "neumann", "terms": terms}
    found = gradient(imaml(PROBLEM, **series))
    expected = mean(
        sum(torch.linalg.matrix_power(-TASKS.support_x[t] / STRENGTH, j) for j in range(terms + 1))
        @ pull(t, regularised(t)[0])
        for t in range(len(TASKS))
    )
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_the_neumann_series_converges_by_the_hessian_over_the_strength_a_term() -> None:
    solved = {**IMPLICIT, "steps": 100}
    cg = gradient(imaml(PROBLEM, **solved))
    series = {**solved, "solver": "neumann"}
    errors = [
        float((gradient(imaml(PROBLEM, **{**series, "terms": terms})) - cg).norm())
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
        found = imaml(PROBLEM, **{**weak, "terms": terms}).meta_grad(meta, TASKS, 0)
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
        solution, residual = conjugate_gradient(product, target, steps, 0.0)
        residuals.append(residual)
    torch.testing.assert_close(solution[0], exact, rtol=1e-9, atol=1e-10)
    assert residuals[-1].max() < 1e-10 < residuals[0].min()


def test_conjugate_gradient_stops_at_negative_curvature() -> None:
    """An indefinite task keeps its last iterate; the others are solved as without it."""
    matrices = TASKS.support_x.clone()
    matrices[1] = torch.diag(torch.tensor([1.0, -2, 1, -2, 1, -2], dtype=DOUBLE))
    target = [torch.ones(4, SIZE, dtype=DOUBLE)]

    def product(vector):
        return [(matrices @ vector[0][:, :, None])[:, :, 0]]

    solution, residual = conjugate_gradient(product, target, SIZE, 0.0)
    assert torch.isfinite(solution[0]).all()
    assert residual[1] > 0.1
    good = [0, 2, 3]
    exact = torch.linalg.solve(matrices[good], target[0][good])
    torch.testing.assert_close(solution[0][good], exact, rtol=1e-9, atol=1e-10)


ROUGH = dict(optimizer="sgd", inner_lr=RATE, batch=SIZE, beta2=0.999)
ONE_SET = Tasks(  # Reptile joins support and query, and half a matrix is none
    TASKS.support_x, TASKS.support_y, TASKS.query_x[:, :0], TASKS.query_y[:, :0], TASKS.mode
)


@pytest.mark.parametrize("steps", [1, 3, 10])
def test_reptile(steps: int) -> None:
    """The direction is (I - M^K)(theta - a)."""
    found = gradient(reptile(PROBLEM, **ROUGH, steps=steps), ONE_SET)
    expected = mean(
        (EYE - solved(t, steps)[1]) @ (THETA - TASKS.support_y[t]) for t in range(len(TASKS))
    )
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-14)


# The end of training on two scalar tasks (algorithms reference, 11.2): curvatures 1 and 0.1,
# minima 0 and 1, support loss = query loss, inner rate 0.5.
FIXED_POINTS = {
    "maml": (0.265246, 0.983951, 0.999973),
    "fomaml": (0.159664, 0.712321, 0.983951),
    "truncated": (0.265246, 0.824702, 0.991489),  # weights A c^(K+1)
    "imaml": (0.248447, 0.248447, 0.248447),
    "reptile": (0.090909, 0.189310, 0.286558),
    "neumann": (0.217391, 0.217391, 0.217391),  # proximal 1.25
    "one cluster": (0.265246, 0.983951, 0.999973),
}


@pytest.mark.parametrize(("index", "steps"), [(0, 1), (1, 5), (2, 10)])
@pytest.mark.parametrize("name", FIXED_POINTS)
def test_fixed_point_of_two_tasks(name: str, index: int, steps: int) -> None:
    plain = dict(inner_lr=0.5, steps=steps, estimator="adjoint")
    family = dict(
        starts=1, assign="before", spread=0.0, balance=0.0, folds=2, graded_by="support", warm_up=0
    )
    scalar = Quadratic(1)
    algorithm = {
        "maml": lambda: maml(scalar, **plain),
        "fomaml": lambda: maml(scalar, **{**plain, "estimator": "first_order"}),
        "truncated": lambda: maml(scalar, **{**plain, "estimator": Truncated(last=1)}),
        "imaml": lambda: imaml(scalar, **{**IMPLICIT, "proximal": 1.0, "inner_lr": 0.5}),
        "reptile": lambda: reptile(scalar, **{**ROUGH, "inner_lr": 0.5, "steps": steps}),
        "neumann": lambda: imaml(
            scalar,
            **{**IMPLICIT, "proximal": 1.25, "inner_lr": 0.5, "solver": "neumann", "terms": 200},
        ),
        "one cluster": lambda: clustered(scalar, **plain, **family),
    }[name]()
    x = torch.tensor([1.0, 0.1], dtype=DOUBLE).view(2, 1, 1)
    y = torch.tensor([[0.0], [1.0]], dtype=DOUBLE)
    tasks = Tasks(x, y, x, y, torch.zeros(2, dtype=torch.long))
    if name == "reptile":
        tasks = Tasks(x, y, x[:, :0], y[:, :0], tasks.mode)
    meta = algorithm.init({"phi": torch.tensor([0.5], dtype=DOUBLE)})
    found = [
        algorithm.meta_grad({**meta, "params": {"phi": torch.full_like(start, at)}}, tasks, 0)
        for start in [meta["params"]["phi"]]
        for at in (0.0, 1.0)
    ]
    low, high = (float(f.gradient["params"]["phi"]) for f in found)
    root = low / (low - high)  # the gradient is linear: where it crosses zero is the fixed point
    assert root == pytest.approx(FIXED_POINTS[name][index], abs=1e-6)
