"""Classes of images as one uint8 tensor, and tasks drawn from it for a whole batch at once.

Letters in shapes: T tasks, N ways, K shots, Q queries a class.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from metarun.data.counter import bits, integers, smallest
from metarun.data.source import Split
from metarun.errors import ConfigError
from metarun.tasks import Tasks

Rotations = Literal["per_task", "as_classes", "none"]
LAST = torch.iinfo(torch.int64).max  # a key that is drawn only when nothing else is left


class Pictures(NamedTuple):
    """Images as a data set keeps them, class after class."""

    pixels: Tensor  # uint8 [images, channels, size, size], contiguous
    counts: tuple[int, ...]  # images of each class
    names: tuple[str, ...]  # of each class


@dataclass(frozen=True, slots=True, eq=False)
class ImageSource:
    """Few-shot tasks from classes of images; see `image_source`."""

    bank: Tensor  # uint8 [turns * images, channels, size, size]
    starts: Tensor  # [classes] row of a class's first image in the bank
    counts: Tensor  # [classes]
    largest: int  # of the counts
    names: tuple[str, ...]  # of classes as they are; quarter turns as classes follow, in this order
    classes: Mapping[Split, Tensor]  # which classes each split holds
    groups: Mapping[Split, Tensor]  # their groups, 0..G-1 in each split; empty: no grouping
    turn: int  # rows of the bank that a quarter turn is away; 0: tasks do not turn classes
    fingerprint: Mapping[Split, str]  # of each split's images, and of how they are numbered
    home: str = ""  # where the images are from: a data set, or a folder
    notice: str = ""  # what a user should know of the images
    # By what settings a split gets more classes, where some do.
    wider: Mapping[Split, str] = field(default_factory=dict[Split, str])

    kind: ClassVar[Literal["classification", "regression"]] = "classification"
    targets: ClassVar[int] = 0
    modes: ClassVar[tuple[str, ...]] = ("all",)

    @property
    def features(self) -> tuple[int, ...]:
        """Channels, height and width."""
        return tuple(self.bank.shape[1:])

    @property
    def train_classes(self) -> int:
        """Classes of the training split."""
        return len(self.classes["train"])

    def name(self, number: int) -> str:
        """Return the name of a class, whichever way it is turned."""
        return self.names[number % len(self.names)]

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
        """Return tasks first..first+count-1: inputs in 0..1, ordered by label.

        Labels number a task's classes in random order. More queries leave the support as it is.
        """
        pool = self.classes[split]
        task = torch.arange(first, first + count, device=pool.device)[:, None]
        keys = bits((seed, split, "class"), task, pool)  # [T, classes]
        if self.groups:
            keys = keys.masked_fill(self._outside_group(split, task, ways, seed), LAST)
        chosen = pool[smallest(ways, keys)]  # [T, N]
        drawing = torch.arange(self.largest, device=pool.device)
        keys = bits((seed, split, "drawing"), task[..., None], chosen[..., None], drawing)
        keys = keys.masked_fill(drawing >= self.counts[chosen][..., None], LAST)
        rows = self.starts[chosen][..., None] + smallest(shots + queries, keys)  # [T, N, K + Q]
        if self.turn:
            rows += self.turn * integers(4, (seed, split, "turn"), task, chosen)[..., None]
        label = torch.arange(ways, device=pool.device)
        return Tasks(
            self._images(rows[..., :shots].flatten(1)),
            label.repeat_interleave(shots).expand(count, -1).contiguous(),
            self._images(rows[..., shots:].flatten(1)),
            label.repeat_interleave(queries).expand(count, -1).contiguous(),
            torch.zeros_like(task[:, 0]),
        )

    def examples(self, first: int, count: int, *, seed: int) -> tuple[Tensor, Tensor]:
        """Return training images, drawn with repetition, and their classes 0..train_classes-1.

        Every class is equally frequent. Where tasks turn classes, each image is turned at random
        and keeps its class.
        """
        pool = self.classes["train"]
        item = torch.arange(first, first + count, device=pool.device)
        label = integers(len(pool), (seed, "examples", "class"), item)
        chosen = pool[label]
        rows = self.starts[chosen]
        rows = rows + integers(self.counts[chosen], (seed, "examples", "drawing"), item)
        if self.turn:
            rows += self.turn * integers(4, (seed, "examples", "turn"), item)
        return self._images(rows), label

    def check(self, *, ways: int, shots: int, queries: int) -> None:
        """Raise ConfigError when a split lacks classes or a class lacks images for such tasks."""
        if ways < 2:
            raise ConfigError(
                f"task.ways={ways}: one class leaves nothing to tell apart; set task.ways to 2 or "
                "more"
            )
        for split, pool in self.classes.items():
            most = len(pool)
            if split in self.groups and most:
                most = int(self.groups[split].bincount().max())
            if ways > most:
                where = "largest group of the " if split in self.groups else ""
                fewer = f"use {most} ways or fewer, or " if most >= 2 else ""
                by = f" by {self.wider[split]}" if split in self.wider else ""
                raise ConfigError(
                    f"task.ways={ways}: the {where}{split} split has {most} "
                    f"class{'es' * (most != 1)}; {fewer}give the split more classes{by}"
                )
            scarcest = pool[self.counts[pool].argmin()]
            images = int(self.counts[scarcest])
            if shots + queries > images:
                short = int((self.counts[pool] < shots + queries).sum())
                rest = f" ({short} of its {len(pool)} classes have too few)" if short > 1 else ""
                raise ConfigError(
                    f"task.shots={shots} and {queries} queries: a task needs {shots + queries} "
                    f"images of a class, and {self.name(int(scarcest))!r} of the {split} split "
                    f"has {images}{rest}; lower task.shots, task.queries or task.test_queries, or "
                    "leave such classes out"
                )

    def to(self, device: torch.device) -> ImageSource:
        """Return the same source with its tensors on a device."""
        return replace(
            self,
            bank=self.bank.to(device),
            starts=self.starts.to(device),
            counts=self.counts.to(device),
            classes={split: ids.to(device) for split, ids in self.classes.items()},
            groups={split: ids.to(device) for split, ids in self.groups.items()},
        )

    def _outside_group(self, split: Split, task: Tensor, ways: int, seed: int) -> Tensor:
        """Draw a group with enough classes for each task; mark the classes outside it."""
        group = self.groups[split]
        sizes = group.bincount()
        keys = bits((seed, split, "group"), task, torch.arange(len(sizes), device=task.device))
        return group != smallest(1, keys.masked_fill(sizes < ways, LAST))  # [T, classes]

    def _images(self, rows: Tensor) -> Tensor:
        flat = self.bank.index_select(0, rows.flatten()).to(torch.float32).div_(255.0)
        return flat.view(*rows.shape, *self.features)


def image_source(
    pictures: Pictures,
    splits: Mapping[Split, Sequence[int]],
    rotations: Rotations,
    groups: Sequence[int] = (),
) -> ImageSource:
    """Put classes into splits; with `groups`, a number a class, a task stays within one group.

    `rotations` by quarter turns: `per_task` turns each class of a task at random, support and
    query alike; `as_classes` makes four classes of each. Either keeps four copies of the images.
    """
    turns = 1 if rotations == "none" else 4
    images, classes = len(pictures.pixels), len(pictures.counts)
    bank = torch.cat([pictures.pixels.rot90(turn, (-2, -1)) for turn in range(turns)])
    counts = torch.tensor(pictures.counts)
    starts = counts.cumsum(0) - counts
    ids: dict[Split, Tensor] = {s: torch.tensor(n, dtype=torch.long) for s, n in splits.items()}
    if rotations == "as_classes":
        starts = torch.cat([starts + turn * images for turn in range(turns)])
        ids = {s: torch.cat([n + turn * classes for turn in range(turns)]) for s, n in ids.items()}
        counts = counts.repeat(turns)
    grouped: dict[Split, Tensor] = {}
    if groups:
        group = torch.tensor(groups).repeat(len(counts) // classes)
        grouped = {s: group[n].unique(return_inverse=True)[1] for s, n in ids.items()}
    return ImageSource(
        bank,
        starts,
        counts,
        max(pictures.counts),
        pictures.names,
        ids,
        grouped,
        images if rotations == "per_task" else 0,
        {split: _digest(pictures, numbers, groups) for split, numbers in splits.items()},
    )


def _digest(pictures: Pictures, numbers: Sequence[int], groups: Sequence[int]) -> str:
    """Return a SHA-256 over all that tasks of these classes depend on; names do not count."""
    digest = hashlib.sha256(repr(tuple(pictures.pixels.shape[1:])).encode())
    of_class = pictures.pixels.split(pictures.counts)
    for number in numbers:
        group = groups[number] if groups else 0
        digest.update(f" {number} {pictures.counts[number]} {group} ".encode())
        digest.update(of_class[number].numpy().data)
    return digest.hexdigest()
