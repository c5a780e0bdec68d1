"""Budgets stop training, in each of their units."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny import tiny_config

from metarun.run import run_job

pytestmark = pytest.mark.usefixtures("undrawn")


@pytest.mark.parametrize(("unit", "total", "steps"), [("examples", 400, 5), ("meta_steps", 3, 3)])
def test_budgets_stop_training(unit: str, total: int, steps: int, tmp_path: Path) -> None:
    config = tiny_config("algo=maml", f"budget.unit={unit}", f"budget.total={total}")
    assert run_job(config, tmp_path) == 0
    assert json.loads((tmp_path / "outcome.json").read_text())["cost"]["meta_steps"] == steps


def test_a_budget_of_operations_or_seconds_stops_training(tmp_path: Path) -> None:
    config = tiny_config("algo=maml", "budget.unit=flops", "budget.total=1000000")
    assert run_job(config, tmp_path / "flops") == 0
    cost = json.loads((tmp_path / "flops" / "outcome.json").read_text())["cost"]
    each, steps = cost["flops_per_meta_step"], cost["meta_steps"]
    assert each * (steps - 1) < 1_000_000 <= each * steps
    config = tiny_config("algo=maml", "budget.unit=seconds", "budget.total=0.2")
    assert run_job(config, tmp_path / "seconds") == 0
    cost = json.loads((tmp_path / "seconds" / "outcome.json").read_text())["cost"]
    assert cost["train_seconds"] >= 0.2
