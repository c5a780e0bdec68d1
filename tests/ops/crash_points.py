"""Kill a checkpoint writer at every point where a kill can matter, and see what is left.

Run as a script, so that it may fork: prints one JSON object, by writer, with the number of points
and how many of them left a file that does not load (corrupt) or none at all (vanished).
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from metarun import checkpoint, files
from metarun.errors import CheckpointError

STRIDE = 32  # bytes between two kills inside a write
MEMORY = "/dev/shm" if os.path.isdir("/dev/shm") else None  # order is tested, not power loss
Writer = Callable[[Path, bytes], None]


def in_place(path: Path, data: bytes) -> None:
    """Control: open the file and write it."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    files.write_all(descriptor, data)
    os.fsync(descriptor)
    os.close(descriptor)


def delete_then_rename(path: Path, data: bytes) -> None:
    """Control: write beside, delete the old one, give the new one its name."""
    beside = path.with_suffix(".new")
    in_place(beside, data)
    path.unlink(missing_ok=True)
    os.rename(beside, path)


def save(folder: Path, name: str, number: int, writer: Writer) -> None:
    """Save a checkpoint whose content is `number`."""
    checkpoint.write_atomic = writer
    checkpoint.save(folder, name, {"w": torch.full((300,), number)}, {"step": number}, keep=1)


def kill_at(point: int) -> None:
    """Make this process die at the given point of what it does to files from now on."""
    left = [point]

    def tick() -> None:
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left[0] -= 1

    def around(call: Callable) -> Callable:
        def wrapped(*args, **named):
            tick()
            result = call(*args, **named)
            tick()
            return result

        return wrapped

    write = os.write

    def piecewise(descriptor: int, data: bytes) -> int:
        for first in range(0, len(data), STRIDE):
            tick()
            write(descriptor, data[first : first + STRIDE])
        return len(data)

    os.write = piecewise
    for name in ("open", "fsync", "replace", "rename", "unlink", "close"):
        setattr(os, name, around(getattr(os, name)))


def survives(folder: Path, name: str) -> str:
    """Tell what a reader finds after the kill."""
    try:
        if name == checkpoint.BEST:
            path = folder / "best.safetensors"
            if not path.exists():
                return "vanished"
            tensors, meta = checkpoint.load(path)
        else:
            found = checkpoint.newest(folder)
            if found is None:
                return "vanished"
            tensors, meta = found.tensors, found.meta
    except CheckpointError:
        return "corrupt"
    whole = meta["step"] in (1, 2) and bool((tensors["w"] == meta["step"]).all())
    return "whole" if whole else "corrupt"


def enumerate_points(name: str, writer: Writer) -> dict[str, int]:
    """Replace checkpoint 1 by checkpoint 2, once for every point, killed there."""
    counts = {"points": 0, "whole": 0, "corrupt": 0, "vanished": 0}
    names = (name, name) if name == checkpoint.BEST else ("step-1", "step-2")
    while True:
        with tempfile.TemporaryDirectory(dir=MEMORY) as place:
            folder = Path(place)
            save(folder, names[0], 1, files.write_atomic)
            if (child := os.fork()) == 0:
                kill_at(counts["points"])
                save(folder, names[1], 2, writer)
                os._exit(0)
            _, status = os.waitpid(child, 0)
            state = survives(folder, name)
            if not os.WIFSIGNALED(status):
                assert state == "whole"
                return counts
            counts["points"] += 1
            counts[state] += 1


if __name__ == "__main__":
    torch.set_num_threads(1)
    found = {
        "ours, best": enumerate_points(checkpoint.BEST, files.write_atomic),
        "ours, step": enumerate_points("step", files.write_atomic),
        "in_place": enumerate_points(checkpoint.BEST, in_place),
        "delete": enumerate_points(checkpoint.BEST, delete_then_rename),
    }
    json.dump(found, sys.stdout)
