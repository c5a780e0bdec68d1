"""The cache of decoded images: whole or absent, repaired when damaged, never required."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from coded import coded_pictures

from metarun.data.images import Pictures
from metarun.data.store import stored

SCRIPT = Path(__file__).with_name("first_use.py")


class Builder:
    """Builds the same pictures each time, and counts the times."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> Pictures:
        self.calls += 1
        return coded_pictures([3, 4, 5])


def check(found: Pictures) -> None:
    expected = coded_pictures([3, 4, 5])
    assert torch.equal(found.pixels, expected.pixels)
    assert found[1:] == expected[1:]


def test_the_second_use_reads_what_the_first_has_built(cache: Path):
    build = Builder()
    for _ in range(3):
        check(stored("set/one", build))
    assert build.calls == 1
    assert [p.name[:4] for p in sorted((cache / "set").iterdir())] == [".loc", "one-"]
    check(stored("set/two", build))
    assert build.calls == 2


def test_a_damaged_cache_is_built_again(cache: Path):
    build = Builder()
    check(stored("set/one", build))
    (path,) = (cache / "set").glob("one*.safetensors")
    whole = path.read_bytes()
    damaged = [whole[:size] for size in range(0, len(whole), 7)]
    for place in range(0, len(whole), 3):
        flipped = bytearray(whole)
        flipped[place] ^= 4
        damaged.append(bytes(flipped))
    for data in damaged:
        path.write_bytes(data)
        check(stored("set/one", build))
    assert build.calls > 0.9 * len(damaged)  # a flip in the padding of the header harms nothing
    assert len(list(path.parent.iterdir())) == 2


def test_what_a_killed_writer_left_is_removed(cache: Path):
    left = cache / "set" / ".metarun-0123abcd.tmp"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"half")
    check(stored("set/one", Builder()))
    assert not left.exists()


@pytest.mark.parametrize("obstacle", ["below a file", "a folder of its name"])
def test_a_cache_that_cannot_be_written_is_done_without(cache: Path, obstacle: str):
    if obstacle == "below a file":
        cache.parent.mkdir()
        cache.write_text("not a folder")
    else:
        stored("set/one", Builder())
        (path,) = (cache / "set").glob("one*.safetensors")
        path.unlink()
        path.mkdir()
    build = Builder()
    check(stored("set/one", build))
    check(stored("set/one", build))
    assert build.calls == 2


def first_use(mode: str, folder: Path) -> dict[str, int]:
    result = subprocess.run(
        [sys.executable, str(SCRIPT), mode, str(folder)],
        env={"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.mark.faults
def test_eight_processes_build_once(tmp_path: Path):
    assert first_use("crowd", tmp_path) == {"right": 8, "builds": 1}


@pytest.mark.faults
def test_without_locks_eight_processes_are_still_right(tmp_path: Path):
    found = first_use("lockless", tmp_path)
    assert found["right"] == 8
    assert found["builds"] > 1  # the control of the test above: it is the lock that saves work


@pytest.mark.faults
def test_killed_builders_are_repaired(tmp_path: Path):
    assert first_use("killed", tmp_path) == {"wrong": 0, "left": 0}


@pytest.mark.faults
def test_kills_have_power(tmp_path: Path):
    """The control: writing in place must be caught."""
    assert first_use("control", tmp_path)["wrong"] >= 3
