"""No secret of the environment is found again in anything that a run leaves or says."""

from __future__ import annotations

import os
import time

import pytest
from children import python

from metarun.tracking.start import LOG

pytestmark = pytest.mark.slow

CANARY = "canary-5d41402abc"
COMMAND = [
    *("dataset=sinusoid", "algo=fomaml", "model.hidden=[8]", "budget.total=4", "name=run"),
    *("validation.every=2", "validation.tasks=4", "validation.steps=1", "test.tasks=4"),
    *("test.steps=1", "hardware=cpu", "tracking=wandb", f"tracking.tags=[a,{CANARY}-AN_API_KEY]"),
]


def test_a_tracked_run_keeps_every_secret(tmp_path):
    names = ("AN_API_KEY", "HF_TOKEN", "SECRET_OF_MINE", "PASSWORD")
    environment = {name: f"{CANARY}-{name}" for name in names} | {
        "METARUN_OUTPUTS": str(tmp_path),
        "HOME": str(tmp_path),
        "WANDB_MODE": "offline",
    }
    process = python("-m", "metarun", *COMMAND, env=environment)
    said = "".join(process.communicate(timeout=120))
    assert process.returncode == 0, said
    deadline = time.monotonic() + 60
    while "mirrored" not in (tmp_path / "run" / LOG).read_text():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert CANARY not in said
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 12
    for path in files:
        assert CANARY.encode() not in path.read_bytes(), path
    assert CANARY not in " ".join(os.environ.values())
