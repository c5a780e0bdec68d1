"""Train for many steps and watch memory, files, threads, tensors and pace; prints one JSON object.

soak.py STEPS         as it is
soak.py STEPS leak    control: one inner graph a step is kept
soak.py STEPS tire    control: a step takes a third longer at the end than at the beginning
"""

from __future__ import annotations

import gc
import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from metarun.assemble import assemble
from metarun.config import check, compose_job
from metarun.engine.cost import Flops
from metarun.signals import Stop
from metarun.state import State
from metarun.train import train

WARM, WARM_STEPS = 0.5, 1_000  # of all steps, or so many
SAMPLES = 100  # of a whole run, at most one in 20 steps
WORK, TIRED = 40, 240  # turns of a fixed work beside four steps, and added to the last four
PAGE = os.sysconf("SC_PAGE_SIZE")


def work(turns: int) -> None:
    """Compute what depends on the machine alone: gradients, as a step, and nothing of metarun."""
    x, weight = torch.ones(10, 40), torch.full((40, 40), 0.01, requires_grad=True)
    for _ in range(turns):
        loss = torch.tanh(torch.tanh(x @ weight) @ weight).square().mean()
        torch.autograd.grad(loss, [weight])


class Watch:
    """The log of a run that keeps nothing but what the process has grown to."""

    def __init__(self, steps: int, mode: str) -> None:
        self.steps, self.mode = steps, mode
        self.first, self.every = min(WARM * steps, WARM_STEPS), max(20, steps // SAMPLES)
        self.begun: float | None = None
        self.paces: list[float] = []
        self.samples: list[tuple[int, int, int, int, int]] = []
        self.kept: list[torch.Tensor] = []

    def record(self, kind: str, step: int, figures: dict[str, Any]) -> None:
        """Take a sample at some of the steps."""
        if kind == "train" and self.mode == "tire":
            work(int(TIRED * step / self.steps))
        if kind == "train" and step >= self.first:
            self.pace()
        if self.mode == "leak":
            inner = torch.ones(20_000, requires_grad=True)
            self.kept.append((inner * 2).sum())
        if kind == "train" and step >= self.first and step % self.every == 0:
            gc.collect()
            tensors = sum(1 for thing in gc.get_objects() if type(thing) is torch.Tensor)
            resident = int(Path("/proc/self/statm").read_text().split()[1]) * PAGE
            files = len(os.listdir("/proc/self/fd"))
            self.samples.append((step, resident, files, threading.active_count(), tensors))
        self.begun = time.process_time() if kind == "train" else None

    def pace(self) -> None:
        """Time the steps since the last record, and at once a fixed work, for the machine's own."""
        ended = time.process_time()
        work(WORK)
        if self.begun is not None:  # nothing was validated among them
            self.paces.append((ended - self.begun) / (time.process_time() - ended))

    def drift(self) -> float:
        """Return by how much the median pace of the last third exceeds that of the first."""
        third = len(self.paces) // 3
        return float(np.median(self.paces[-third:]) / np.median(self.paces[:third]) - 1)

    def progress(self, done: float, figures: dict[str, float]) -> None:
        """Show nothing."""

    def save(self, state: State) -> None:
        """Write nothing."""

    def save_best(self, state: State) -> None:
        """Write nothing."""


def main() -> None:
    """Train, and fit a line through what was seen."""
    torch.set_num_threads(1)
    steps, mode = int(sys.argv[1]), "".join(sys.argv[2:])
    words = f"""
        dataset=sinusoid algo=maml outer.batch=4 budget.total={steps} validation.every=100
        validation.tasks=4 validation.steps=2 hardware=cpu hardware.threads=1
    """
    experiment = assemble(check(compose_job(words.split())), Path())
    watch = Watch(steps, mode)
    train(experiment, State(experiment.initial()), watch, Stop(), Flops())
    table = np.array(watch.samples, dtype=float)
    slope = np.polyfit(table[:, 0], table[:, 1], 1)[0] * 1000 / 2**20
    counts = {
        name: int(table[-1, column] - table[0, column])
        for column, name in ((2, "files"), (3, "threads"), (4, "tensors"))
    }
    most = (table[:, 1].max() - table[0, 1]) / 2**20
    grown: dict[str, float] = {"mib_per_1000_steps": slope, "mib": most}
    grown |= {"drift": watch.drift(), **counts}
    json.dump(grown, sys.stdout)


if __name__ == "__main__":
    main()
