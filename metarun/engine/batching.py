"""How a batch of tasks is run: the choice, its check against the plain loop, what is recorded.

`loop` takes one task after the other; `vmap` several at once by torch's own operations; `batched`
also, with kernels whose weights carry a task axis, on a GPU products of matrices. The
meta-gradient is the same.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice
from math import inf, isfinite
from typing import Any, NamedTuple

import torch

from metarun import console
from metarun.assemble import Experiment
from metarun.engine.fitting import fit
from metarun.engine.tuning import run_by, tuned
from metarun.hardware import Hardware, Way
from metarun.models.layers import kernel_blocks, without_kernels
from metarun.numerics.chunks import in_chunks, map_meta
from metarun.numerics.compiled import Graph, NotCompiledError
from metarun.numerics.parallel import Workers
from metarun.numerics.trees import apart, norm
from metarun.precision import Precision
from metarun.problem import Meta
from metarun.tasks import Tasks

CHECKED = 2  # tasks whose gradient is compared; what is wrong with tasks shows with two
TOLERANCE = 1e-6  # relative to the gradient's norm, in float64: hundreds of steps amplify 1e-16
COMPILED = {torch.float32: 1e-4, torch.float64: 1e-8}  # of a graph, in its own precision
ROUNDED: dict[Precision, float] = {"bf16": 0.1, "tf32": 0.01}  # where the query's products are
LOOKS = 8  # meta-steps on which a graph is compared at most; see `agreeing`


class Choice(NamedTuple):
    """A way, why, and how far its meta-gradient lies from the loop's, relative to its norm."""

    way: Way
    chunk: int
    reason: str
    difference: float
    tolerance: float
    seconds: dict[str, float]  # of a meta-step, by way and chunk, where they were measured
    compiled: str  # yes, whole (with the optimiser: the record "recorded" says more), or why not
    compile_seconds: float = 0.0  # of tracing and building, few where the cache has the graph
    memory: str = ""  # what tasks at once were seen to need, and what is free
    short: bool = False  # whether memory, and not the rule, decided how many

    def describe(self) -> dict[str, Any]:
        """Return what goes into the records."""
        return self._asdict()


def settle(
    experiment: Experiment, meta: Meta, fitted: int | None = None
) -> tuple[Experiment, Choice]:
    """Return the experiment with its way of batching decided and checked.

    `fitted` tasks at once are known to fit into memory; unless so many are known, a few are tried.

    A way whose meta-gradient is not the loop's is not used. They are compared in float64, where
    long inner loops do not turn roundings into differences; the code is the same in float32.
    Where nothing is trained, or not on tasks, kernels are compared with torch's operations.
    """
    hardware = experiment.hardware
    way, chunk, reason = hardware.way, experiment.tasks_at_once(), hardware.reason
    seconds = dict[str, float]()
    if hardware.batching == "tune" and _on_tasks(experiment):
        way, chunk, reason, seconds = tuned(experiment, meta)
    chosen, memory, short = run_by(experiment, way, chunk), "", False
    if fitted is not None:
        chosen = run_by(experiment, way, min(chunk, fitted))
    elif hardware.chunk is None and way != "loop" and _on_tasks(experiment):
        chosen, memory, short = _fitting(chosen, meta)
    chunk = chosen.hardware.chunk or chunk
    difference = _difference(chosen, meta)
    if not difference <= TOLERANCE:
        reason = f"the meta-gradient by {way} is {difference:.1e} from the loop's"
        way, chunk = "loop", 1
        chosen = run_by(experiment, way, chunk)
        console.warn(f"hardware.batching: {reason}; running the plain loop")
    choice = Choice(way, chunk, reason, difference, TOLERANCE, seconds, "not asked for")
    choice = choice._replace(memory=memory, short=short)
    if hardware.graph:
        return _as_graph(chosen, meta, choice)
    return chosen, choice._replace(compiled=_why_not_compiled(hardware))


def tolerated(hardware: Hardware) -> float:
    """Return how far a graph's meta-gradient may be from the one that is called."""
    return ROUNDED.get(hardware.precision, COMPILED[hardware.dtype])


def agreeing(differences: Iterable[float], enough: float) -> float:
    """Return the first difference that is small enough, or else the smallest, of a few looks.

    Where a rounding crosses a kink, of a ReLU or of a max-pooling, a task's gradient turns, and
    one meta-step shows nothing; a graph that is wrong is so at every meta-step.
    """
    least = inf
    for difference in islice(differences, LOOKS):
        if difference <= enough:
            return difference
        least = least if least <= difference else difference  # what is no number is no less
    return least


def _on_tasks(experiment: Experiment) -> bool:
    return experiment.algorithm.meta_grad is not None and experiment.algorithm.batches == "tasks"


def _why_not_compiled(hardware: Hardware) -> str:
    if hardware.processes > 1:
        return "several processes share the work"
    return "would not pay" if hardware.compile == "auto" else "not asked for"


def _as_graph(experiment: Experiment, meta: Meta, choice: Choice) -> tuple[Experiment, Choice]:
    """Make the meta-step one graph; where it cannot be one, settle on how to run it without."""
    begun = time.perf_counter()
    try:
        graph, compiled = _graph(experiment, meta)
    except NotCompiledError as error:
        if experiment.hardware.compile is True:
            console.warn(f"hardware.compile: {error}; running it as it is")
        hardware = replace(experiment.hardware, compile=False)
        hardware = hardware.running(kernel_blocks(experiment.problem.model))
        memory, short = choice.memory, choice.short
        experiment, choice = settle(replace(experiment, hardware=hardware), meta, choice.chunk)
        choice, compiled = choice._replace(memory=memory, short=short), str(error)
    else:
        experiment = replace(experiment, algorithm=experiment.algorithm._replace(meta_grad=graph))
    building = round(time.perf_counter() - begun, 3)
    return experiment, choice._replace(compiled=compiled, compile_seconds=building)


def _graph(experiment: Experiment, meta: Meta) -> tuple[Graph, str]:
    """Trace for one batch; compile, and compare with eager on others, of other meta-steps.

    Where all tasks run at once, the whole meta-step becomes one later, and is compared then: on a
    CPU it is compiled, and on a GPU recorded, also when the compiler fails.
    """
    meta_grad, hardware = experiment.algorithm.meta_grad, experiment.hardware
    if meta_grad is None or not _on_tasks(experiment):
        raise NotCompiledError("there is no inner loop in this training")
    at_once = experiment.tasks_at_once()
    graph = Graph(meta_grad, meta, experiment.batch(0)[:at_once])
    on_cpu, whole = hardware.device.type == "cpu", at_once >= experiment.outer.batch
    if on_cpu and whole:
        return graph, "whole"

    def differences() -> Iterator[float]:
        for step in range(1, 1 + LOOKS):
            tasks = experiment.batch(step)[:at_once]
            wanted = meta_grad(meta, tasks, step).gradient
            yield apart(graph(meta, tasks, step).gradient, wanted)

    try:
        if hardware.precision == "tf32":
            raise NotCompiledError("the compiler does not see tf32")
        difference = agreeing(differences(), tolerated(hardware))
        if not difference <= tolerated(hardware):
            raise NotCompiledError(f"the graph's meta-gradient is {difference:.1e} from eager's")
    except NotCompiledError as error:
        if on_cpu or not whole:
            raise
        console.warn(f"hardware.compile: {error}; recording it as it is")
        graph.as_it_is()
        return graph, str(error)
    return graph, "yes"


def _fitting(experiment: Experiment, meta: Meta) -> tuple[Experiment, str, bool]:
    """Take fewer tasks at once, or fewer threads, where memory does not suffice for the rule's."""
    meta_grad, workers = experiment.algorithm.meta_grad, experiment.workers
    assert meta_grad is not None
    processes = experiment.hardware.processes
    tasks = experiment.batch(0)[: -(-experiment.outer.batch // processes)]
    chunk = min(experiment.tasks_at_once(), len(tasks))
    side_by_side = min(workers.count, -(-len(tasks) // chunk))

    def attempt(size: int) -> None:
        in_chunks(meta_grad, meta, tasks[:size], 0, size)

    found = fit(attempt, chunk, side_by_side, experiment.hardware.device, processes)
    if (found.chunk, found.workers) == (chunk, side_by_side):
        return experiment, found.needed, False
    console.warn(
        f"hardware.chunk: {chunk} tasks at once in {side_by_side} thread(s) do not fit into memory "
        f"({found.needed}); running {found.chunk} in {found.workers}"
    )
    if found.workers < workers.count:
        experiment = replace(experiment, workers=Workers(found.workers))
    return run_by(experiment, experiment.hardware.way, found.chunk), found.needed, True


def _difference(experiment: Experiment, meta: Meta) -> float:
    """Return how far the chosen way's gradient is from the loop's, in float64.

    Raises:
        MemoryExhaustedError: one task alone does not fit.
    """
    exact = map_meta(lambda value: value.to(torch.float64), meta)
    tasks, model = experiment.batch(0)[:CHECKED].to(torch.float64), experiment.problem.model
    meta_grad = experiment.algorithm.meta_grad
    if meta_grad is None:
        found = _first_step(experiment, exact, tasks)
        with without_kernels(model):
            return apart(found, _first_step(experiment, exact, tasks))
    found = in_chunks(meta_grad, exact, tasks, 0, CHECKED)[0].gradient
    with without_kernels(model):
        plain = in_chunks(meta_grad, exact, tasks, 0, 1)[0].gradient
    if not (isfinite(norm(found)) or isfinite(norm(plain))):
        return 0.0  # the loop diverges too: training will say so
    return apart(found, plain)


def _first_step(experiment: Experiment, meta: Meta, tasks: Tasks) -> Meta:
    """Return how one inner step moves the parameters."""
    before, after = experiment.algorithm.adapt(meta, tasks.support_x, tasks.support_y, 1)
    return {"moved": {name: after[name] - value for name, value in before.items()}}
