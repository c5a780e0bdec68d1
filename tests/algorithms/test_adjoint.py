"""The adjoint on few parameter sets and few graphs: the same gradient, from bounded memory."""

from __future__ import annotations

from collections import Counter
from math import comb

import pytest
from oracles import distance, image_tasks, problem

from metarun.algorithms.base import plain_learner
from metarun.algorithms.parts.rates import InnerRates, initial_rates, learned_descent
from metarun.errors import ConfigError
from metarun.gradients.adjoint import adjoint, unrolled
from metarun.gradients.estimators import SETS, Estimator, Evolution, Implicit, estimate
from metarun.gradients.metagradient import MetaGradient
from metarun.inner import Learner, pulled
from metarun.problem import Meta, Params

ON, TASKS = problem("mlp"), image_tasks("mlp")
RATES = InnerRates(0.05, "tensor", 12, "raw")
META = {"params": ON.initial(), **initial_rates(RATES, ON.initial())}
WEIGHTS = [0.1, 0.0, 0.3, 0.0, 0.05, 0.0, 0.05, 0.0, 0.2, 0.0, 0.1, 0.2]


def counted() -> tuple[Learner, Counter[int]]:
    """Return MAML with learned rates, and how often each of its steps was taken."""
    descend, taken = learned_descent(RATES), Counter[int]()

    def update(meta: Meta, step: int, params: Params, gradient: Params) -> Params:
        taken[step] += 1
        return descend(meta, step, params, gradient)

    return plain_learner(ON, update), taken


def reversed_by(kept: int, sets: int, steps: int = 12, **asked) -> tuple[MetaGradient, int]:
    learner, taken = counted()
    found = adjoint(ON, learner, steps, last=steps, kept=kept, sets=sets, **asked)(META, TASKS, 0)
    return found, max(taken.values(), default=0)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize(("kept", "sets"), [(1, 1), (1, 2), (1, 3), (1, 12), (3, 2), (5, 12)])
def test_any_number_of_sets_and_graphs_gives_the_gradient(
    kept: int, sets: int, weights: list[float] | None
) -> None:
    expected = unrolled(ON, counted()[0], 12, weights)(META, TASKS, 0)
    found, _ = reversed_by(kept, sets, weights=weights)
    assert distance(found.gradient, expected.gradient) < 1e-12
    assert (found.losses - expected.losses).abs().max() < 1e-12


@pytest.mark.parametrize(("steps", "kept"), [(1, 1), (5, 5), (12, 12)])
def test_a_loop_whose_graphs_are_kept_is_run_once(steps: int, kept: int) -> None:
    assert reversed_by(kept, 1, steps)[1] == 1


@pytest.mark.parametrize("sets", [1, 2, 3, 4, 12])
def test_no_step_is_taken_more_often_than_the_binomial_bound(sets: int) -> None:
    """With s sets and every step run at most r times more, C(s + r, s) steps can be reversed."""
    again = next(r for r in range(99) if comb(sets + r, sets) >= 12)
    assert reversed_by(1, sets)[1] == again + 1


def test_enough_sets_run_every_step_twice_at_most() -> None:
    assert reversed_by(1, 12)[1] == 2


def test_what_is_said_of_recompute_holds() -> None:
    """64 steps are run 3.4 times: forth, and again from one of its sets."""
    learner, taken = counted()
    adjoint(ON, learner, 64, last=64, kept=1, sets=SETS)(META, TASKS[:1], 0)
    assert sum(taken.values()) / 64 == pytest.approx(3.4, abs=0.05)


@pytest.mark.parametrize(
    "estimator", [Evolution(pairs=1, sigma=0.1), Implicit(solver="cg", iterations=1)]
)
def test_who_asks_the_query_at_the_end_refuses_weights(estimator: Estimator) -> None:
    learner = pulled(counted()[0], 1.0)
    with pytest.raises(ConfigError, match=r"^algo.estimator: .* at the end .*; use adjoint, or"):
        estimate(estimator, ON, learner, 12, WEIGHTS)


def test_weights_of_the_last_step_alone_are_no_weights() -> None:
    plain, _ = reversed_by(5, 12)
    last, _ = reversed_by(5, 12, weights=[0.0] * 11 + [1.0])
    assert distance(last.gradient, plain.gradient) == 0.0
    assert (last.figures["final_loss"] == plain.losses).all()
