"""`hardware.batching=tune`: the ways that apply, measured, and what was measured remembered."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch

import metarun
from metarun.assemble import Experiment
from metarun.files import cache_root, write_atomic
from metarun.hardware import Way
from metarun.kernels.build import processor
from metarun.models.layers import use_kernels
from metarun.numerics.chunks import in_chunks
from metarun.problem import Meta
from metarun.tasks import Tasks

TIMED = 3  # meta-steps for each way that is tried


def run_by(experiment: Experiment, way: Way, chunk: int) -> Experiment:
    """Return the experiment with a batch run in this way, so many tasks at once."""
    use_kernels(experiment.problem.model, way == "batched")
    return replace(experiment, hardware=replace(experiment.hardware, way=way, chunk=chunk))


def tuned(experiment: Experiment, meta: Meta) -> tuple[Way, int, str, dict[str, float]]:
    """Measure the ways that apply, or remember what was measured here for the same work."""
    path, key = cache_root() / "batching.json", _work(experiment)
    known = _remembered(path)
    seconds, source = known.get(key), "measured earlier for this work on this machine"
    if not seconds:
        tasks = experiment.batch(0)
        seconds, source = dict(_timings(experiment, meta, tasks)), "measured"
        with suppress(OSError):  # where nothing can be remembered, it is measured each time
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, json.dumps({**known, key: seconds}).encode())
    best = min(seconds, key=lambda name: seconds[name])
    way, _, chunk = best.partition(" ")
    return _way(way), int(chunk), f"the fastest of {len(seconds)}, {source}", seconds


def _remembered(path: Path) -> dict[str, dict[str, float]]:
    """Return what was measured, by work; of a damaged file nothing is believed."""
    with suppress(OSError, ValueError):
        found = json.loads(path.read_text())
        return found if isinstance(found, dict) else {}
    return {}


def _way(name: str) -> Way:
    ways: tuple[Way, ...] = ("loop", "vmap", "batched")
    return next(way for way in ways if way == name)


def _timings(experiment: Experiment, meta: Meta, tasks: Tasks) -> Iterator[tuple[str, float]]:
    meta_grad = experiment.algorithm.meta_grad
    assert meta_grad is not None
    for way in experiment.hardware.applicable:
        for chunk in (1,) if way == "loop" else _sizes(len(tasks)):
            chosen = run_by(experiment, way, chunk)
            spent, fitted = list[float](), chunk
            for _ in range(TIMED):
                begun = time.perf_counter()
                _, fitted = in_chunks(meta_grad, meta, tasks, 0, chunk, chosen.workers)
                if experiment.hardware.device.type == "cuda":
                    torch.cuda.synchronize(experiment.hardware.device)
                spent.append(time.perf_counter() - begun)
            yield f"{way} {fitted}", min(spent)


def _sizes(batch: int) -> list[int]:
    """Return how many tasks at once are tried: powers of two, and the whole batch."""
    sizes = [size for size in (4, 8, 16, 32, 64, 128) if size < batch]
    return [*sizes, batch]


def _work(experiment: Experiment) -> str:
    """Return all that decides how long a way takes: machine, versions, settings, shapes."""
    hardware, tasks = experiment.hardware, experiment.batch(0)
    machine = {k: v for k, v in hardware.describe().items() if k != "batching"}
    settings = [experiment.parts[name] for name in ("algo", "model")]
    return json.dumps(
        [
            machine | {"processor": processor(), "ways": hardware.applicable},
            [torch.__version__, metarun.__version__],
            [[part.name, part.values] for part in settings],
            [list(tasks.support_x.shape), list(tasks.query_x.shape)],
        ],
        default=str,
        sort_keys=True,
    )
