"""Many processes meet an empty cache, or are killed in one; run by test_store.py, prints JSON.

Usage: first_use.py crowd|lockless|killed|control FOLDER
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from metarun.data.images import Pictures
from metarun.data.store import stored
from metarun.files import TEMPORARY

TRIALS = 20
PIXELS = torch.arange(4_000_000).to(torch.uint8).view(-1, 1, 20, 20)
EXPECTED = int(PIXELS.long().sum())


def in_child(work: Callable[[], None]) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            os._exit(1)
    return pid


def build() -> Pictures:
    """Take a while, and leave a mark for each time."""
    descriptor = os.open(folder / "builds", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(descriptor, b"x")
    os.close(descriptor)
    time.sleep(0.03)
    return Pictures(PIXELS, (len(PIXELS),), ("all",))


def use() -> None:
    found = stored("set/pictures", build)
    assert int(found.pixels.long().sum()) == EXPECTED
    assert found.counts == (len(PIXELS),)


def crowd() -> dict[str, int]:
    start = time.time() + 0.3

    def begin_together() -> None:
        time.sleep(start - time.time())
        use()

    children = [in_child(begin_together) for _ in range(8)]
    right = sum(os.waitpid(pid, 0)[1] == 0 for pid in children)
    return {"right": right, "builds": (folder / "builds").stat().st_size}


def in_place() -> None:
    """The control: a cache without a temporary file, believed because it exists."""
    path = folder / "in-place"
    if not path.exists():
        with path.open("wb", buffering=0) as file:
            for part in PIXELS.numpy().tobytes(), b"end":
                time.sleep(0.03)
                file.write(part)
    assert path.read_bytes().endswith(b"end")


def killed(first_use: Callable[[], None]) -> dict[str, int]:
    began = time.monotonic()
    os.waitpid(in_child(first_use), 0)
    whole = time.monotonic() - began
    source, wrong = random.Random(7), 0
    for _ in range(TRIALS):
        for path in (*folder.glob("cache/metarun/set/pictures*"), folder / "in-place"):
            path.unlink(missing_ok=True)
        victim = in_child(first_use)
        time.sleep(source.uniform(0, whole))
        os.kill(victim, signal.SIGKILL)
        os.waitpid(victim, 0)
        wrong += os.waitpid(in_child(first_use), 0)[1] != 0
    left = len(list(folder.glob(f"cache/metarun/set/{TEMPORARY}")))
    return {"wrong": wrong, "left": left}


def without_locks(descriptor: int, operation: int) -> None:
    raise OSError(errno.ENOLCK, "no locks available")


folder = Path(sys.argv[2])
os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
torch.set_num_threads(1)
match sys.argv[1]:
    case "crowd":
        result = crowd()
    case "lockless":
        fcntl.flock = without_locks
        result = crowd()
    case "killed":
        result = killed(use)
    case _:
        result = killed(in_place)
print(json.dumps(result))
