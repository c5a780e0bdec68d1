"""Training batches, the small ones drawn many meta-steps at a time.

A draw of few numbers costs its calls, not its numbers: on curves it would be a tenth of a
meta-step. What a task is depends on its own number alone, so the batches are the same.
"""

from __future__ import annotations

from math import prod

from metarun.assemble import Experiment
from metarun.tasks import Tasks

NUMBERS = 1 << 17  # drawn at once at most: small beside everything else in memory
STEPS = 64  # drawn at once at most; more saves nothing


class Ahead:
    """Gives the batch of any meta-step; in order, most are at hand already."""

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment
        numbers = experiment.examples_a_step() * prod(experiment.source.features)
        alone = experiment.algorithm.batches == "examples"
        self.steps = 1 if alone else max(1, min(STEPS, NUMBERS // numbers))
        self._block: int | None = None
        self._drawn: list[Tasks] = []  # that block's batches

    def batch(self, step: int) -> Tasks:
        """Return what `Experiment.batch` does."""
        if self.steps == 1:
            return self.experiment.batch(step)
        size = self.experiment.outer.batch
        block, index = divmod(step, self.steps)
        if block != self._block:
            count = self.steps * size
            drawn = self.experiment.tasks("train", block * count, count)
            self._block, self._drawn = block, list(drawn.chunks(size))
        return self._drawn[index]
