"""The same command, stopped and given again from anywhere, ends as if nothing had been."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from children import ROOT

from metarun import checkpoint
from metarun.records import merged, read

pytestmark = pytest.mark.faults

SEED = 5
STEPS = 200
COMMAND = [
    *("dataset=sinusoid", "algo=maml", "model.hidden=[8]", "outer.batch=4", "hardware=cpu"),
    *("hardware.threads=1", f"budget.total={STEPS}", "validation.every=20", "validation.tasks=8"),
    *("validation.steps=2", "test.tasks=8", "test.steps=2", "checkpoints.every=5"),
]


def start(outputs: Path, folder: Path) -> subprocess.Popen[str]:
    """Give the command from a folder."""
    path = {"METARUN_OUTPUTS": str(outputs), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "metarun", *COMMAND],
        cwd=folder,
        env=os.environ | path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def catches(process: subprocess.Popen[str]) -> bool:
    """Tell whether a process has installed its handlers; for Ctrl-C Python has one before."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    mask = int(status.split("SigCgt:")[1].split()[0], 16)
    return bool(mask >> (signal.SIGTERM - 1) & 1)


def records(outputs: Path) -> list[dict]:
    """Return the records of the only run, or none yet."""
    return [record for path in outputs.glob("*/records.jsonl") for record in read(path.parent)]


def done(outputs: Path) -> bool:
    """Tell whether the run has its final outcome."""
    found = [json.loads(path.read_text()) for path in outputs.glob("*/outcome.json")]
    return any(outcome["status"] == "done" for outcome in found)


def bits(folder: Path) -> str:
    """Hash the scores and the best meta-parameters."""
    found = hashlib.sha256()
    with np.load(folder / "scores.npz") as scores:
        for key in sorted(scores):
            found.update(scores[key].tobytes())
    tensors, _ = checkpoint.load(folder / "checkpoints" / "best.safetensors")
    for key, tensor in tensors.items():
        found.update(key.encode() + tensor.numpy().tobytes())
    return found.hexdigest()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_stopped_and_started_again_until_it_is_done(tmp_path, number):
    rng = random.Random(f"{SEED} {number}")
    outputs, stops = tmp_path / "outputs", 0
    while True:
        place = tmp_path / f"somewhere {stops}"
        place.mkdir()
        process = start(outputs, place)
        while process.poll() is None and not catches(process):
            time.sleep(0.005)
        if stops % 2:  # every other time it gets somewhere first, however slow the machine
            trained = len(records(outputs))
            while process.poll() is None and len(records(outputs)) < trained + 40:
                time.sleep(0.005)
        try:
            process.wait(rng.uniform(0, 1))
        except subprocess.TimeoutExpired:
            process.send_signal(number)
        _, error = process.communicate(timeout=60)
        assert "Traceback" not in error
        if process.returncode == 0 or done(outputs):
            break  # a signal while Python shuts down changes nothing but the code
        stops += 1
        assert process.returncode == {signal.SIGTERM: 75, signal.SIGINT: 130}[number], error
        assert stops < 60
        assert list(place.iterdir()) == []
    (run,) = outputs.iterdir()
    print(f"{stops} stops of {run.name}")
    steps = [r["step"] for r in merged(read(run)) if r["kind"] == "train"]
    assert steps == sorted(set(steps))
    assert stops >= 3
    assert json.loads((run / "outcome.json").read_text())["cost"]["meta_steps"] == STEPS
    whole = start(tmp_path / "whole", tmp_path)
    assert whole.communicate(timeout=120)[0] is None
    (reference,) = (tmp_path / "whole").iterdir()
    assert reference.name == run.name
    assert bits(reference) == bits(run)
