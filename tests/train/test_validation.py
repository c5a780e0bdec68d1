"""Which checkpoint is kept: the one that makes most of validation tasks, as it would be used."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny import tiny_config

from metarun import checkpoint
from metarun.records import read
from metarun.run import run_job

pytestmark = pytest.mark.usefixtures("undrawn")


def test_a_checkpoint_is_kept_for_what_the_best_of_its_rates_makes_of_it(tmp_path: Path) -> None:
    """Where a rate is chosen at the end, validation does not judge by the first of the grid."""
    words = ("algo=transfer", "budget.total=60", "validation.every=20")
    grids = {"both": "[1e-9,0.02]", "alone": "[1e-9]"}
    for name, grid in grids.items():
        assert run_job(tiny_config(*words, f"algo.lr_grid={grid}"), tmp_path / name) == 0
    both, alone = ([r for r in read(tmp_path / name) if r["kind"] == "validate"] for name in grids)
    assert [r["rates"]["inner_lr"] for r in both] == pytest.approx([0.02] * 3)
    assert all(r["mse"]["mean"] < 0.99 * r["mse"]["by_step"][0] for r in both)
    assert all(r["mse"]["mean"] > 0.99 * r["mse"]["by_step"][0] for r in alone)
    found = json.loads((tmp_path / "both" / "outcome.json").read_text())
    assert found["chosen"]["inner_lr"] == pytest.approx(0.02)
    _, meta = checkpoint.load(tmp_path / "both" / "checkpoints" / "best.safetensors")
    assert meta["state"]["best"] == pytest.approx(-min(r["mse"]["mean"] for r in both))
