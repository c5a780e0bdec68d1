"""How much of a meta-step goes into drawing its tasks, on presets as they stand."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch

from benchmarks.measure import synchronise
from metarun.assemble import assemble
from metarun.config import check, compose_job
from metarun.data.fetch import data_root
from metarun.engine.ahead import Ahead
from metarun.engine.batching import settle
from metarun.engine.metastep import MetaSteps
from metarun.errors import DataError
from metarun.state import State
from metarun.tasks import Tasks

PRESETS = {
    "omniglot": ("experiment=omniglot_5w1s", "algo=maml"),
    "glyphs": ("dataset=glyphs", "algo=maml"),
    "sinusoid": ("experiment=sinusoid", "algo=maml"),
}
LEAST = 4  # meta-steps a timing
ROUNDS = 7


def measure(
    device: torch.device, say: Callable[[str], None], threads: int
) -> dict[str, dict[str, Any]]:
    """Return medians in milliseconds, and sampling's share of both; or why there are none."""
    found: dict[str, dict[str, Any]] = {}
    for name, words in PRESETS.items():
        hardware = [f"hardware.device={device}", f"hardware.threads={threads}"]
        try:
            found[name] = share([*words, *hardware], device)
        except DataError as error:
            found[name] = {"not_measured": str(error)}
            say(f"{name}: not measured: {error}")
            continue
        one = found[name]
        say(
            f"{name}: sampling {one['sampling_ms']:.3f} ms, "
            f"meta-step {one['meta_step_ms']:.2f} ms, {100 * one['share']:.1f} %"
        )
    return found


class Clocked(Ahead):
    """Batches drawn ahead, and the seconds that this took."""

    seconds = 0.0

    def batch(self, step: int) -> Tasks:
        return self._timed(lambda: super(Clocked, self).batch(step))

    def block(self, block: int) -> Tasks:
        """Draw when it is asked for by itself, as compiled meta-steps do."""
        return self._timed(lambda: super(Clocked, self).block(block))

    def _timed(self, draw: Callable[[], Tasks]) -> Tasks:
        device, before = self.experiment.hardware.device, self.seconds
        begun = _now(device)
        tasks = draw()
        self.seconds = before + _now(device) - begun  # a batch's time has its block's in it
        return tasks


def share(words: list[str], device: torch.device) -> dict[str, float]:
    """Time meta-steps and the draws among them, for a draw is slower in cold caches."""
    experiment = assemble(check(compose_job(words)), data_root())
    state = State(experiment.initial())
    experiment, _ = settle(experiment, state.meta)
    steps, clock = MetaSteps(experiment, state, lambda *_: None), Clocked(experiment)
    steps.ahead = clock
    if steps.recorded:
        steps.recorded.ahead = clock
    together = max(LEAST, clock.steps)  # whole blocks of batches that are drawn at once
    rounds: list[tuple[float, float]] = []
    for _ in range(1 + ROUNDS):
        clock.seconds, begun = 0.0, _now(device)
        for _ in range(together):
            steps.take(0.0)
            state.step += 1
        seconds = _now(device) - begun
        rounds.append((1e3 * clock.seconds / together, 1e3 * seconds / together))
    sampling, whole = (median(times) for times in zip(*rounds[1:], strict=True))
    return {"sampling_ms": sampling, "meta_step_ms": whole, "share": sampling / whole}


def _now(device: torch.device) -> float:
    synchronise(device)
    return time.perf_counter()
