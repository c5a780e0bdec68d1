"""Full disks, vanished folders and folders in use; all in real runs."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from children import ROOT, kill, python

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]

TINY = [
    "dataset=sinusoid",
    "algo=maml",
    "model.hidden=[8]",
    "outer.batch=4",
    "budget.total=40",
    "checkpoints.every=1",
    "validation.every=20",
    "validation.tasks=8",
    "validation.steps=2",
    "test.tasks=8",
    "test.steps=2",
    "hardware=cpu",
    "hardware.threads=1",
    "name=run",
]
LIMITED = """
import resource, sys
from metarun.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, 12_000))
sys.exit(main(sys.argv[1:]))
"""
MOUNTED = """
set -e
mount -t tmpfs -o size={size},{options} tmpfs "$1"
shift
set +e
"$@" > "$METARUN_LOG" 2>&1
echo $?
mount -o remount,size=50m,rw "$METARUN_OUTPUTS"
"$@" >> "$METARUN_LOG" 2>&1
echo $?
"""


def script(name: str, tmp_path: Path) -> dict:
    """Carry out a script of this folder; return what it counted."""
    process = python(Path(__file__).with_name(name), env={"METARUN_OUTPUTS": str(tmp_path)})
    out, error = process.communicate(timeout=590)
    assert out, error
    print(out, error)
    return json.loads(out)


def metarun(outputs: Path, *words: str) -> tuple[int, str]:
    """Give a command; return its exit code and what it said on standard error."""
    process = python("-m", "metarun", *words, env={"METARUN_OUTPUTS": str(outputs)})
    error = process.communicate(timeout=120)[1]
    return process.returncode, error


def complaint(error: str) -> str:
    """Return the only line of complaint; a traceback fails the test."""
    assert "Traceback" not in error
    (line,) = [line for line in error.splitlines() if line.startswith("metarun: ")]
    return line


def test_a_disk_full_at_any_write_stops_the_run_and_loses_nothing(tmp_path):
    counts = script("full.py", tmp_path)
    assert counts["points"] >= 30
    assert counts["code 5"] == counts["said so"] == counts["bitwise"] == counts["points"]
    assert counts["kept one"] >= counts["points"] / 3
    assert counts["temporaries"] == 0


def test_twenty_starts_one_owner(tmp_path):
    found = script("owners.py", tmp_path)
    assert found["codes"] == [7] * 19
    assert found["told"] == 19
    assert found["refused_s"] < 10  # twenty processes share two cores; one alone takes 0.1 s
    assert found["takeover_s"] < 1


def test_a_file_size_limit_is_a_storage_error_and_goes_on_after_it(tmp_path):
    process = python("-c", LIMITED, *TINY, env={"METARUN_OUTPUTS": str(tmp_path)})
    error = process.communicate(timeout=120)[1]
    assert process.returncode == 5, error
    assert "File too large" in complaint(error)
    assert metarun(tmp_path, *TINY)[0] == 0
    outcome = json.loads((tmp_path / "run" / "outcome.json").read_text())
    assert outcome["status"] == "done"


@pytest.mark.parametrize(
    ("size", "options", "sweep", "words"),
    [
        ("64k", "rw", [], "No space left on device"),
        ("12k", "rw", ["-m", "seed=0,1"], "No space left on device"),  # not a job can start
        ("50m", "ro", [], "Read-only file system"),
    ],
)
def test_a_real_file_system_that_is_full_or_read_only(tmp_path, size, options, sweep, words):
    place, log = tmp_path / "mounted", tmp_path / "log"
    place.mkdir()
    text = MOUNTED.format(size=size, options=options)
    command = [
        "unshare",
        "-rm",
        "sh",
        "-c",
        text,
        "sh",
        str(place),
        sys.executable,
        "-m",
        "metarun",
    ]
    environment = {
        "METARUN_OUTPUTS": str(place),
        "METARUN_LOG": str(log),
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "PATH": "/usr/bin:/bin:/usr/sbin:/sbin",
    }
    done = subprocess.run(
        [*command, *sweep, *TINY], env=environment, capture_output=True, text=True, timeout=120
    )
    if not done.stdout:
        pytest.skip(f"no mount is allowed here: {done.stderr.strip()}")
    assert done.stdout.split() == ["5", "0"], log.read_text()
    assert words in complaint(log.read_text())


def test_outputs_under_a_regular_file_are_refused_before_the_first_step(tmp_path):
    (tmp_path / "file").write_text("mine")
    code, error = metarun(tmp_path / "file", *TINY)
    assert code == 5
    assert "Not a directory" in complaint(error)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_folder_deleted_under_a_run_ends_it_and_is_not_made_again(tmp_path):
    process = python(
        *("-m", "metarun", *TINY, "budget.total=1000000"), env={"METARUN_OUTPUTS": str(tmp_path)}
    )
    folder, deadline = tmp_path / "run", time.monotonic() + 60
    while not list(folder.glob("checkpoints/step-*")):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    folder.rename(tmp_path / "away")
    shutil.rmtree(tmp_path / "away")
    try:
        error = process.communicate(timeout=30)[1]
    finally:
        kill(process)
    assert process.returncode == 5
    complaint(error)
    assert list(tmp_path.iterdir()) == []
