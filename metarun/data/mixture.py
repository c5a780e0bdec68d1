"""Several image data sets in one stream of tasks, with the source as the mode."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from metarun.data.folder import Fraction, folder, located
from metarun.data.glyphs import SIZE, glyphs
from metarun.data.images import ImageSource, Rotations
from metarun.data.omniglot import Protocol, omniglot
from metarun.data.source import Source, Split
from metarun.errors import ConfigError, DataError
from metarun.nearest import did_you_mean
from metarun.tasks import Tasks

KNOWN = ("glyphs", "omniglot")  # sources that are no folders
Name = Annotated[str, Field(min_length=1, description="glyphs, omniglot or a folder")]


def mixture(
    root: Path,
    *,
    sources: Annotated[list[Name], Field(min_length=1)],
    rotations: Rotations,
    protocol: Protocol,
    train_fraction: Fraction,
    validation_fraction: Fraction,
    split_seed: Annotated[int, Field(ge=0)],
) -> MixedSource:
    """Give few-shot tasks of each source in turn: task i is of source i modulo their number.

    A source is `glyphs`, `omniglot` or a folder as `dataset=folder` takes it; all give 28 x 28
    pixels of one channel. `protocol` is omniglot's, the fractions are the folders'.

    Raises:
        ConfigError: two sources of one name, which no report could tell apart.
        DataError: a source that is nothing of these, or as its own kind raises it.
    """
    found: list[ImageSource] = []
    for source in sources:
        if source == "glyphs":
            found.append(glyphs(root, rotations=rotations))
        elif source == "omniglot":
            found.append(
                omniglot(root, protocol=protocol, rotations=rotations, split_seed=split_seed)
            )
        else:
            _refuse_missing(source, root)
            found.append(
                folder(
                    root,
                    path=source,
                    size=SIZE,
                    colour=False,
                    rotations=rotations,
                    train_fraction=train_fraction,
                    validation_fraction=validation_fraction,
                    split_seed=split_seed,
                )
            )
    names = tuple(Path(source).name for source in sources)
    if twins := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(
            f"dataset.sources: {', '.join(twins)} is there more than once; name each source once, "
            "and give folders different names"
        )
    return MixedSource(tuple(found), names)


def _refuse_missing(source: str, root: Path) -> None:
    if located(root, source) is None:
        near = did_you_mean(source, KNOWN)
        raise DataError(
            f"dataset.sources: {source} is neither glyphs nor omniglot{near}, nor a folder, here "
            f"or in {root}"
        )


def class_names(source: Source | ImageSource, split: Split) -> frozenset[tuple[str, str]]:
    """Return home and name of a split's classes; a source that is not of images has none."""
    if isinstance(source, MixedSource):
        return frozenset[tuple[str, str]]().union(*(class_names(s, split) for s in source.sources))
    if isinstance(source, ImageSource):
        return frozenset((source.home, source.name(n)) for n in source.classes[split].tolist())
    return frozenset()


def notices(source: Source | ImageSource) -> list[str]:
    """Return what a user should know of the images, a line a source of them."""
    if isinstance(source, MixedSource):
        parts = zip(source.modes, source.sources, strict=True)
        return [f"{mode}: {line}" for mode, part in parts for line in notices(part)]
    return [source.notice] if isinstance(source, ImageSource) and source.notice else []


@dataclass(frozen=True, slots=True, eq=False)
class MixedSource:
    """Tasks of several sources in turn, every one equally frequent."""

    sources: tuple[ImageSource, ...]
    modes: tuple[str, ...]

    kind: ClassVar[Literal["classification", "regression"]] = "classification"
    targets: ClassVar[int] = 0

    @property
    def features(self) -> tuple[int, ...]:
        """Channels, height and width, the same in all."""
        return self.sources[0].features

    @property
    def train_classes(self) -> int:
        """Classes of all training splits together."""
        return sum(source.train_classes for source in self.sources)

    @property
    def fingerprint(self) -> Mapping[Split, str]:
        """The sources' digests of each split, in their order."""
        prints = [source.fingerprint for source in self.sources]
        return {split: " ".join(each[split] for each in prints) for split in prints[0]}

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
        """Return tasks first..first+count-1; a source numbers its own without gaps."""
        parts: list[Tasks] = []
        for mode, source in enumerate(self.sources):
            begin, number = self._own(mode, first, count)
            part = source.tasks(
                split, begin, number, ways=ways, shots=shots, queries=queries, seed=seed
            )
            parts.append(replace(part, mode=torch.full_like(part.mode, mode)))
        order = self._order(first, count).to(parts[0].mode.device)
        columns = ([getattr(part, f.name) for part in parts] for f in fields(Tasks))
        return Tasks(*(torch.cat(column)[order] for column in columns))

    def examples(self, first: int, count: int, *, seed: int) -> tuple[Tensor, Tensor]:
        """Return training images of each source in turn; classes are numbered through."""
        images: list[Tensor] = []
        labels: list[Tensor] = []
        classes = 0
        for mode, source in enumerate(self.sources):
            x, y = source.examples(*self._own(mode, first, count), seed=seed)
            images.append(x)
            labels.append(y + classes)
            classes += source.train_classes
        order = self._order(first, count).to(labels[0].device)
        return torch.cat(images)[order], torch.cat(labels)[order]

    def check(self, *, ways: int, shots: int, queries: int) -> None:
        """Raise ConfigError, naming the source, when one cannot give such tasks."""
        for name, source in zip(self.modes, self.sources, strict=True):
            try:
                source.check(ways=ways, shots=shots, queries=queries)
            except ConfigError as error:
                raise ConfigError(f"{error} (dataset.sources: {name})") from error

    def to(self, device: torch.device) -> MixedSource:
        """Return the same source with its tensors on a device."""
        return replace(self, sources=tuple(source.to(device) for source in self.sources))

    def _own(self, mode: int, first: int, count: int) -> tuple[int, int]:
        """Return where a source's own numbering begins in a range, and how many of it are its."""
        several = len(self.sources)
        begin, end = (-((mode - bound) // several) for bound in (first, first + count))
        return begin, end - begin

    def _order(self, first: int, count: int) -> Tensor:
        """Return where each item lies when sources stand one after the other."""
        mode = torch.arange(first, first + count) % len(self.sources)
        return mode.argsort(stable=True).argsort()
