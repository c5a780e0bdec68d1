"""Devices: none is given twice, none is lost, and a dead holder gives its own back."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from metarun.errors import StorageError
from metarun.sweeps import lease
from metarun.sweeps.lease import devices, granted, listed_devices

ROOT = Path(__file__).parents[2]
HOLDER = """
import random, sys, time
from pathlib import Path
from metarun.sweeps.lease import lease
folder, names, share, number, how = sys.argv[1:]
random.seed(int(number))
names = names.split(",")
for turn in range(4):
    if how == "leased":
        context = lease(names, int(share), Path(folder, "locks"))
        (name,) = context.__enter__()
    else:
        name = names[(int(number) + turn) % len(names)]
    begin = time.monotonic()
    time.sleep(random.uniform(0.02, 0.2))
    with Path(folder, "log").open("a") as log:
        log.write(f"{name} {begin} {time.monotonic()}\\n")
    if how == "leased":
        context.__exit__(None, None, None)
"""
KEEPER = """
import sys, time
from pathlib import Path
from metarun.sweeps.lease import lease
with lease(["0"], 1, Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""

BOTH = """
import sys
from pathlib import Path
from metarun.sweeps.lease import lease
with lease(["a", "b"], 1, Path(sys.argv[1]), 2) as held:
    print(",".join(held))
"""


def start(program: str, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", program, *words],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )


def all_end(holders: list[subprocess.Popen[str]]) -> bool:
    return all(holder.communicate(timeout=30) == ("", None) for holder in holders)


def most_at_once(log: Path) -> int:
    spans = [line.split() for line in log.read_text().splitlines()]
    found = 0
    for device in {name for name, *_ in spans}:
        mine = [(float(begin), float(end)) for name, begin, end in spans if name == device]
        found = max(found, *(sum(b < begin < e for b, e in mine) + 1 for begin, _ in mine))
    return found


@pytest.mark.parametrize("share", [1, 2])
def test_no_device_is_given_twice(tmp_path: Path, share: int) -> None:
    holders = [start(HOLDER, str(tmp_path), "a,b", str(share), str(n), "leased") for n in range(6)]
    assert all_end(holders)
    lines = (tmp_path / "log").read_text().splitlines()
    assert len(lines) == 24
    assert {line.split()[0] for line in lines} == {"a", "b"}
    assert most_at_once(tmp_path / "log") <= share


def test_control_counting_jobs_gives_devices_twice(tmp_path: Path) -> None:
    holders = [start(HOLDER, str(tmp_path), "a,b", "1", str(n), "counted") for n in range(6)]
    assert all_end(holders)
    assert most_at_once(tmp_path / "log") > 1


def test_a_dead_holder_frees_its_device(tmp_path: Path) -> None:
    first = start(KEEPER, str(tmp_path))
    assert first.stdout is not None
    assert first.stdout.readline() == "held\n"
    second = start(KEEPER, str(tmp_path))
    time.sleep(0.5)
    first.send_signal(signal.SIGKILL)
    begin = time.monotonic()
    assert second.stdout is not None
    assert second.stdout.readline() == "held\n"
    assert time.monotonic() - begin < 2
    second.kill()
    for holder in (first, second):
        holder.wait()
        assert holder.stdout is not None
        holder.stdout.close()


def test_a_child_keeps_the_device_of_its_dead_parent(tmp_path: Path) -> None:
    with lease.lease(["0"], 1, tmp_path) as held:
        child = subprocess.Popen(["sleep", "60"], pass_fds=held.values())
    second = start(KEEPER, str(tmp_path))
    assert second.stdout is not None
    os.set_blocking(second.stdout.fileno(), False)
    time.sleep(1)
    assert second.stdout.readline() == ""
    child.kill()
    child.wait()
    os.set_blocking(second.stdout.fileno(), True)
    assert second.stdout.readline() == "held\n"
    second.kill()
    second.wait()
    second.stdout.close()


@pytest.mark.timeout(30)
def test_several_devices_are_taken_at_once_or_not_at_all(tmp_path: Path) -> None:
    """Two that each held one and waited for the other's would wait for ever."""
    with lease.lease(["a", "b"], 1, tmp_path):
        waiting = start(BOTH, str(tmp_path))
        time.sleep(1)
        with lease.lease(["b"], 1, tmp_path) as held:
            assert list(held) == ["b"]
    assert waiting.communicate(timeout=10)[0] == "a,b\n"


def test_locks_need_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(StorageError, match=r"launch\.lease=0"),
        lease.lease(["0"], 1, tmp_path / "file" / "below"),
    ):
        pass
    (tmp_path / "link.0").symlink_to(tmp_path / "file")
    with pytest.raises(StorageError), lease.lease(["link"], 1, tmp_path):
        pass


@pytest.mark.parametrize(
    ("visible", "found"),
    [("", []), ("-1", []), ("0,2", ["0", "2"]), (" GPU-1, GPU-2 ", ["GPU-1", "GPU-2"])],
)
def test_visible_devices(visible: str, found: list[str]) -> None:
    assert devices({"CUDA_VISIBLE_DEVICES": visible}) == found


def test_listed_devices() -> None:
    listing = (
        "GPU 0: NVIDIA H100 (UUID: GPU-aa)\n"
        "  MIG 1g.10gb     Device  0: (UUID: MIG-a0)\n"
        "  MIG 1g.10gb     Device  1: (UUID: MIG-a1)\n"
        "GPU 1: NVIDIA H100 (UUID: GPU-bb)\n"
    )
    assert listed_devices(listing) == ["MIG-a0", "MIG-a1", "GPU-bb"]


def test_what_a_job_is_granted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    local = {"workers": 2, "lease": 1}
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(7)))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    auto = {"device": "auto", "threads": None}
    with granted(local, auto, tmp_path) as one, granted(local, auto, tmp_path) as other:
        environments = [grant.environment["CUDA_VISIBLE_DEVICES"] for grant in (one, other)]
        assert environments == ["4", "5"]
        assert one.held
    for processes, names in ((1, "4"), (2, "4,5"), (None, "4,5"), (9, "4,5")):
        with granted(local, auto | {"processes": processes}, tmp_path) as grant:
            assert grant.environment == {"CUDA_VISIBLE_DEVICES": names}
            assert len(grant.held) == len(names.split(","))
    with granted(local, {"device": "cpu", "threads": None}, tmp_path) as grant:
        assert grant.environment == {"OMP_NUM_THREADS": "3"}
        assert grant.note == {"threads": 3}
    for launch, hardware in (
        (local, {"device": "cpu", "threads": 1}),
        ({"workers": 1, "lease": 0}, auto),
        (local, {"device": "cuda:5", "threads": 1}),
    ):
        with granted(launch, hardware, tmp_path) as grant:
            assert (grant.environment, grant.held) == ({}, ())
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    with granted(local, {"device": "cpu", "threads": None}, tmp_path) as grant:
        assert grant.environment == {}
