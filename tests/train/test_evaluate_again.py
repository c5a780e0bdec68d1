"""A finished run, tested again: in another precision, elsewhere, with scores that are none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny import tiny_config

from metarun import evaluate_again
from metarun.run import run_job


def evaluated(run: Path, *overrides: str) -> Path:
    """Evaluate a run; return the folder that this left behind."""
    before = set(run.glob("evaluations/*"))
    assert evaluate_again.main([str(run), *overrides]) == 0
    (folder,) = set(run.glob("evaluations/*")) - before
    return folder


@pytest.mark.parametrize(("trained", "again"), [("float32", "float64"), ("float64", "float32")])
def test_the_precision_may_be_another(trained: str, again: str, tmp_path: Path) -> None:
    assert run_job(tiny_config("algo=maml", f"hardware.dtype={trained}"), tmp_path) == 0
    folder = evaluated(tmp_path, f"hardware.dtype={again}")
    scores, before = (np.load(place / "scores.npz")["mse"] for place in (folder, tmp_path))
    np.testing.assert_allclose(scores, before, rtol=1e-4)
    assert (scores != before).any()
