"""How a batch of tasks is run: the choice, its check against the plain loop, what is recorded.

`loop` takes one task after the other; `vmap` several at once by torch's own operations; `batched`
also, with kernels whose weights carry a task axis. The meta-gradient is the same.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from metarun import console
from metarun.assemble import Experiment
from metarun.chunks import in_chunks, map_meta
from metarun.compiled import NotCompiledError, compiled
from metarun.files import cache_root, write_atomic
from metarun.hardware import Way
from metarun.metagradient import MetaGrad
from metarun.models.layers import use_kernels, without_kernels
from metarun.problem import Meta
from metarun.tasks import Tasks
from metarun.trees import apart

CHECKED = 2  # tasks whose gradient is compared; what is wrong with tasks shows with two
TOLERANCE = 1e-6  # relative to the gradient's norm, in float64: hundreds of steps amplify 1e-16
COMPILED = {torch.float32: 1e-4, torch.float64: 1e-8}  # of a graph, in its own precision
TIMED = 3  # meta-steps for each way that is tried


class Choice(NamedTuple):
    """A way, why, and how far its meta-gradient lies from the loop's, relative to its norm."""

    way: Way
    chunk: int
    reason: str
    difference: float
    tolerance: float
    seconds: dict[str, float]  # of a meta-step, by way and chunk, where they were measured
    compiled: str  # yes, or why not
    compile_seconds: float = 0.0  # of building the graph, few where the cache has it

    def describe(self) -> dict[str, Any]:
        """Return what goes into the records."""
        return self._asdict()


def settle(experiment: Experiment, meta: Meta) -> tuple[Experiment, Choice | None]:
    """Return the experiment with its way of batching decided and checked; None: none is needed.

    A way whose meta-gradient is not the loop's is not used. They are compared in float64, where
    long inner loops do not turn roundings into differences; the code is the same in float32.
    """
    meta_grad = experiment.algorithm.meta_grad
    if meta_grad is None or experiment.algorithm.batches == "examples":
        return experiment, None
    way, chunk = experiment.hardware.way, experiment.tasks_at_once()
    reason, seconds = experiment.hardware.reason, dict[str, float]()
    if experiment.hardware.batching == "tune":
        way, chunk, reason, seconds = _tuned(experiment, meta)
    chosen = _with(experiment, way, chunk)
    difference = _difference(chosen, meta_grad, meta)
    if not difference <= TOLERANCE:
        reason = f"the meta-gradient by {way} is {difference:.1e} from the loop's"
        way, chunk = "loop", 1
        chosen = _with(experiment, way, chunk)
        console.warn(f"hardware.batching: {reason}; running the plain loop")
    begun = time.perf_counter()
    chosen, graph = _compiled(chosen, meta_grad, meta)
    building = round(time.perf_counter() - begun, 3) if experiment.hardware.graph else 0.0
    return chosen, Choice(way, chunk, reason, difference, TOLERANCE, seconds, graph, building)


def _compiled(experiment: Experiment, meta_grad: MetaGrad, meta: Meta) -> tuple[Experiment, str]:
    """Return the experiment with its meta-step as one graph, where that is asked for and can be."""
    if not experiment.hardware.graph:
        left_open = experiment.hardware.compile == "auto"
        return experiment, "would not pay" if left_open else "not asked for"
    tasks = experiment.batch(0)[: experiment.tasks_at_once()]
    try:
        fast = compiled(meta_grad, meta, tasks)
        difference = apart(fast(meta, tasks, 0).gradient, meta_grad(meta, tasks, 0).gradient)
        if not difference <= COMPILED[experiment.hardware.dtype]:
            raise NotCompiledError(f"the graph's meta-gradient is {difference:.1e} from eager's")
    except NotCompiledError as error:
        if experiment.hardware.compile is True:
            console.warn(f"hardware.compile: {error}; running it as it is")
        return experiment, str(error)
    return replace(experiment, algorithm=experiment.algorithm._replace(meta_grad=fast)), "yes"


def _with(experiment: Experiment, way: Way, chunk: int) -> Experiment:
    use_kernels(experiment.problem.model, way == "batched")
    return replace(experiment, hardware=replace(experiment.hardware, way=way, chunk=chunk))


def _difference(experiment: Experiment, meta_grad: MetaGrad, meta: Meta) -> float:
    """Return how far the chosen way's gradient is from the loop's, in float64.

    Raises:
        MemoryExhaustedError: one task alone does not fit.
    """
    exact = map_meta(lambda value: value.to(torch.float64), meta)
    tasks = experiment.batch(0)[:CHECKED].to(torch.float64)
    found = in_chunks(meta_grad, exact, tasks, 0, CHECKED)[0].gradient
    with without_kernels(experiment.problem.model):
        plain = in_chunks(meta_grad, exact, tasks, 0, 1)[0].gradient
    return apart(found, plain)


def _tuned(experiment: Experiment, meta: Meta) -> tuple[Way, int, str, dict[str, float]]:
    """Measure the ways that apply, or remember what was measured here for the same shapes."""
    path = cache_root() / "batching.json"
    known: dict[str, dict[str, float]] = json.loads(path.read_text()) if path.exists() else {}
    key = _shape(experiment, meta)
    seconds, source = known.get(key), "measured earlier for these shapes on this machine"
    if seconds is None:
        tasks = experiment.batch(0)
        seconds, source = dict(_timings(experiment, meta, tasks)), "measured"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, json.dumps({**known, key: seconds}).encode())
    best = min(seconds, key=lambda name: seconds[name])
    way, _, chunk = best.partition(" ")
    return _way(way), int(chunk), f"the fastest of {len(seconds)}, {source}", seconds


def _way(name: str) -> Way:
    ways: tuple[Way, ...] = ("loop", "vmap", "batched")
    return next(way for way in ways if way == name)


def _timings(experiment: Experiment, meta: Meta, tasks: Tasks) -> Iterator[tuple[str, float]]:
    meta_grad = experiment.algorithm.meta_grad
    assert meta_grad is not None
    for way in experiment.hardware.applicable:
        for chunk in (1,) if way == "loop" else _sizes(len(tasks)):
            chosen = _with(experiment, way, chunk)
            spent: list[float] = []
            for _ in range(TIMED):
                begun = time.perf_counter()
                in_chunks(meta_grad, meta, tasks, 0, chunk, chosen.workers)
                if experiment.hardware.device.type == "cuda":
                    torch.cuda.synchronize(experiment.hardware.device)
                spent.append(time.perf_counter() - begun)
            yield f"{way} {chunk}", min(spent)


def _sizes(batch: int) -> list[int]:
    """Return how many tasks at once are tried: powers of two, and the whole batch."""
    sizes = [size for size in (4, 8, 16, 32, 64, 128) if size < batch]
    return [*sizes, batch]


def _shape(experiment: Experiment, meta: Meta) -> str:
    hardware = experiment.hardware
    tasks = experiment.batch(0)
    sizes = [list(tasks.support_x.shape), list(tasks.query_x.shape)]
    numbers = sum(v.numel() for params in meta.values() for v in params.values())
    described = {k: v for k, v in hardware.describe().items() if k != "batching"}
    model = type(experiment.problem.model.body).__name__
    return json.dumps([described, torch.__version__, sizes, numbers, model, Path(__file__).stem])
