"""Runs and resumes where clock, locale, home and folders are not what a programmer has."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from metarun.records import merged, read

ROOT = Path(__file__).parents[2]
ODD = "a b'c\"d, e=[f] ü→ ${x} " + "y" * 170
WORDS = ("algo=maml", "dataset=sinusoid", "debug=default", "checkpoints.keep=9", "name=run")
BACKWARDS = """
import sys, time
begun, calls = float(sys.argv[1]), iter(range(10**9))
time.time = lambda: begun - 3600 * next(calls)  # an hour back, whenever it is asked
from metarun.cli import main
sys.exit(main(sys.argv[2:]))
"""
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
TURKISH = {"LC_ALL": "tr_TR.UTF-8", "LANG": "tr_TR.UTF-8"}
UNSET = ("HOME", "XDG_CACHE_HOME", "LC_ALL", "METARUN_OUTPUTS")
PROGRAM, CLOCK = ("-m", "metarun"), ("-c", BACKWARDS)
SURROUNDINGS = {
    "ascii, an odd folder": (PROGRAM, ASCII, ODD),
    "Turkish, 1970": ((*CLOCK, "100000"), TURKISH, "plain"),
    "a clock that runs backwards": ((*CLOCK, "1.9e9"), {}, ODD),
}


def metarun(program: tuple[str, ...], place: Path, more: dict[str, str]) -> str:
    """Give the command in a folder, without a home; return what it said."""
    kept = {k: v for k, v in os.environ.items() if k not in UNSET}
    ended = subprocess.run(
        [sys.executable, *program, *WORDS],
        cwd=place,
        env=kept | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | more,
        capture_output=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr.decode()
    return ended.stdout.decode(errors="surrogateescape")


def found(run: Path) -> tuple[bytes, list[int]]:
    """Return the scores of a run, and the meta-steps that its merged records tell of."""
    with np.load(run / "scores.npz") as scores:
        bits = scores["mse"].tobytes()
    return bits, [r["step"] for r in merged(read(run)) if r["kind"] == "train"]


@pytest.mark.slow
@pytest.mark.parametrize("name", SURROUNDINGS)
def test_run_and_resume_succeed_anywhere(name: str, tmp_path: Path) -> None:
    """Goal 23: and a run that went on ends in the bits of the whole one."""
    program, more, folder = SURROUNDINGS[name]
    place = tmp_path / folder
    place.mkdir()
    assert "maml on sinusoid" in metarun(program, place, more)
    run = place / "outputs" / "run"
    whole = found(run)
    assert whole[1] == [1, 2, 3]
    (run / "outcome.json").unlink()
    (run / "checkpoints" / "step-000000003.safetensors").unlink()
    assert "going on from meta-step 2" in metarun(program, place, more)
    assert found(run) == whole
    assert json.loads((run / "outcome.json").read_text())["status"] == "done"


@pytest.mark.parametrize("closed", ["1", "2", "0 1 2"])
@pytest.mark.parametrize("verb", ["--help", "doctor"])
def test_a_stream_that_was_never_opened_is_an_empty_one(verb: str, closed: str) -> None:
    """As under a daemon: Python has None there, and the next file would get the number."""
    shut = " ".join(f"{number}>&-" for number in closed.split())
    words = f"exec {sys.executable} -m metarun {verb} {shut}"
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    ended = subprocess.run(["sh", "-c", words], capture_output=True, env=env, check=False)
    assert (ended.returncode, ended.stderr) == (0, b""), ended.stderr.decode()
    assert bool(ended.stdout) == ("1" not in closed)
