"""Tensors in memory that two processes map; what lies where is told by other means."""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from metarun.gradients.metagradient import MetaGradient
from metarun.problem import Meta

ALIGNED = 64  # bytes between which a tensor begins, for a CPU's vectors


class Place(NamedTuple):
    """Where a tensor lies."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    first: int  # byte


Layout = dict[str, dict[str, Place]]  # as the groups of named tensors are


class Board:
    """Groups of named tensors in shared memory; whoever writes must tell the other the layout."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._mapped: mmap.mmap | None = None

    def write(self, meta: Meta) -> Layout:
        """Copy tensors there, from any device; return where each lies."""
        layout, end = Layout(), 0
        for group, params in meta.items():
            layout[group] = {}
            for name, value in params.items():
                layout[group][name] = Place(value.dtype, tuple(value.shape), end)
                end += -(-value.numel() * value.element_size() // ALIGNED) * ALIGNED
        if end > os.fstat(self.descriptor).st_size:
            os.ftruncate(self.descriptor, end)
        for group, params in self.read(layout).items():
            for name, value in params.items():
                value.copy_(meta[group][name])
        return layout

    def read(self, layout: Layout) -> Meta:
        """Return the tensors, on the CPU, as they are until the next write."""
        size = os.fstat(self.descriptor).st_size
        if size and (self._mapped is None or len(self._mapped) < size):
            self._mapped = mmap.mmap(self.descriptor, size)
        return {
            group: {name: self._tensor(place) for name, place in places.items()}
            for group, places in layout.items()
        }

    def _tensor(self, place: Place) -> Tensor:
        dtype, shape, first = place
        if not (count := prod(shape)):  # of which torch makes no view
            return torch.empty(shape, dtype=dtype)
        return torch.frombuffer(self._mapped, dtype=dtype, count=count, offset=first).view(shape)


@contextmanager
def memory() -> Generator[int]:
    """Yield the descriptor of memory to share; /dev/shm, small in containers, is not its limit."""
    if not hasattr(os, "memfd_create"):  # not Linux
        with tempfile.TemporaryFile() as file:
            yield file.fileno()
        return
    descriptor = os.memfd_create("metarun")
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def as_groups(found: MetaGradient) -> Meta:
    """Return all that a meta-gradient holds as groups of named tensors."""
    gradient = {f"gradient/{group}": params for group, params in found.gradient.items()}
    shift = {f"shift/{group}": params for group, params in found.shift.items()}
    return {"losses": {"": found.losses}, "figures": found.figures, **gradient, **shift}


def as_found(groups: Meta) -> MetaGradient:
    """Return the meta-gradient that `as_groups` was given."""

    def of(kind: str) -> Meta:
        named = (item for item in groups.items() if item[0].startswith(kind))
        return {group.removeprefix(kind): params for group, params in named}

    return MetaGradient(of("gradient/"), groups["losses"][""], groups["figures"], of("shift/"))
