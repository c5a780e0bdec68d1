"""One contender alone in a fresh process: its peak memory and its times, as one line of JSON."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.contender import Build
from benchmarks.measure import repeats, seconds, synchronise
from benchmarks.nets import initial
from benchmarks.works import Work, batch
from metarun.hardware import keep_freed_memory
from metarun.precision import tensor_float

ROOT = Path(__file__).parent.parent


def alone(
    work: Work, name: str, overrides: Sequence[str], threads: int, device: torch.device
) -> dict[str, Any]:
    """Run a contender in a process of its own.

    Returns `seconds`, a median, and `peak_mib`, above the process that holds network and data;
    or `failed`, the last line that it said.
    """
    asked = {
        "work": asdict(work),
        "name": name,
        "overrides": list(overrides),
        "threads": threads,
        "device": str(device),
    }
    command = [sys.executable, "-m", "benchmarks.child", json.dumps(asked)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        return {"failed": (done.stderr.strip().splitlines() or ["killed"])[-1]}
    return json.loads(done.stdout.splitlines()[-1])


def main(asked: dict[str, Any]) -> dict[str, float]:
    """Build, measure memory over three steps, then time a round."""
    from benchmarks.run import builders

    device, threads = torch.device(asked["device"]), asked["threads"]
    keep_freed_memory()
    tensor_float("ieee")
    torch.set_num_threads(threads)
    shape = asked["work"] | {"features": tuple(asked["work"]["features"])}
    work = Work(**shape)
    tasks, values = batch(work, torch.float32, device), initial(work, torch.float32, device)
    held = torch.cuda.memory_allocated(device) if device.type == "cuda" else None
    build: Build = builders(threads, {asked["name"]: asked["overrides"]})[asked["name"]]
    contender = build(work, values, tasks)
    assert contender is not None
    before = _restart_peak(device, held)
    count = repeats(contender, threads, device)
    peak = _peak(device) - before
    took = [seconds(contender, threads, device) for _ in range(max(count, 3))]
    synchronise(device)
    return {"seconds": median(took), "peak_mib": peak / 2**20}


def _restart_peak(device: torch.device, held: int | None) -> int:
    """Forget the largest memory so far where the system can; return what was held, in bytes.

    On a GPU `held` is what network and data took before the contender was built: a recording has
    its memory from then on, and its replays allocate none.
    """
    if held is not None:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        return held
    with suppress(OSError):  # then a peak of the imports may hide a small one of the steps
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return _peak(device)


def _peak(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    lines = status.read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
