"""A batch of tasks in chunks that fit into memory, with the whole batch's result."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor

from metarun.algorithms.base import Turn
from metarun.errors import MemoryExhaustedError
from metarun.gradients.metagradient import MetaGrad, MetaGradient
from metarun.numerics.parallel import Workers
from metarun.problem import Meta
from metarun.tasks import Tasks

Found = TypeVar("Found")
REMEDY = "a smaller model, fewer queries or algo.estimator=recompute"
SHORT = (  # what torch says where it has no type of error for a shortage of memory
    *("DefaultCPUAllocator: ", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED"),
    "unable to find an engine to execute",  # a convolution's, each of which asked for too much
)


def in_chunks(
    meta_grad: MetaGrad,
    meta: Meta,
    tasks: Tasks,
    step: int,
    chunk: int,
    workers: Workers | None = None,
) -> tuple[MetaGradient, int]:
    """Compute a batch's mean meta-gradient `chunk` tasks at a time; return the chunk that fitted.

    A chunk that does not fit into memory is halved and the batch begun again. Chunks are summed
    in task order, whichever worker is first.

    Raises:
        MemoryExhaustedError: one task alone does not fit.
    """

    def attempt(size: int) -> MetaGradient:
        return _mean(meta_grad, meta, tasks, step, size, workers or Workers(1))

    return halving(attempt, min(chunk, len(tasks)), REMEDY)


def turned(turn: Turn, meta: Meta, draw: Callable[[int], Iterable[Tasks]], chunk: int) -> Meta:
    """Carry out a change between two phases `chunk` tasks at a time; return what it changes.

    `draw` gives the change's tasks in chunks of a size. A chunk that does not fit into memory is
    halved and the change begun again.

    Raises:
        MemoryExhaustedError: even one task at a time does not fit.
    """
    remedy = "a smaller model or fewer algo.tasks"
    return halving(lambda size: turn.change(meta, draw(size)), chunk, remedy)[0]


def halving(attempt: Callable[[int], Found], chunk: int, remedy: str) -> tuple[Found, int]:
    """Return what `attempt` finds `chunk` tasks at a time, and the chunk that fitted into memory.

    A chunk that does not fit is halved and the attempt begun again.

    Raises:
        MemoryExhaustedError: one task alone does not fit; use the remedy.
    """
    while True:
        if chunk == 1:
            with memory_told("even one task at a time does not fit into", remedy):
                return attempt(1), 1
        try:
            return attempt(chunk), chunk
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
        chunk = (chunk + 1) // 2  # here the failed attempt's tensors are let go of


@contextmanager
def memory_told(
    what: str = "what a run needs does not fit into", remedy: str = REMEDY
) -> Generator[None]:
    """Turn a shortage of memory inside the block into a MemoryExhaustedError of one line."""
    try:
        yield
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        said = str(error).splitlines()[0]
        raise MemoryExhaustedError(f"{what} the device's memory ({said}); use {remedy}") from error


def out_of_memory(error: BaseException) -> bool:
    """Tell whether torch, or a library that it calls, found no memory."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    if isinstance(error, torch.AcceleratorError):  # a driver's, of any kind
        return "out of memory" in str(error)
    return isinstance(error, RuntimeError) and any(text in str(error) for text in SHORT)


def _mean(
    meta_grad: MetaGrad, meta: Meta, tasks: Tasks, step: int, chunk: int, workers: Workers
) -> MetaGradient:
    if chunk >= len(tasks):
        return meta_grad(meta, tasks, step)

    def compute(some: Tasks) -> MetaGradient:
        return meta_grad(meta, some, step)

    return joined(workers.map(compute, tasks.chunks(chunk)), len(tasks))


def joined(found: Iterable[MetaGradient], count: int) -> MetaGradient:
    """Put the means over parts of `count` tasks together, in their order, to that over all."""
    gradient: Meta | None = None
    shift: Meta | None = None
    parts: list[MetaGradient] = []
    for part in found:
        share = len(part.losses) / count
        gradient = _add(gradient, part.gradient, share)
        shift = _add(shift, part.shift, share)
        parts.append(part._replace(gradient={}, shift={}))
    figures = {k: torch.cat([part.figures[k] for part in parts]) for k in parts[0].figures}
    losses = torch.cat([part.losses for part in parts])
    return MetaGradient(gradient or {}, losses, figures, shift or {})


def _add(total: Meta | None, more: Meta, share: float) -> Meta:
    if total is None:
        return map_meta(lambda value: value * share, more)
    return {
        group: {name: total[group][name] + value * share for name, value in params.items()}
        for group, params in more.items()
    }


def map_meta(function: Callable[[Tensor], Tensor], meta: Meta) -> Meta:
    """Apply a function to every tensor."""
    return {
        group: {name: function(value) for name, value in params.items()}
        for group, params in meta.items()
    }
