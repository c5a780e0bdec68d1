"""No process outlives the one that it works for; and without the lifeline it would."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CHILD = """
import os, sys, time
from metarun import lifeline
how, other = sys.argv[1], int(sys.argv[2])
if how == "polled":
    del os.pidfd_open
{"parent": lifeline.die_with_parent, "owner": lifeline.die_with, "polled": lifeline.die_with,
 "none": lambda pid: None}[how](other)
print(os.getpid(), flush=True)
time.sleep(60)
"""
PARENT = """
import os, subprocess, sys, time
subprocess.Popen([sys.executable, "-c", *sys.argv[1:], str(os.getpid())], start_new_session=True)
time.sleep(60)
"""


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]
    except FileNotFoundError:
        return False
    return state != "Z"


@pytest.mark.parametrize(
    ("how", "dies"), [("parent", True), ("owner", True), ("polled", True), ("none", False)]
)
def test_children_die_with_their_parent(how: str, dies: bool) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, CHILD, how],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 2
    while alive(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert alive(child) != dies
    if alive(child):
        os.kill(child, signal.SIGKILL)


def test_a_parent_that_is_dead_already_is_noticed() -> None:
    dead = subprocess.Popen(["true"])
    dead.wait()
    for how in ("parent", "owner", "polled"):
        late = subprocess.run(
            [sys.executable, "-c", CHILD, how, str(dead.pid)],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            timeout=20,
            stdout=subprocess.DEVNULL,
            check=False,
        )
        assert late.returncode == -signal.SIGKILL
