"""A batch of tasks, and how a function of one task is run over it.

Letters in shapes: T tasks, N ways, K shots, Q queries a class, S = N*K, R = N*Q.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from metarun.errors import DataError


@dataclass(frozen=True, slots=True)
class Tasks:
    """A batch of tasks; every tensor's first axis is T."""

    support_x: Tensor  # [T, S, *features]
    support_y: Tensor  # [T, S] class ids, or [T, S, D] targets
    query_x: Tensor  # [T, R, *features]
    query_y: Tensor  # [T, R] or [T, R, D]
    mode: Tensor  # [T] which family the task came from: for metrics and oracles, never an input

    def __post_init__(self) -> None:
        tensors = (self.support_x, self.support_y, self.query_x, self.query_y, self.mode)
        if len({tensor.shape[0] for tensor in tensors}) != 1:
            sizes = {f.name: getattr(self, f.name).shape[0] for f in fields(self)}
            raise DataError(f"tasks disagree on how many they are: {sizes}")

    def __len__(self) -> int:
        return self.support_x.shape[0]

    def __getitem__(self, which: slice | Tensor) -> Tasks:
        return Tasks(*(getattr(self, f.name)[which] for f in fields(self)))

    def chunks(self, size: int) -> Iterator[Tasks]:
        """Yield the batch in its own order, at most `size` tasks at a time."""
        for parts in zip(*(getattr(self, f.name).split(size) for f in fields(self)), strict=True):
            yield Tasks(*parts)

    def to(self, dtype: torch.dtype) -> Tasks:
        """Give inputs and real-valued targets another precision; class ids stay integers."""
        cast = {
            f.name: getattr(self, f.name).to(dtype)
            for f in fields(self)
            if getattr(self, f.name).is_floating_point()
        }
        return replace(self, **cast)


def examples_as_task(x: Tensor, y: Tensor) -> Tasks:
    """Wrap labelled examples as one task whose query holds them all; its support is empty."""
    return Tasks(x[None, :0], y[None, :0], x[None], y[None], torch.zeros(1, dtype=torch.long))
