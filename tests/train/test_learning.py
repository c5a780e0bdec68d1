"""Training on images learns something: what no check of single steps shows of their sum."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from metarun.config import compose_job
from metarun.run import run_job

SHORT = (
    "dataset=glyphs",
    "hardware=cpu",
    "hardware.threads=1",
    "model.filters=16",
    "outer.batch=16",
    "outer.lr=0.003",
    "task.test_queries=5",
    "budget.total=150",
    "validation.every=75",
    "validation.tasks=30",
    "test.tasks=100",
)


def accuracy(folder: Path, *words: str) -> float:
    assert run_job(compose_job([*SHORT, *words]), folder) == 0
    return json.loads((folder / "outcome.json").read_text())["test"]["accuracy"]["mean"]


@pytest.mark.slow
def test_trained_starts_are_better_than_none(tmp_path: Path) -> None:
    floor = accuracy(tmp_path / "scratch", "algo=scratch")
    for algo in ("transfer", "maml", "protonet"):
        found = accuracy(tmp_path / algo, f"algo={algo}")
        assert found > floor + 0.08, f"{algo}: {found:.3f}, scratch: {floor:.3f}"
