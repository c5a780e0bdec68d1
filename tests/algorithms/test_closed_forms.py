"""Meta-gradients of quadratic tasks against their closed forms."""

from __future__ import annotations

import pytest
import torch
from families import CLUSTERED
from oracles import DOUBLE, Quadratic, imaml, maml, outer
from quadratics import EYE, PROBLEM, RATE, SIZE, TASKS, THETA, gradient, mean, pull, solved
from torch import Tensor

from metarun.algorithms.base import plain_learner
from metarun.algorithms.clustered import clustered
from metarun.algorithms.reptile import reptile
from metarun.errors import ConfigError
from metarun.gradients.adjoint import adjoint
from metarun.gradients.estimators import Evolution, Truncated
from metarun.inner import gradient_descent
from metarun.numerics.outer import OuterOptimizer
from metarun.tasks import Tasks


def test_adaptation() -> None:
    """phi_K is a + M^K (theta - a) after every number of steps."""
    algorithm = maml(PROBLEM, inner_lr=RATE, steps=1, estimator="adjoint")
    meta = algorithm.init(PROBLEM.initial())
    curve = algorithm.adapt(meta, TASKS.support_x, TASKS.support_y, 10)
    for steps, found in enumerate(curve):
        expected = torch.stack([solved(t, steps)[0] for t in range(len(TASKS))])
        torch.testing.assert_close(found["phi"], expected, rtol=1e-13, atol=1e-14)
    assert steps == 10


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
    found = adjoint(PROBLEM, learner, 5, last=last, kept=2, sets=2)(
        {"params": PROBLEM.initial()}, TASKS, 0
    )
    expected = mean(solved(t, last)[1].T @ pull(t, solved(t, 5)[0]) for t in range(len(TASKS)))
    torch.testing.assert_close(found.gradient["params"]["phi"], expected, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("last", [1, 2, 5])
def test_truncation_is_a_choice_of_estimator(last: int) -> None:
    found = gradient(maml(PROBLEM, inner_lr=RATE, steps=5, estimator=Truncated(last=last)))
    expected = mean(solved(t, last)[1].T @ pull(t, solved(t, 5)[0]) for t in range(len(TASKS)))
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize(("last", "steps"), [(6, 5), (1, 0)])
def test_truncation_to_more_steps_than_there_are_is_refused(last: int, steps: int) -> None:
    """So it is refused without inner steps, of which there is no last one."""
    said = rf"last: {last}.* more than algo.steps={steps}; must be at most {steps}"
    with pytest.raises(ConfigError, match=said):
        maml(PROBLEM, inner_lr=RATE, steps=steps, estimator=Truncated(last=last))


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


def test_evolution_strategies_without_steps_are_of_the_query_at_the_start() -> None:
    """Within the error predicted above; after one step more it would be another gradient."""
    pairs = 1500
    estimator = Evolution(pairs=pairs, sigma=0.1)
    algorithm = maml(PROBLEM, inner_lr=RATE, steps=0, estimator=estimator)
    found = algorithm.meta_grad(algorithm.init(PROBLEM.initial()), TASKS, 0)
    each = torch.stack([pull(t, THETA) for t in range(len(TASKS))])
    error = (found.gradient["params"]["phi"] - each.mean(0)).norm()
    predicted = ((SIZE + 1) / pairs) ** 0.5 * each.norm() / len(TASKS)
    assert 0.2 * predicted < error < 2 * predicted
    adapted = mean(solved(t, 1)[1].T @ pull(t, solved(t, 1)[0]) for t in range(len(TASKS)))
    assert (adapted - each.mean(0)).norm() > 6 * predicted
    still = [
        PROBLEM.loss({"phi": THETA}, TASKS.query_x[t], TASKS.query_y[t]) for t in range(len(TASKS))
    ]
    torch.testing.assert_close(found.losses, torch.stack(still), rtol=1e-13, atol=0)


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
    found = adjoint(PROBLEM, learner, steps, last=last, kept=2, sets=2)(meta, TASKS, 0).gradient
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
SOLVER = dict(solver="cg", iterations=SIZE)
IMPLICIT = dict(inner_lr=RATE, steps=400, proximal=STRENGTH, **SOLVER)


def regularised(task: int) -> tuple[Tensor, Tensor]:
    """Return phi* and (A + lambda I)^-1."""
    a, target = TASKS.support_x[task], TASKS.support_y[task]
    inverse = torch.linalg.inv(a + STRENGTH * EYE)
    return inverse @ (a @ target + STRENGTH * THETA), inverse


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


# The end of training on two scalar tasks: curvatures 1 and 0.1,
# minima 0 and 1, support loss = query loss, inner rate 0.5.
FIXED_POINTS = {
    "joint": (0.090909, 0.090909, 0.090909),  # no inner steps: weights A
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
    plain = dict(inner_lr=0.5, steps=steps, estimator="adjoint", proximal=0.0)
    alone = {**CLUSTERED, **plain, "starts": 1, "assign": "before", "spread": 0.0}
    scalar = Quadratic(1)
    algorithm = {
        "joint": lambda: maml(scalar, **{**plain, "steps": 0}),
        "maml": lambda: maml(scalar, **plain),
        "fomaml": lambda: maml(scalar, **{**plain, "estimator": "first_order"}),
        "truncated": lambda: maml(scalar, **{**plain, "estimator": Truncated(last=1)}),
        "imaml": lambda: imaml(scalar, **{**IMPLICIT, "proximal": 1.0, "inner_lr": 0.5}),
        "reptile": lambda: reptile(scalar, **{**ROUGH, "inner_lr": 0.5, "steps": steps}),
        "neumann": lambda: imaml(
            scalar,
            **{
                **IMPLICIT,
                "proximal": 1.25,
                "inner_lr": 0.5,
                "solver": "neumann",
                "iterations": 200,
            },
        ),
        "one cluster": lambda: clustered(scalar, **alone),
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
    optimizer = OuterOptimizer(outer("sgd", 0.999 / (high - low)), meta)
    for step in range(2):  # a thousandth is left by each
        there = algorithm.meta_grad(meta, tasks, step)
        optimizer.step(there.gradient, there.shift, 0.0)
    assert float(meta["params"]["phi"]) == pytest.approx(root, abs=1e-6)
