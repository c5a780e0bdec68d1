"""How much of a meta-step goes into drawing its tasks, on presets as they stand."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import count, islice
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
            f"meta-gradient {one['meta_gradient_ms']:.2f} ms, {100 * one['share']:.1f} %"
        )
    return found


def share(words: list[str], device: torch.device) -> dict[str, float]:
    """Time meta-steps' draws and meta-gradients in turn, for a draw is slower in cold caches."""
    experiment = assemble(check(compose_job(words)), data_root())
    meta = experiment.initial()
    experiment, _ = settle(experiment, meta)
    meta_grad, chunk = experiment.algorithm.meta_grad, experiment.tasks_at_once()
    assert meta_grad is not None
    batches, steps = Ahead(experiment), count()
    together = max(LEAST, batches.steps)  # whole blocks of batches that are drawn at once
    rounds: list[tuple[float, float]] = []
    for _ in range(1 + ROUNDS):
        sampling = computing = 0.0
        for step in islice(steps, together):
            begun = _now(device)
            tasks = batches.batch(step)
            drawn = _now(device)
            in_chunks(meta_grad, meta, tasks, step, chunk, experiment.workers)
            sampling, computing = sampling + drawn - begun, computing + _now(device) - drawn
        rounds.append((1e3 * sampling / together, 1e3 * computing / together))
    sampling, computing = (median(times) for times in zip(*rounds[1:], strict=True))
    return {
        "sampling_ms": sampling,
        "meta_gradient_ms": computing,
        "share": sampling / (sampling + computing),
    }


def _now(device: torch.device) -> float:
    synchronise(device)
    return time.perf_counter()
