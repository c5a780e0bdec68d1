"""Which GPU a job gets when several run at once: a file lock for each, that dies with its owner."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from metarun.errors import StorageError

POLL_S = 0.2
INFORMATION = "/proc/driver/nvidia/gpus"


class Grant(NamedTuple):
    """What a job may use; `held` keeps the lease alive in whoever inherits it."""

    environment: dict[str, str]  # to be set before CUDA is initialised
    held: tuple[int, ...]  # file descriptors to pass to the job's process
    note: dict[str, Any]  # for the manifest


def devices(environment: Mapping[str, str] = os.environ) -> list[str]:
    """Return the GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them.

    Torch is not asked, which would initialise CUDA. Unique names are given where the driver tells
    them: its numbering and CUDA's need not agree.
    """
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        names = [name.strip() for name in visible.split(",")]
        return [] if "-1" in names else [name for name in names if name]
    if shutil.which("nvidia-smi"):
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
        if listed.returncode == 0:
            return listed_devices(listed.stdout)
    return [
        line.partition(":")[2].strip()
        for path in sorted(Path(INFORMATION).glob("*/information"))
        for line in path.read_text().splitlines()
        if line.startswith("GPU UUID")
    ]


def listed_devices(listing: str) -> list[str]:
    """Return the names in a listing of `nvidia-smi -L`; a divided GPU counts as its parts."""
    found: list[str] = []
    for line in listing.splitlines():
        name = line.rpartition("UUID: ")[2].rstrip(") ")
        if name.startswith("MIG-") and found and found[-1].startswith("GPU-"):
            found.pop()
        if name.startswith(("GPU-", "MIG-")):
            found.append(name)
    return found


@contextmanager
def lease(
    names: Sequence[str], share: int, folder: Path | None = None, count: int = 1
) -> Generator[dict[str, int]]:
    """Hold some of the devices, each of which serves `share` holders; wait until all are free.

    Yields the descriptors of the locks by the devices' names. The kernel frees a lock once every
    process that has the descriptor is dead, so a device can neither be lost nor given twice.

    Raises:
        StorageError: the folder of the locks, by default one for the whole machine, is unusable.
    """
    folder = folder or Path(tempfile.gettempdir(), "metarun-leases")
    slots = [(name, f"{name.replace('/', '_')}.{k}") for k in range(share) for name in names]
    try:
        held = _take(slots, folder, count)
    except OSError as error:
        raise StorageError(
            f"{folder}: {error.strerror}; the leases of GPUs need a folder that all users can "
            "write, so set TMPDIR, or launch.lease=0"
        ) from error
    try:
        yield held
    finally:
        _let_go(held)


@contextmanager
def granted(
    launch: Mapping[str, Any], hardware: Mapping[str, Any], folder: Path | None = None
) -> Generator[Grant]:
    """Hold what a job with these `launch` and `hardware` settings may use.

    A GPU of its own, or one a process, where there are some and the job may use them; else, with
    several workers and no thread count given anywhere, an equal part of the cores.
    """
    device, workers = str(hardware.get("device", "auto")), int(launch["workers"])
    names = devices() if launch["lease"] and device in ("auto", "cuda") else []
    if names:
        count = min(int(hardware.get("processes", 1) or len(names)), len(names))
        with lease(names, int(launch["lease"]), folder, count) as held:
            device = ",".join(held)
            yield Grant({"CUDA_VISIBLE_DEVICES": device}, tuple(held.values()), {"device": device})
    elif workers > 1 and not (hardware.get("threads") or os.environ.get("OMP_NUM_THREADS")):
        threads = max(1, len(os.sched_getaffinity(0)) // workers)
        yield Grant({"OMP_NUM_THREADS": str(threads)}, (), {"threads": threads})
    else:
        yield Grant({}, (), {})


def _take(slots: Sequence[tuple[str, str]], folder: Path, count: int) -> dict[str, int]:
    """Lock `count` devices, all or none: who waits for another must hold nothing."""
    folder.mkdir(parents=True, exist_ok=True)
    if folder.stat().st_uid == os.getuid():
        folder.chmod(0o1777)
    while True:
        taken: dict[str, int] = {}
        for name, slot in slots:
            if name in taken:
                continue
            held = _opened(folder / slot)
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(held)
                continue
            taken[name] = held
            if len(taken) == count:
                return taken
        _let_go(taken)
        time.sleep(POLL_S)


def _let_go(held: Mapping[str, int]) -> None:
    for descriptor in held.values():
        os.close(descriptor)


def _opened(path: Path) -> int:
    """Open a lock file, another user's as well: those must not be opened as if to create them."""
    flags = os.O_RDONLY | os.O_NOFOLLOW
    try:
        return os.open(path, flags)
    except FileNotFoundError:
        return os.open(path, flags | os.O_CREAT, 0o644)
