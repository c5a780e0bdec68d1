"""Train for many steps and watch memory, open files, threads and tensors; prints one JSON object.

soak.py STEPS [leak]    with `leak`, one inner graph a step is kept: the control
"""

from __future__ import annotations

import gc
import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import torch

from metarun.assemble import assemble
from metarun.config import check, compose_job
from metarun.signals import Stop
from metarun.state import State
from metarun.train import train

WARM = 0.5  # of all steps
EVERY = 20
PAGE = os.sysconf("SC_PAGE_SIZE")


class Watch:
    """The log of a run that keeps nothing but what the process has grown to."""

    def __init__(self, first: int, leak: bool) -> None:
        self.first = first
        self.samples: list[tuple[int, int, int, int, int]] = []
        self.kept: list[torch.Tensor] | None = [] if leak else None

    def record(self, kind: str, step: int, figures: dict[str, Any]) -> None:
        """Take a sample at some of the steps."""
        if self.kept is not None:
            inner = torch.ones(20_000, requires_grad=True)
            self.kept.append((inner * 2).sum())
        if kind == "train" and step >= self.first and step % EVERY == 0:
            gc.collect()
            tensors = sum(1 for thing in gc.get_objects() if type(thing) is torch.Tensor)
            resident = int(Path("/proc/self/statm").read_text().split()[1]) * PAGE
            files = len(os.listdir("/proc/self/fd"))
            self.samples.append((step, resident, files, threading.active_count(), tensors))

    def progress(self, done: float, figures: dict[str, float]) -> None:
        """Show nothing."""

    def save(self, state: State) -> None:
        """Write nothing."""

    def save_best(self, state: State) -> None:
        """Write nothing."""


def main() -> None:
    """Train, and fit a line through what was seen."""
    torch.set_num_threads(1)
    steps, leak = int(sys.argv[1]), "leak" in sys.argv[2:]
    words = f"""
        dataset=sinusoid algo=maml outer.batch=4 budget.total={steps} validation.every=100
        validation.tasks=4 validation.steps=2 hardware=cpu hardware.threads=1
    """
    experiment = assemble(check(compose_job(words.split())), Path())
    watch = Watch(int(WARM * steps), leak)
    train(experiment, State(experiment.initial()), watch, Stop(), 1.0)
    table = np.array(watch.samples, dtype=float)
    slope = np.polyfit(table[:, 0], table[:, 1], 1)[0] * 1000 / 2**20
    counts = {
        name: int(table[-1, column] - table[0, column])
        for column, name in ((2, "files"), (3, "threads"), (4, "tensors"))
    }
    grown = (table[:, 1].max() - table[0, 1]) / 2**20
    json.dump({"mib_per_1000_steps": slope, "mib": grown, **counts}, sys.stdout)


if __name__ == "__main__":
    main()
