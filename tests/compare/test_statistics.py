"""Closed forms, known values, and simulations that a wrong estimator fails."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from metarun.errors import DataError
from metarun.report.statistics import (
    ari,
    contingency,
    effective_clusters,
    holm,
    mean_ci,
    nmi,
    paired,
    purity,
    seed_ci,
    tasks_needed,
)

TASKS, TRIALS = 600, 2000
SLACK = 4 * math.sqrt(0.05 * 0.95 / TRIALS)  # four standard errors of a simulated 5 %


def few_shot_scores(rng, advantage=0.0, skew=False):
    """Two methods on tasks of shared difficulty; `skew` gives squared errors with a long tail."""
    difficulty = rng.normal(0.0, 0.15, (TRIALS, TASKS))
    noise = rng.normal(0.0, 0.05, (2, TRIALS, TASKS))
    a, b = difficulty + noise + np.array([advantage, 0.0])[:, None, None]
    return (np.exp(4 * a), np.exp(4 * b)) if skew else (0.6 + a, 0.6 + b)


def test_mean_ci_is_196_standard_errors():
    assert mean_ci([1.0, 2.0, 3.0]) == pytest.approx((2.0, 1.96 / math.sqrt(3)))


@pytest.mark.parametrize("scores", [[], [0.5], [0.5, math.nan], [math.inf, 1.0]])
def test_mean_ci_never_invents_an_interval(scores):
    assert math.isnan(mean_ci(scores).ci95)


def test_mean_ci_covers_the_truth_in_95_percent_of_experiments():
    rng = np.random.default_rng(0)
    trials = rng.binomial(75, 0.6, (TRIALS, TASKS)) / 75 + rng.normal(0, 0.1, (TRIALS, TASKS))
    inside = [abs(m - 0.6) <= ci for m, ci in map(mean_ci, trials)]
    assert np.mean(inside) == pytest.approx(0.95, abs=SLACK)
    population = [abs(x.mean() - 0.6) <= 1.96 * x.std() / TASKS for x in trials]  # the control
    assert np.mean(population) < 0.5


@pytest.mark.parametrize("skew", [False, True])
def test_paired_interval_covers_and_p_values_are_uniform_when_nothing_differs(skew):
    a, b = few_shot_scores(np.random.default_rng(1), skew=skew)
    results = [paired(x, y) for x, y in zip(a, b, strict=True)]
    assert np.mean([abs(r.difference) <= r.ci95 for r in results]) == pytest.approx(0.95, abs=SLACK)
    assert stats.kstest([r.p_value for r in results], "uniform").pvalue > 1e-3


def test_pairing_has_power_where_an_unpaired_interval_has_none():
    a, b = few_shot_scores(np.random.default_rng(2), advantage=0.015)
    results = [paired(x, y) for x, y in zip(a, b, strict=True)]
    assert np.mean([r.p_value < 0.05 for r in results]) > 0.99
    unpaired = [math.hypot(mean_ci(x).ci95, mean_ci(y).ci95) for x, y in zip(a, b, strict=True)]
    assert np.mean(unpaired) > 2.5 * np.mean([r.ci95 for r in results])
    assert np.mean(np.array(unpaired) > 0.015) > 0.9  # the unpaired interval would hold zero
    wrong = [abs(r.difference - 0.015) <= w for r, w in zip(results, unpaired, strict=True)]
    assert np.mean(wrong) > 0.95 + SLACK  # and covers far too often to be called 95 %


@pytest.mark.parametrize("tasks", [2, 5, 9])
def test_few_tasks_get_the_exact_sign_flip_p_value(tasks):
    d = np.random.default_rng(tasks).normal(0.4, 1.0, tasks)
    sums = [abs(np.dot(s, d)) for s in itertools.product((-1, 1), repeat=tasks)]
    expected = np.mean(np.array(sums) >= abs(d.sum()) - 1e-12)
    assert paired(d, np.zeros(tasks)).p_value == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("tasks", [6, 16])
def test_a_unanimous_verdict_of_few_tasks_has_two_in_2_to_the_t(tasks):
    assert paired(np.linspace(1, 2, tasks), np.zeros(tasks)).p_value == 2.0 ** (1 - tasks)


def test_many_tasks_agree_with_student_and_with_random_sign_flips():
    rng = np.random.default_rng(3)
    d = rng.normal(0.06, 1.0, TASKS)
    p = paired(d, np.zeros(TASKS)).p_value
    assert p == pytest.approx(stats.ttest_1samp(d, 0.0).pvalue, rel=1e-9)
    flips = np.abs(rng.choice([-1, 1], (20_000, TASKS)) @ d)
    assert p == pytest.approx(np.mean(flips >= abs(d.sum())), abs=0.015)


def test_identical_methods_and_constant_differences_need_no_division():
    scores = np.full(TASKS, 0.3)
    assert paired(scores, scores) == (0.0, 0.0, 1.0, TASKS)
    assert paired(scores + 0.1, scores).p_value == 2.0 ** (1 - TASKS)


@given(st.lists(st.tuples(*[st.floats(0, 1)] * 2), min_size=2, max_size=40))
def test_swapping_the_methods_flips_the_sign_and_nothing_else(pairs):
    a, b = np.array(pairs).T
    there, back = paired(a, b), paired(b, a)
    assert there.difference == pytest.approx(-back.difference, abs=1e-15)
    assert (there.ci95, there.p_value) == pytest.approx((back.ci95, back.p_value), rel=1e-6)
    assert 0 < there.p_value <= 1


@pytest.mark.parametrize(
    ("a", "b", "says"),
    [
        ([0.1, 0.2], [0.1, 0.2, 0.3], "equal lists"),
        ([0.1], [0.2], "2 scores"),
        ([0.1, math.nan], [0.1, 0.2], "finite"),
        ([0.1, 0.2], [math.inf, 0.2], "finite"),
    ],
)
def test_paired_refuses_what_cannot_be_paired(a, b, says):
    with pytest.raises(DataError, match=says):
        paired(a, b)


def test_seed_interval_is_students():
    assert seed_ci([0.6, 0.62, 0.64]) == pytest.approx((0.62, 4.30265 * 0.02 / math.sqrt(3)), 1e-5)
    assert math.isnan(seed_ci([0.6]).ci95)
    seeds = np.random.default_rng(4).normal(0.6, 0.02, (TRIALS, 3))
    assert np.mean([abs(m - 0.6) <= c for m, c in map(seed_ci, seeds)]) == pytest.approx(
        0.95, abs=SLACK
    )
    normal = [abs(m - 0.6) <= c for m, c in map(mean_ci, seeds)]  # control: 1.96 is too small for 3
    assert np.mean(normal) < 0.85


def test_holm_matches_the_worked_example_and_keeps_the_family_level():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]).size == 0
    null = np.random.default_rng(5).uniform(size=(TRIALS, 6))
    assert np.mean([holm(p).min() < 0.05 for p in null]) <= 0.05 + SLACK
    assert np.mean(null.min(axis=1) < 0.05) > 0.2  # control: unadjusted, one in four cries wolf


TRUTH, FOUND = [0, 0, 0, 1, 1, 1], [0, 0, 1, 1, 2, 2]  # scikit-learn's documented example


def test_cluster_agreement_has_the_known_values():
    assert contingency(TRUTH, FOUND).tolist() == [[2, 1, 0], [0, 1, 2]]
    assert purity(TRUTH, FOUND) == pytest.approx(5 / 6)
    assert ari(TRUTH, FOUND) == pytest.approx(8 / 33)
    assert nmi(TRUTH, FOUND) == pytest.approx(0.5158037429793889)


@pytest.mark.parametrize("agreement", [purity, nmi, ari])
def test_names_of_clusters_do_not_matter(agreement):
    renamed = [7, 7, 7, 3, 3, 3]
    assert agreement(TRUTH, renamed) == pytest.approx(1.0)
    assert agreement([5, 5], [1, 1]) == 1.0
    assert agreement(TRUTH, FOUND) == pytest.approx(agreement(TRUTH, [9 - c for c in FOUND]))


def test_chance_scores_nothing_except_in_purity():
    rng = np.random.default_rng(6)
    truth, found = rng.integers(0, 5, 5000), rng.integers(0, 50, 5000)
    assert abs(ari(truth, found)) < 0.01
    assert nmi(truth, found) < 0.03
    assert purity(truth, found) > purity(truth, found % 2)  # why it never stands alone
    assert nmi(truth, np.zeros(5000)) == ari(truth, np.zeros(5000)) == 0.0


def test_effective_clusters_is_the_exponential_of_entropy():
    assert effective_clusters([25, 25, 25, 25]) == pytest.approx(4.0)
    assert effective_clusters([0.5, 0.5, 0.0]) == pytest.approx(2.0)
    assert effective_clusters([10, 0, 0]) == 1.0


def test_cluster_agreement_refuses_unequal_lists():
    with pytest.raises(DataError, match="equal lists"):
        nmi([0, 1], [0])


def test_tasks_that_an_honest_interval_needs():
    """Where it asks for more than there are, 1.96 standard errors hold the mean too seldom."""
    rng = np.random.default_rng(11)
    for draw, mean, honest in (
        (lambda: rng.binomial(25, rng.beta(10, 2, 600)) / 25, 10 / 12, True),
        (lambda: rng.exponential(1, 600), 1.0, True),
        (lambda: rng.lognormal(0, 2, 600), np.exp(2), False),
    ):
        lists = [draw() for _ in range(500)]
        found = [mean_ci(scores) for scores in lists]
        held = np.mean([abs(one.mean - mean) <= one.ci95 for one in found])
        warned = np.mean([tasks_needed(scores) > 600 for scores in lists])
        assert (held > 0.92, warned < 0.05) == (honest, honest)
        assert warned < 0.05 or warned > 0.95
    assert tasks_needed([0.4] * 600) == 0
    assert tasks_needed([0.0] * 2) == 0
