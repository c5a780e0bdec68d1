"""Evolution strategies: the published formula, the noise's seeds, and how good an estimate is."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from cases import CASES, Case
from oracles import DOUBLE, SMOOTH, Quadratic, distance, image_tasks, maml, norm, problem
from oracles import quadratic_tasks as quadratic
from torch import Tensor

from metarun.algorithms.base import MetaAlgorithm
from metarun.gradients.estimators import Estimator, Evolution
from metarun.gradients.metagradient import query_losses
from metarun.models.mlp import mlp
from metarun.numerics.chunks import in_chunks, map_meta
from metarun.problem import Meta, Problem
from metarun.tasks import Tasks

ON = problem("mlp")
META = map_meta(lambda v: v.to(DOUBLE), {"params": ON.initial()})
TASKS = image_tasks("mlp")


def by(estimator: Estimator) -> MetaAlgorithm:
    return maml(ON, inner_lr=0.1, steps=2, estimator=estimator)


def dot(a: Meta, b: Meta) -> float:
    return sum(float((a["params"][n] * v).sum()) for n, v in b["params"].items())


def test_the_cosine_with_the_exact_gradient_is_as_theory_says() -> None:
    """About sqrt(n / (n + P)), P numbers and n pairs."""
    pairs, size = 150, sum(v.numel() for v in META["params"].values())
    task = TASKS[:1]
    exact = by("adjoint").meta_grad(META, task, 0).gradient
    found = by(Evolution(pairs=pairs, sigma=1e-3)).meta_grad(META, task, 0).gradient
    cosine = dot(found, exact) / norm(found) / norm(exact)
    assert cosine == pytest.approx((pairs / (pairs + size)) ** 0.5, abs=0.1)


def test_noise_depends_on_step_and_task_and_on_no_global_state() -> None:
    grad = by(Evolution(pairs=1, sigma=0.1)).meta_grad
    here = grad(META, TASKS[:1], 0).gradient
    torch.manual_seed(1)
    assert dot(grad(META, TASKS[:1], 0).gradient, here) == dot(here, here)
    renamed = replace(TASKS[:1], support_y=TASKS[:1].support_y.flip(1))  # the same images
    for other in (grad(META, TASKS[:1], 1), grad(META, TASKS[1:2], 0), grad(META, renamed, 0)):
        cosine = dot(other.gradient, here) / norm(other.gradient) / norm(here)
        assert abs(cosine) < 0.3
    chunked, _ = in_chunks(grad, META, TASKS, 0, 2)
    whole = grad(META, TASKS, 0)
    for name, value in whole.gradient["params"].items():
        torch.testing.assert_close(chunked.gradient["params"][name], value, rtol=1e-12, atol=1e-14)


BY_CHOICE = ("clustered", "multi_maml", "mixture-em", "mixture-em-start", "mixture-gate", "tsamaml")


@pytest.mark.parametrize("case", [c for c in CASES if c.name in BY_CHOICE], ids=lambda c: c.name)
def test_a_start_that_is_chosen_for_a_batch_goes_to_its_own_task(case: Case) -> None:
    """All tasks at once, whose starts are chosen together, are what each is alone."""
    noisy, plain = (
        case.factory(ON, **{**case.settings, "estimator": estimator})
        for estimator in (Evolution(pairs=2, sigma=0.1), "adjoint")
    )
    meta = map_meta(lambda v: v.to(DOUBLE), noisy.init((noisy.problem or ON).initial()))
    if noisy.turn is not None:
        meta |= noisy.turn.change(meta, [image_tasks("mlp", 8)])
    found = noisy.meta_grad(meta, TASKS, 0)
    alone, _ = in_chunks(noisy.meta_grad, meta, TASKS, 0, 1)
    assert distance(found.gradient, alone.gradient) < 1e-12
    torch.testing.assert_close(found.losses, plain.meta_grad(meta, TASKS, 0).losses)


def test_no_derivative_of_the_inner_loop_is_needed() -> None:
    """The losses are those after adaptation, as every estimator's."""
    found = by(Evolution(pairs=1, sigma=0.1)).meta_grad(META, TASKS, 0)
    torch.testing.assert_close(found.losses, by("adjoint").meta_grad(META, TASKS, 0).losses)


def test_a_pair_cancels_whatever_is_even() -> None:
    """At the minimum of every task's own bowl both of a pair are worth the same, to the last bit.

    One side alone would not be, nor two members that see different tasks.
    """
    on, tasks = Quadratic(5), quadratic(3, 5)
    start, settings = {"params": on.initial()}, dict(inner_lr=0.3, steps=2)
    *_, end = maml(on, **settings, estimator="adjoint").adapt(
        start, tasks.support_x, tasks.support_y, 2
    )
    tasks = replace(tasks, query_y=end["phi"])
    for sigma in (0.1, 10.0):
        algorithm = maml(on, **settings, estimator=Evolution(pairs=4, sigma=sigma))
        found = algorithm.meta_grad(start, tasks, 0)
        assert norm(found.gradient) < 1e-13 * sigma
        elsewhere = {"params": {"phi": start["params"]["phi"] + 1}}
        assert norm(algorithm.meta_grad(elsewhere, tasks, 0).gradient) > 0.1


def curve(hidden: list[int]) -> tuple[Problem, Meta, Tasks]:
    """Return a smooth perceptron, its start, and one sine of 10 points."""
    with torch.random.fork_rng():
        torch.manual_seed(4)
        net = mlp((1,), 1, hidden=hidden, norm="none", init="default", **SMOOTH).to(DOUBLE)
    on = Problem(net, "regression")
    x = torch.linspace(-3, 3, 20, dtype=DOUBLE).view(2, 1, 10, 1)
    y = 1 + torch.sin(x)
    task = Tasks(x[0], y[0], x[1], y[1], torch.zeros(1, dtype=torch.long))
    return on, {"params": on.initial()}, task


@pytest.mark.slow
@pytest.mark.parametrize("hidden", [[3], [6, 5], [16, 8]], ids=str)
def test_the_error_falls_with_the_square_root_of_the_pairs(hidden: list[int]) -> None:
    """Its mean square is (P + 1) / n of the gradient's, for P numbers, n pairs and little noise.

    Over independent draws, within four of their own standard errors, which are small enough for
    a wrong power or factor to be seen.
    """
    on, meta, task = curve(hidden)
    size = sum(v.numel() for v in meta["params"].values())
    exact = maml(on, inner_lr=0.1, steps=1, estimator="adjoint").meta_grad(meta, task, 0).gradient
    for pairs, draws in ((1, 400), (4, 200), (16, 100)):
        grad = maml(on, inner_lr=0.1, steps=1, estimator=Evolution(pairs=pairs, sigma=1e-4))
        errors = [grad.meta_grad(meta, task, step).gradient for step in range(draws)]
        squares = torch.tensor([distance(found, exact) ** 2 for found in errors])
        theory, error = (size + 1) / pairs, float(squares.std() / draws**0.5)
        assert error < 0.15 * theory
        assert abs(float(squares.mean()) - theory) < 4 * error


def test_pairs_that_share_their_task_are_far_better_than_what_spends_as_much() -> None:
    """Beside one-sided differences without a base line, and pairs that see different tasks."""
    on, meta, task = curve([6, 5])
    other = replace(task, support_y=task.support_y + 1, query_y=task.query_y + 1)
    pairs, sigma, draws = 4, 0.02, 30
    algorithm = maml(on, inner_lr=0.1, steps=1, estimator=Evolution(pairs=pairs, sigma=sigma))
    plain = maml(on, inner_lr=0.1, steps=1, estimator="adjoint")
    exact = plain.meta_grad(meta, task, 0).gradient
    generator = torch.Generator().manual_seed(0)

    def value(noise: Meta, by: float, at: Tasks) -> Tensor:
        params = {n: v + by * noise["params"][n] for n, v in meta["params"].items()}
        *_, last = algorithm.adapt({"params": params}, at.support_x, at.support_y, 1)
        return query_losses(on, last, at)[0].detach()

    def drawn() -> Meta:
        return map_meta(
            lambda v: torch.randn(v.shape, dtype=DOUBLE, generator=generator),
            {"params": meta["params"]},
        )

    def one_sided(noise: Meta) -> Tensor:
        return value(noise, sigma, task) / sigma

    def across_tasks(noise: Meta) -> Tensor:
        return (value(noise, sigma, task) - value(noise, -sigma, other)) / (2 * sigma)

    def mean(weigh, count: int) -> Meta:
        parts = [(noise, weigh(noise)) for noise in (drawn() for _ in range(count))]
        return {
            "params": {
                n: sum(w * noise["params"][n] for noise, w in parts) / count for n in meta["params"]
            }
        }

    def error(found: list[Meta]) -> float:
        return sum(distance(one, exact) ** 2 for one in found) / len(found)

    ours = error([algorithm.meta_grad(meta, task, step).gradient for step in range(draws)])
    assert 10 * ours < error([mean(one_sided, 2 * pairs) for _ in range(draws)])
    assert 10 * ours < error([mean(across_tasks, pairs) for _ in range(draws)])


@pytest.mark.slow
def test_the_cosine_grows_on_the_network_of_the_sinusoids() -> None:
    """As sqrt(n / (n + P)), P = 1761, within four standard deviations of what it is a function of.

    The cosine is 1 / sqrt(1 + P / (n a)), a being the mean of n squares of normal numbers.
    """
    on, meta, task = curve([40, 40])
    size = sum(v.numel() for v in meta["params"].values())
    assert size == 1761
    exact = maml(on, inner_lr=0.01, steps=1, estimator="adjoint").meta_grad(meta, task, 0).gradient
    for pairs in (50, 200, 800):
        algorithm = maml(on, inner_lr=0.01, steps=1, estimator=Evolution(pairs=pairs, sigma=1e-4))
        found = algorithm.meta_grad(meta, task, 0).gradient
        cosine = dot(found, exact) / norm(found) / norm(exact)
        theory = (pairs / (pairs + size)) ** 0.5
        spread = 0.5 * (1 - theory**2) * (2 / pairs) ** 0.5
        assert cosine == pytest.approx(theory, rel=4 * spread)
