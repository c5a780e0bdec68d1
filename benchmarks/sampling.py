"""How much of a meta-step goes into drawing its tasks, on presets as they stand."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import count
from statistics import median
from typing import Any

import torch

from benchmarks.measure import synchronise
from metarun.ahead import Ahead
from metarun.assemble import assemble
from metarun.batching import settle
from metarun.chunks import in_chunks
from metarun.config import check, compose_job
from metarun.data.fetch import data_root
from metarun.errors import DataError

PRESETS = {
    "omniglot": ("experiment=omniglot_5w1s", "algo=maml"),
    "glyphs": ("dataset=glyphs", "algo=maml"),
    "sinusoid": ("experiment=sinusoid", "algo=maml"),
}
BLOCKS = 4  # of batches drawn together, a timing
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
            f"meta-gradient {one['meta_gradient_ms']:.2f} ms, {100 * one['share']:.1f} %"
        )
    return found


def share(words: list[str], device: torch.device) -> dict[str, float]:
    """Time the draw of one meta-step's tasks, as training draws them, and its meta-gradient."""
    experiment = assemble(check(compose_job(words)), data_root())
    meta = experiment.initial()
    experiment, _ = settle(experiment, meta)
    meta_grad, chunk = experiment.algorithm.meta_grad, experiment.tasks_at_once()
    assert meta_grad is not None
    batches, steps, tasks = Ahead(experiment), count(), experiment.batch(0)
    together = BLOCKS * batches.steps

    def draw() -> None:
        for _ in range(together):
            batches.batch(next(steps))

    def gradient() -> None:
        in_chunks(meta_grad, meta, tasks, 0, chunk, experiment.workers)

    sampling, computing = _seconds(draw, device) / together, _seconds(gradient, device)
    return {
        "sampling_ms": 1e3 * sampling,
        "meta_gradient_ms": 1e3 * computing,
        "share": sampling / (sampling + computing),
    }


def _seconds(function: Callable[[], None], device: torch.device) -> float:
    function()
    spent: list[float] = []
    for _ in range(ROUNDS):
        synchronise(device)
        begun = time.perf_counter()
        function()
        synchronise(device)
        spent.append(time.perf_counter() - begun)
    return median(spent)
