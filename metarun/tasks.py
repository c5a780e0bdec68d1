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
        if len({tensor.shape[0] for tensor in self.tensors()}) != 1:
            sizes = {f.name: getattr(self, f.name).shape[0] for f in fields(self)}
            raise DataError(f"tasks disagree on how many they are: {sizes}")

    def tensors(self) -> tuple[Tensor, ...]:
        """Return all that a batch is, in the order of its fields."""
        return (self.support_x, self.support_y, self.query_x, self.query_y, self.mode)

    def __len__(self) -> int:
        return self.support_x.shape[0]

    def __getitem__(self, which: int | slice | Tensor) -> Tasks:
        return Tasks(*(tensor[which] for tensor in self.tensors()))

    def blocks(self, size: int) -> Tasks:
        """Return the same as batches of `size` tasks, [B, size, ...]; an index gives a batch."""
        return Tasks(*(tensor.unflatten(0, (-1, size)) for tensor in self.tensors()))

    def chunks(self, size: int) -> Iterator[Tasks]:
        """Yield the batch in its own order, at most `size` tasks at a time."""
        for parts in zip(*(tensor.split(size) for tensor in self.tensors()), strict=True):
            yield Tasks(*parts)

    def to(self, dtype: torch.dtype) -> Tasks:
        """Give inputs and real-valued targets another precision; class ids stay integers."""
        cast = {
            f.name: getattr(self, f.name).to(dtype)
            for f in fields(self)
            if getattr(self, f.name).is_floating_point()
        }
        return replace(self, **cast)


def examples_as_tasks(x: Tensor, y: Tensor) -> Tasks:
    """Wrap labelled examples, [T, n, ...] each, as the queries of tasks without a support."""
    return Tasks(x[:, :0], y[:, :0], x, y, torch.zeros(len(x), dtype=torch.long, device=x.device))
