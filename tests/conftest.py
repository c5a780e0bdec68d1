"""What every test shares: few threads, and outputs and caches of its own."""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # for tests/oracles.py and the like
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from skips import pytest_runtest_makereport  # noqa: F401

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Factories draw by torch's own generator, which a run seeds and a test would not."""
    torch.manual_seed(0)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are made and not drawn, which takes longer than all else in a tiny run."""
    monkeypatch.setattr("metarun.report.plots.render", lambda figure, kind: b"")


@pytest.fixture
def outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An output root of the test's own."""
    root = tmp_path / "outputs"
    monkeypatch.setenv("METARUN_OUTPUTS", str(root))
    return root
