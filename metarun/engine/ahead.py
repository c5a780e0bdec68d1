"""Training batches, the small ones drawn many meta-steps at a time.

A draw of few numbers costs its calls, not its numbers: on curves it would be a third of a compiled
meta-step, and on a GPU nearly every draw is of few. What a task is depends on its own number alone,
so the batches are the same.
"""

from __future__ import annotations

from math import prod

from metarun.assemble import Experiment
from metarun.tasks import Tasks

NUMBERS = 1 << 19  # drawn at once at most: small beside everything else in memory
THERE = 1 << 23  # the same on an accelerator, 32 MiB
STEPS = 1024  # drawn at once at most; more saves nothing


class Ahead:
    """Gives the batch of any meta-step; in order, most are at hand already."""

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment
        numbers = experiment.examples_a_step() * prod(experiment.source.features)
        most = NUMBERS if experiment.hardware.device.type == "cpu" else THERE
        self.steps = max(1, min(STEPS, most // numbers))
        self._block: int | None = None
        self._drawn: Tasks | None = None  # that block

    def batch(self, step: int) -> Tasks:
        """Return what `Experiment.batch` does."""
        block, index = divmod(step, self.steps)
        return self.block(block)[index]

    def block(self, block: int) -> Tasks:
        """Return the batches of `steps` meta-steps, from block * steps on: [steps, T, ...]."""
        if block != self._block or self._drawn is None:
            self._drawn = None  # two blocks of images need not be in memory at once
            self._drawn = self.experiment.block(block * self.steps, self.steps)
            self._block = block
        return self._drawn
