"""What a data set is to the rest of metarun: an endless, numbered list of tasks a split."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Protocol

import torch
from torch import Tensor

from metarun.tasks import Tasks

Split = Literal["train", "validation", "test"]


class Source(Protocol):
    """An endless numbered list of tasks; task i is a pure function of (seed, split, shape, i).

    A source has no state, so resuming, chunking and comparing need no bookkeeping: whoever
    asks for tasks 64..95 gets the same tensors, alone or in one batch, on every device.
    """

    @property
    def kind(self) -> Literal["classification", "regression"]: ...
    @property
    def features(self) -> tuple[int, ...]:
        """Shape of one input: (1, 28, 28) or (1,)."""
        ...

    @property
    def targets(self) -> int:
        """Width of one regression target; 0 for classification."""
        ...

    @property
    def modes(self) -> tuple[str, ...]:
        """Names of the families that Tasks.mode counts; one name at least."""
        ...

    @property
    def train_classes(self) -> int:
        """Classes of the training split, with rotations if these are classes; 0 for regression."""
        ...

    @property
    def fingerprint(self) -> Mapping[Split, str]:
        """A digest of what each split holds; empty where tasks are made from numbers alone."""
        ...

    def tasks(
        self,
        split: Split,
        first: int,
        count: int,
        *,
        ways: int,
        shots: int,
        queries: int,
        seed: int,
    ) -> Tasks:
        """Return tasks first..first+count-1 of the split: inputs float32, labels int64 0..N-1."""
        ...

    def examples(self, first: int, count: int, *, seed: int) -> tuple[Tensor, Tensor]:
        """Return `count` training examples x [n, *features] and class ids [n] or targets [n, D]."""
        ...

    def check(self, *, ways: int, shots: int, queries: int) -> None:
        """Raise ConfigError, naming the numbers, when a split cannot give such tasks."""
        ...

    def to(self, device: torch.device) -> Source:
        """Return the same source with its tensors on a device."""
        ...
