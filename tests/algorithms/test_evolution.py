"""Evolution strategies: the published formula, the noise's seeds, and how good an estimate is."""

from __future__ import annotations

import pytest
import torch
from oracles import DOUBLE, image_tasks, maml, norm, problem

from metarun.algorithms.base import MetaAlgorithm
from metarun.chunks import in_chunks, map_meta
from metarun.estimators import Estimator, Evolution
from metarun.problem import Meta

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
    for other in (grad(META, TASKS[:1], 1), grad(META, TASKS[1:2], 0)):
        cosine = dot(other.gradient, here) / norm(other.gradient) / norm(here)
        assert abs(cosine) < 0.3
    chunked, _ = in_chunks(grad, META, TASKS, 0, 2)
    whole = grad(META, TASKS, 0)
    for name, value in whole.gradient["params"].items():
        torch.testing.assert_close(chunked.gradient["params"][name], value, rtol=1e-12, atol=1e-14)


def test_no_derivative_of_the_inner_loop_is_needed() -> None:
    """The losses are those after adaptation, as every estimator's."""
    found = by(Evolution(pairs=1, sigma=0.1)).meta_grad(META, TASKS, 0)
    torch.testing.assert_close(found.losses, by("adjoint").meta_grad(META, TASKS, 0).losses)
