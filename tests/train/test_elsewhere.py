"""A run that goes on with another number of threads: told once, and the same but for rounding."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny import tiny_config

from metarun import checkpoint
from metarun.records import merged, read
from metarun.run import run_job

pytestmark = pytest.mark.usefixtures("undrawn")

CONFIG = ("algo=maml", "hardware.threads=null", "checkpoints.keep=9")


def losses(folder: Path) -> list[float]:
    return [record["loss"] for record in merged(read(folder)) if record["kind"] == "train"]


def stopped_at(folder: Path, step: int) -> None:
    """Leave of a finished run what a stop after so many meta-steps does."""
    for path in (folder / "checkpoints").glob("step-*.safetensors"):
        if path.stem != checkpoint.step_name(step):
            path.unlink()
    (folder / "outcome.json").unlink()


@pytest.fixture(autouse=True)
def _threads() -> object:
    yield
    torch.set_num_threads(1)


@pytest.mark.parametrize(("threads", "told"), [("1", 0), ("2", 1)])
def test_other_threads_are_told_once(
    threads: str, told: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert run_job(tiny_config(*CONFIG), tmp_path) == 0
    before = losses(tmp_path)
    stopped_at(tmp_path, 4)
    monkeypatch.setenv("OMP_NUM_THREADS", threads)
    capsys.readouterr()
    assert run_job(tiny_config(*CONFIG), tmp_path) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert said.count("warning: going on with threads 1 before, 2 now: the last bits may") == told
    assert said.count("warning:") == told
    assert len(before) == 12
    assert losses(tmp_path) == pytest.approx(before, rel=1e-5)


def test_a_checkpoint_that_does_not_say_where_it_was_written_is_gone_on_from(
    tmp_path: Path, capsys
) -> None:
    assert run_job(tiny_config(*CONFIG), tmp_path) == 0
    stopped_at(tmp_path, 4)
    (path,) = (tmp_path / "checkpoints").glob("step-*")
    tensors, meta = checkpoint.load(path)
    assert set(meta.pop("machine")) == {"threads", "processes", "device", "torch"}
    checkpoint.save(path.parent, path.stem, tensors, meta, keep=9)
    capsys.readouterr()
    assert run_job(tiny_config(*CONFIG), tmp_path) == 0
    captured = capsys.readouterr()
    assert "going on from meta-step 4" in captured.out
    assert "warning" not in captured.err
