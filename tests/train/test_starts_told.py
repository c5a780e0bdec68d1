"""What a run says of several starts that never parted, or that collapsed."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny import tiny_config

from metarun.report.statistics import collapsed
from metarun.run import run_job


@pytest.mark.parametrize("algo", ["clustered", "tsamaml"])
@pytest.mark.parametrize(("warm_up", "said"), [(2, False), (1_000, True)])
def test_a_budget_that_ends_in_the_warm_up_is_told(
    algo: str, warm_up: int, said: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    some = ("budget.unit=examples", "budget.total=200", f"algo.warm_up={warm_up}")
    assert run_job(tiny_config(f"algo={algo}", "algo.starts=2", *some), tmp_path) == 0
    assert ("before the starts are on their own" in capsys.readouterr().err) is said


@pytest.mark.parametrize("collapse", [True, False])
def test_starts_of_which_nearly_all_tasks_use_one_are_told(
    collapse: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    """After so little training no choice is one-sided by itself: the bound is moved."""
    monkeypatch.setattr("metarun.report.statistics.FEW_STARTS", 1.0 if collapse else 0.0)
    words = ("algo=mixture", "algo.weights=gate", "algo.starts=2", "test.tasks=30")
    assert run_job(tiny_config(*words), tmp_path) == 0
    said = " ".join(capsys.readouterr().err.split())
    advice = "more of algo.balance, algo.restart and algo.balance_loss may help"
    assert ("of 2 starts; where they are of several modes, " + advice in said) is collapse


@pytest.mark.parametrize(
    ("usage", "said"),
    [
        ([1.0], False),
        ([0.97, 0.03], True),
        ([0.9, 0.1], False),
        ([0.066, 0.0, 0.074, 0.86, 0.0], True),
        ([0.8, 0.05, 0.05, 0.05, 0.05], False),
        ([0.2] * 5, False),
    ],
)
def test_a_collapse_is_a_fifth_of_the_way_from_one_start_to_all(
    usage: list[float], said: bool
) -> None:
    assert collapsed(usage) is said
