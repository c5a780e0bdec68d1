"""A run whose helpers, or which itself, are killed or asked to stop: told at once, none left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Generator
from contextlib import suppress
from pathlib import Path

import pytest
from children import kill, python

pytestmark = [pytest.mark.faults, pytest.mark.timeout(200)]

WORDS = (
    *("-m", "metarun", "algo=maml", "dataset=sinusoid", "model.hidden=[8]", "outer.batch=4"),
    *("hardware=ddp", "hardware.device=cpu", "hardware.processes=3", "hardware.threads=1"),
    *("hardware.compile=false", "validation.every=1000000", "validation.tasks=4", "test.tasks=4"),
    *("checkpoints.every=20", "name=run"),
)
ENDLESS = "budget.total=1e9"
SOON_S = 10.0  # a second on an idle machine


def children_of(pid: int) -> list[int]:
    """Return the processes that a process started which are not dead."""
    found: list[int] = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, parent, *_ = path.read_text().rpartition(")")[2].split()
            if int(parent) == pid and state != "Z":
                found.append(int(path.parent.name))
    return sorted(found)


def alive(pid: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def wait(what: Callable[[], object], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not what() and time.monotonic() < end:
        time.sleep(0.02)
    return bool(what())


@pytest.fixture
def run(outputs: Path) -> Generator[tuple[subprocess.Popen[str], list[int], Path]]:
    """Start a run of three processes and wait until it trains."""
    process, folder = python(*WORDS, ENDLESS), outputs / "run"
    assert wait(lambda: list(folder.glob("checkpoints/step-*[1-9]*")), 90)
    helpers = children_of(process.pid)
    assert len(helpers) == 2
    yield process, helpers, folder
    kill(process)
    assert wait(lambda: not any(map(alive, helpers)), SOON_S), "a helper was left behind"


def outcome(folder: Path) -> dict[str, object]:
    return json.loads((folder / "outcome.json").read_text())


def test_a_killed_helper_ends_the_run_with_one_line(run) -> None:
    process, helpers, folder = run
    os.kill(helpers[1], signal.SIGKILL)
    _, said = process.communicate(timeout=SOON_S)
    assert process.returncode == 1
    lines = [line for line in said.splitlines() if line.startswith("metarun:")]
    (line,) = [line for line in lines if "warning:" not in line]
    assert "Traceback" not in said, said
    assert "hardware.processes: process 3 of 3 (cpu) was killed by SIGKILL, as the kernel" in line
    assert outcome(folder)["status"] == "failed"
    assert str(outcome(folder)["reason"]).endswith("goes on from the last checkpoint")
    again = python(*WORDS, ENDLESS)
    try:
        assert wait(lambda: len(children_of(again.pid)) == 2, 60)
        newest = max(folder.glob("checkpoints/step-*"))
        assert wait(lambda: max(folder.glob("checkpoints/step-*")) > newest, 60)
    finally:
        kill(again)


def test_helpers_die_with_a_killed_run(run) -> None:
    process, helpers, _ = run
    process.kill()
    assert wait(lambda: not any(map(alive, helpers)), SOON_S)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_asked_to_stop_all_end_with_a_checkpoint(run, number: signal.Signals, code: int) -> None:
    """As a terminal and a cluster ask: every process at once."""
    process, helpers, folder = run
    for pid in (*helpers, process.pid):
        os.kill(pid, number)
    _, said = process.communicate(timeout=SOON_S)
    assert process.returncode == code, said
    assert "Traceback" not in said
    records = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
    end = next(record for record in records if record["kind"] == "end")
    assert max(path.stem for path in folder.glob("checkpoints/step-*")).endswith(str(end["step"]))


def test_asked_to_stop_before_helpers_are_ready_nothing_is_left(outputs: Path) -> None:
    process = python(*WORDS, ENDLESS)
    try:
        assert wait(lambda: len(children_of(process.pid)) == 2, 60)
        helpers = children_of(process.pid)
        for pid in (*helpers, process.pid):
            os.kill(pid, signal.SIGTERM)
        assert process.wait(SOON_S) == 75
        assert wait(lambda: not any(map(alive, helpers)), SOON_S)
    finally:
        kill(process)


def test_a_sweep_s_jobs_have_helpers_of_their_own(outputs: Path) -> None:
    process = python(*WORDS, "budget.total=3", "-m", "seed=0,1")
    _, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    for seed in (0, 1):
        found = json.loads((outputs / "run" / f"seed={seed}" / "outcome.json").read_text())
        assert found["hardware"]["processes"] == 3
