"""`metarun doctor`: what it looks at, and in which words."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from metarun import doctor

DATASETS = Path(__file__).parents[2] / "conf" / "dataset"


def test_every_data_set_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METARUN_DATA", str(tmp_path))
    names = {row.name.replace("images_background.zip", "omniglot") for row in doctor.datasets()}
    assert {path.stem for path in DATASETS.glob("*.yaml")} <= names


@pytest.mark.parametrize(("threads", "said"), [(1, " 1 thread"), (2, " 2 threads")])
def test_a_thread_is_one(threads: int, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert doctor.devices()[0].detail.endswith(said)
