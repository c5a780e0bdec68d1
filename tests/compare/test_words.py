"""Numbers as people read them."""

import math

import pytest

from metarun.report import words


@pytest.mark.parametrize(
    ("mean", "ci95", "metric", "expected"),
    [
        (0.6124, 0.0112, "accuracy", "61.2 ± 1.1 %"),
        (0.6124, None, "accuracy", "61.2 %"),
        (1.0, 0.0, "accuracy", "100.0 ± 0.0 %"),
        (0.41234, 0.0214, "mse", "0.412 ± 0.021"),
        (0.41234, 0.071, "mse", "0.41 ± 0.07"),
        (312.4, 21.0, "mse", "312 ± 21"),
        (0.000412, 0.000021, "mse", "0.000412 ± 0.000021"),
        (0.0123, None, "mse", "0.0123"),
        (3875062.0, None, "mse", "3.88e+06"),
        (1963449590766108672.0, 0.0, "mse", "1.96e+18 ± 0"),
        (4.2e-9, 1.3e-10, "mse", "4.2e-09 ± 1.3e-10"),
        (4.2e-9, 0.013, "mse", "0.000 ± 0.013"),
        (0.0, None, "mse", "0.0"),
        (math.nan, 0.1, "mse", words.DASH),
        (0.5, math.nan, "accuracy", "50.0 %"),
    ],
)
def test_score(mean, ci95, metric, expected):
    assert words.score(mean, ci95, metric) == expected


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ((), ""),
        ((0,), "0"),
        ((0, 1, 2), "0, 1, 2"),
        ((0, 1, 2, 3), "0 to 3"),
        ((1, 3, *range(7, 67), 99), "1, 3, 7 to 66, 99"),
        ((3, 2, 1, 0), "3, 2, 1, 0"),
    ],
)
def test_many_in_a_row_are_a_range(numbers, expected):
    assert words.listed(numbers) == expected


def test_signed_has_a_sign_and_a_true_minus():
    assert words.signed(0.0914, 0.0088, "accuracy") == "+9.1 ± 0.9"
    assert words.signed(-0.0914, 0.0088, "accuracy") == f"{words.MINUS}9.1 ± 0.9"
    assert words.signed(1.92, 0.1, "mse") == "+1.92 ± 0.10"
    assert words.signed(4.2e-9, 1.3e-10, "mse") == "+4.2e-09 ± 1.3e-10"
    assert words.signed(-1.96e18, 1e17, "mse") == f"{words.MINUS}1.96e+18 ± 1e+17"


@pytest.mark.parametrize("value", [-0.0004, -0.0, 0.0, 0.0004])
def test_what_is_zero_once_rounded_has_no_sign(value):
    assert words.signed(value, 0.106, "accuracy") == "0.0 ± 10.6"
    assert words.signed(value, None, "accuracy") == "0.0"
    assert words.score(value, 0.106, "accuracy") == "0.0 ± 10.6 %"


@pytest.mark.parametrize(
    ("p", "expected"), [(0.0, "<0.001"), (0.0314, "0.031"), (0.0999, "0.100"), (0.7, "0.70")]
)
def test_p_values(p, expected):
    assert words.bare_p(p) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0, "0 s"),
        (0.42, "0.4 s"),
        (63.2, "63 s"),
        (603, "10 min 3 s"),
        (7500, "2 h 5 min"),
        (None, words.DASH),
        (math.inf, words.DASH),
    ],
)
def test_seconds(value, expected):
    assert words.seconds(value) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0, "0"),
        (999, "999 FLOP"),
        (1.1e13, "11.0 TFLOP"),
        (9.999e14, "1.0 PFLOP"),
        (None, words.DASH),
    ],
)
def test_flop(value, expected):
    assert words.flop(value) == expected


def test_memory_budget_and_shape():
    assert words.memory(480 * 2**20) == "480 MiB"
    assert words.budget({"unit": "meta_steps", "total": 1000}) == "1,000 meta-steps"
    assert words.budget({"unit": "seconds", "total": 0.5}) == "0.5 seconds"
    assert words.budget({"unit": "flops", "total": 1e15}) == "1.0 PFLOP"
    assert words.budget({}) == "not recorded"
    assert words.shape({"ways": 5, "shots": 1}, "accuracy") == "5-way 1-shot"
    assert words.shape({"ways": 1, "shots": 10}, "mse") == "10-point regression"


def test_one_of_a_thing_is_singular():
    assert words.budget({"unit": "meta_steps", "total": 1}) == "1 meta-step"
    assert words.budget({"unit": "examples", "total": 1}) == "1 training example"
    assert words.budget({"unit": "seconds", "total": 1.0}) == "1 second"
    assert words.training({"meta_steps": 1}).startswith("1 meta-step, ")
    assert words.training({"meta_steps": 0}).startswith("0 meta-steps, ")
    assert words.counted(None, "step") == f"{words.DASH} steps"
    happened = words.happened({"skipped_steps": 1, "dropped_tasks": 1200})
    assert happened == ["1 skipped step", "1,200 dropped tasks"]


def test_ratio_and_lists():
    assert [words.ratio(a, 1) for a in (1.02, 3.42, 0.35, 27.4)] == [
        "the same",
        "3.4 times the",
        "0.35 times the",
        "27 times the",
    ]
    assert [words.several(list("abc")[:n]) for n in range(4)] == ["", "a", "a and b", "a, b and c"]


def test_chosen_names_every_rate():
    assert words.chosen({"steps": 1, "inner_lr": 0.4}) == "1 step, inner_lr 0.4"
    assert words.chosen({"steps": 3}) == "3 steps"
