"""How many tasks at once fit into memory: a few are tried, and more are reckoned from these.

On a CPU nobody says that memory has run out: the kernel kills the process that asks for too much.
"""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import torch

PART = 0.8  # of the free memory that training may fill
RESIDENT, HIGHEST = "VmRSS:", "VmHWM:"
CGROUPS = {  # where a container or a job has its limit, its use, and what of that is only a cache
    "": ("/sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
    "memory": (
        "/sys/fs/cgroup/memory",
        *("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ),
}

_earlier: dict[str, int] = {}  # peaks from before a mark was set back, by type of device


class Fit(NamedTuple):
    """Tasks at once, threads side by side, and why."""

    chunk: int
    workers: int
    tried: dict[int, int]  # bytes that so many tasks at once needed
    free: int  # bytes

    @property
    def needed(self) -> str:
        """Return the tried sizes in words."""
        if not self.tried:
            return "not measured here"
        some = (f"{tasks} at once {size / 2**20:,.0f} MiB" for tasks, size in self.tried.items())
        return f"{', '.join(some)}, and {self.free / 2**20:,.0f} MiB are free"


def fit(
    attempt: Callable[[int], object],
    chunk: int,
    workers: int,
    device: torch.device,
    processes: int = 1,
) -> Fit:
    """Find how many tasks at once, `chunk` at most, fit into a part of the free memory.

    `attempt` computes the meta-gradient of so many tasks. One and two tell what a task needs; when
    all would not fit, their number is doubled as long as the next are reckoned to fit. Where even
    one a thread would not, there is one thread. Where memory cannot be measured, all fit. So many
    processes share a CPU's memory.
    """
    meter, free, tried = _meter(device), free_memory(device), dict[int, int]()
    if meter is None or free is None:
        return Fit(chunk, workers, tried, 0)
    if device.type == "cpu":
        free = free // processes
    else:
        attempt(1)  # what a GPU's libraries take at their first call, and keep, is no task's
    room, size = PART * free, 1
    while True:
        tried[size] = meter(lambda size=size: attempt(size))
        most = reckoned(tried, chunk) * workers
        if most <= room and (size > 1 or size == chunk):
            return Fit(chunk, workers, tried, free)
        following = min(2 * size, chunk)
        side_by_side = workers if size > 1 else 1  # an attempt is alone
        if size == chunk or reckoned(tried, following) * side_by_side > room:
            break
        size = following
    fitting = [tasks for tasks, needed in tried.items() if needed * workers <= room]
    return Fit(max(fitting), workers, tried, free) if fitting else Fit(1, 1, tried, free)


def reckoned(tried: dict[int, int], size: int) -> float:
    """Continue the line through the two largest sizes that were tried; with one, through none."""
    *earlier, last = tried
    if not earlier:
        return tried[last] * size / last
    before = earlier[-1]
    slope = max(0, tried[last] - tried[before]) / (last - before)
    return tried[last] + slope * (size - last)


def free_memory(device: torch.device) -> int | None:
    """Return how many bytes this process may still take, or None where nobody says."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    found = list[int]()
    with suppress(OSError):
        found += left_in_groups(Path("/proc/self/cgroup").read_text(), CGROUPS)
    with suppress(OSError, ValueError):
        found.append(1024 * _field(Path("/proc/meminfo"), "MemAvailable:"))
    return max(0, min(found)) if found else None


def peak_memory_bytes(device: torch.device) -> int:
    """Return the largest memory so far: of tensors on a GPU, of the whole process on a CPU."""
    if device.type == "cuda":
        now = torch.cuda.max_memory_allocated(device)
    else:
        now = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return max(now, _earlier.get(device.type, 0))


def left_in_groups(mine: str, places: Mapping[str, tuple[str, ...]]) -> Iterator[int]:
    """Yield what each control group that a process is in has left under its limit."""
    for line in mine.splitlines():
        _, kinds, own = line.split(":", 2)
        for kind in set(kinds.split(",")) & set(places):
            root, *names, cached = places[kind]
            folder = Path(root) / own.lstrip("/")
            for group in (folder, *folder.parents):
                with suppress(OSError, ValueError):  # the limit "max" is none
                    limit, used = (int((group / name).read_text()) for name in names)
                    yield limit - used + _field(group / "memory.stat", cached)


def _meter(device: torch.device) -> Callable[[Callable[[], object]], int] | None:
    """Return what measures how many bytes a call needs at most beyond those of now."""
    if device.type == "cuda":
        return lambda call: _on_cuda(call, device)
    status, marks = Path("/proc/self/status"), Path("/proc/self/clear_refs")

    def back() -> None:
        _earlier[device.type] = peak_memory_bytes(device)
        marks.write_text("5")  # the highest mark is that of now again

    try:
        at_first = 1024 * _field(status, RESIDENT)
        back()
    except (OSError, ValueError):
        return None

    def measure(call: Callable[[], object]) -> int:
        back()
        call()
        return max(0, 1024 * _field(status, HIGHEST) - at_first)

    return measure


def _on_cuda(call: Callable[[], object], device: torch.device) -> int:
    before = torch.cuda.memory_allocated(device)
    _earlier[device.type] = peak_memory_bytes(device)
    torch.cuda.reset_peak_memory_stats(device)
    call()
    return torch.cuda.max_memory_allocated(device) - before


def _field(path: Path, name: str) -> int:
    """Return the number in the line that begins with a name."""
    (line,) = (line for line in path.read_text().splitlines() if line.split()[:1] == [name])
    return int(line.split()[1])
