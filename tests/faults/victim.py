"""Runs that are to be killed: forked from a process that has imported everything and run once.

Only scripts import this, for a fork needs a process without threads. Each run is small (24 steps on
sinusoids, a checkpoint every second step) and real, but for its plots, which nobody resumes.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from metarun import checkpoint, cli
from metarun import run as job
from metarun.assemble import Experiment
from metarun.records import Records, merged, read
from metarun.report import plots
from metarun.settings import yamlfile
from metarun.signals import REQUESTS, nothing_to_save

STEPS, EVERY = 24, 2
TINY = (
    f"budget.total={STEPS} checkpoints.every={EVERY} outer.batch=4 task.queries=5 "
    "validation.every=6 validation.tasks=8 validation.steps=2 test.tasks=8 test.steps=2 "
    "hardware=cpu hardware.threads=1 model.hidden=[8]"
).split()
FAMILIES = {
    "maml": ["dataset=sinusoid", "algo=maml"],
    "fomaml": ["dataset=sinusoid", "algo=fomaml"],
    "imaml": ["dataset=sinusoid", "algo=imaml", "algo.steps=3", "algo.estimator.iterations=2"],
    "transfer": ["dataset=sinusoid", "algo=transfer", "algo.lr_grid=[0.01,0.1]"],
    "clustered": ["dataset=multimodal", "algo=clustered", "algo.starts=2"],
}
TIMED = ("time", "seconds", "tasks_per_second")
NOWHERE, START, WRITE, EVALUATION, APPEND = range(5)
SHARED = mmap.mmap(-1, 8)  # with the child: its phase, then how often it entered each
PLACES = {
    WRITE: (checkpoint, "write_atomic"),
    EVALUATION: (Experiment, "evaluate"),
    APPEND: (Records, "write"),
}


class Ambush(NamedTuple):
    """Die so many seconds after entering a phase for the n-th time."""

    phase: int
    entry: int
    delay: float


class Reference(NamedTuple):
    """A configuration, and what an uninterrupted run of it leaves behind."""

    config: dict[str, Any]
    digest: str
    seconds: float
    entries: list[int]  # by phase


def reference(family: str, *more: str) -> Reference:
    """Run a family once, in this process, which warms it up, and once more in a child."""
    torch.set_num_threads(1)
    plots.adaptation = plots.training = lambda *_, **__: None
    name = f"reference-{family}"
    folder = Path(os.environ["METARUN_OUTPUTS"], name)
    with quiet():
        assert cli.main([*FAMILIES[family], *TINY, *more, f"name={name}"]) == 0
    config, again = yamlfile.of_run(folder), folder.with_name(f"{name}-again")
    begun = time.monotonic()
    assert exit_code(spawn(config, again)) == 0
    seconds, entries = time.monotonic() - begun, list(SHARED[:8])
    assert digest(folder) == digest(again), "an uninterrupted run does not repeat itself"
    return Reference(config, digest(folder), seconds, entries)


@contextmanager
def quiet() -> Generator[None]:
    """Send what this process prints nowhere."""
    kept, nowhere = [os.dup(1), os.dup(2)], os.open(os.devnull, os.O_WRONLY)
    for number in (1, 2):
        os.dup2(nowhere, number)
    yield
    sys.stdout.flush()
    for number, descriptor in enumerate(kept, 1):
        os.dup2(descriptor, number)


def spawn(
    config: dict[str, Any],
    folder: Path,
    ambush: Ambush | None = None,
    first: Callable[[], None] = lambda: None,
) -> int:
    """Fork a child that carries out a run; return its process id. Its output goes to a log."""
    SHARED[:8] = bytes([START, *[0] * 7])
    signal.pthread_sigmask(signal.SIG_BLOCK, REQUESTS)
    if child := os.fork():
        signal.pthread_sigmask(signal.SIG_UNBLOCK, REQUESTS)
        return child
    code = 1
    try:
        log = os.open(folder.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        first()
        for phase, (owner, name) in PLACES.items():
            setattr(owner, name, marked(getattr(owner, name), phase, ambush))
        if ambush and ambush.phase == START:
            signal.setitimer(signal.ITIMER_REAL, ambush.delay)
        with nothing_to_save():  # as the command line does
            signal.pthread_sigmask(signal.SIG_UNBLOCK, REQUESTS)
            code = job.run_job(config, folder)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def marked(call: Callable[..., Any], phase: int, ambush: Ambush | None) -> Callable[..., Any]:
    """Make a function tell the parent while it runs, and die in it where that is asked for."""

    def told(*args: Any, **named: Any) -> Any:
        SHARED[0] = phase
        SHARED[phase] = min(255, SHARED[phase] + 1)
        if ambush and (ambush.phase, ambush.entry) == (phase, SHARED[phase]):
            signal.setitimer(signal.ITIMER_REAL, ambush.delay)  # SIGALRM: the kernel's own kill
        result = call(*args, **named)
        SHARED[0] = NOWHERE
        return result

    return told


def exit_code(child: int) -> int:
    """Wait for a child; a signal is a negative number."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def in_place(path: Path, data: bytes) -> None:
    """Control: the writer that everybody writes first."""
    with path.open("wb", buffering=0) as file:
        for first in range(0, len(data), 1024):
            file.write(data[first : first + 1024])
        os.fsync(file.fileno())


def digest(folder: Path) -> str:
    """Hash all that a run has found: tensors, scores and records, but for what a clock says."""
    found = hashlib.sha256()
    newest = checkpoint.newest(folder / "checkpoints")
    best = folder / "checkpoints" / "best.safetensors"
    for path in [newest.path, best] if newest else [best]:
        tensors, meta = checkpoint.load(path)
        for key, tensor in tensors.items():
            found.update(key.encode() + tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
        state = {k: v for k, v in meta["state"].items() if k not in TIMED}
        found.update(repr((path.name, state, meta.get("chosen"))).encode())
    with np.load(folder / "scores.npz") as scores:
        for key in sorted(scores):
            found.update(key.encode() + scores[key].tobytes())
    for record in merged(read(folder)):
        if record["kind"] in ("train", "validate", "test"):
            found.update(repr(sorted((k, v) for k, v in record.items() if k not in TIMED)).encode())
    return found.hexdigest()
