"""Several image data sets in one stream: each in turn, none disturbed by the others."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest
import torch
from PIL import Image

from metarun.data.folder import folder
from metarun.data.mixture import MixedSource, class_names, mixture
from metarun.data.source import Source
from metarun.errors import ConfigError, DataError
from metarun.tasks import Tasks

SPLITS = {"train_fraction": 0.4, "validation_fraction": 0.3, "split_seed": 0}
SHAPE = {"ways": 2, "shots": 1, "queries": 2, "seed": 4}
NAMES = ("dark", "grey", "light")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Three folders of 7 to 9 classes; brightness tells the folder, then the class."""
    for number, name in enumerate(NAMES):
        for label in range(7 + number):
            for image in range(4):
                path = tmp_path / name / f"class{label}" / f"{image}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("L", (28, 28), 80 * number + 8 * label + image).save(path)
    return tmp_path


def opened(place: Path, *names: str) -> MixedSource:
    sources = [str(place / name) for name in names]
    return mixture(place, sources=sources, rotations="none", protocol="random", **SPLITS)


def test_each_source_is_asked_in_turn_and_is_the_mode(place: Path) -> None:
    source: Source = opened(place, *NAMES)
    assert source.modes == NAMES
    assert source.features == (1, 28, 28)
    assert source.train_classes == 3 + 3 + 4
    source.check(ways=2, shots=1, queries=2)
    tasks = source.tasks("train", 5, 7, **SHAPE)
    assert tasks.mode.tolist() == [i % 3 for i in range(5, 12)]
    brightness = 255 * tasks.support_x.flatten(1).amax(1) // 80
    assert brightness.tolist() == tasks.mode.tolist()


def test_a_task_is_what_its_source_alone_gives(place: Path) -> None:
    mixed = opened(place, *NAMES).tasks("test", 0, 9, **SHAPE)
    for mode, name in enumerate(NAMES):
        keys = {"size": 28, "colour": False, "rotations": "none"} | SPLITS
        alone = folder(place, path=str(place / name), **keys).tasks("test", 0, 3, **SHAPE)
        assert torch.equal(mixed.query_x[mode::3], alone.query_x)
        assert torch.equal(mixed.query_y[mode::3], alone.query_y)


@pytest.mark.parametrize("size", [1, 2, 4, 5])
def test_chunks_are_parts_of_the_whole(place: Path, size: int) -> None:
    source = opened(place, "dark", "light")
    whole = source.tasks("validation", 3, 11, **SHAPE)
    parts = [
        source.tasks("validation", 3 + first, min(size, 11 - first), **SHAPE)
        for first in range(0, 11, size)
    ]
    for field in fields(Tasks):
        together = torch.cat([getattr(part, field.name) for part in parts])
        assert torch.equal(together, getattr(whole, field.name))
    x, y = source.examples(0, 10, seed=1)
    others = [source.examples(i, 1, seed=1) for i in range(10)]
    assert torch.equal(x, torch.cat([a for a, _ in others]))
    assert torch.equal(y, torch.cat([b for _, b in others]))


def test_classes_of_one_name_are_told_apart_by_their_source(place: Path) -> None:
    source = opened(place, "dark", "light")
    names = {split: class_names(source, split) for split in ("train", "validation", "test")}
    assert [len(found) for found in names.values()] == [3 + 4, 2 + 2, 2 + 3]
    assert len(frozenset.union(*names.values())) == 7 + 9
    assert {home for home, _ in names["test"]} == {str(place / "dark"), str(place / "light")}
    own = {(str(place / "dark"), f"class{label}") for label in range(7)}
    assert class_names(source.sources[0], "test") < own


def test_examples_number_the_classes_through(place: Path) -> None:
    source = opened(place, *NAMES)
    x, y = source.examples(0, 300, seed=0)
    assert sorted(set(y.tolist())) == list(range(source.train_classes))
    mode = torch.arange(300) % 3
    assert (255 * x.flatten(1).amax(1) // 80).tolist() == mode.tolist()
    assert [int(y[mode == m].min()) for m in range(3)] == [0, 3, 6]


def test_the_fingerprint_is_of_all_sources(place: Path) -> None:
    first = opened(place, "dark", "light").fingerprint
    assert len(set(first.values())) == 3
    for path in (place / "light").glob("*/0.png"):
        Image.new("L", (28, 28), 0).save(path)
    second = opened(place, "dark", "light").fingerprint
    assert all(second[split] != digest for split, digest in first.items())


def test_mistakes_name_the_source(place: Path) -> None:
    with pytest.raises(ConfigError, match=r"task\.ways=3: .*\(dataset\.sources: light\)"):
        opened(place, "light", "dark").check(ways=3, shots=1, queries=1)
    with pytest.raises(ConfigError, match=r"dataset\.sources: dark is there more than once"):
        opened(place, "dark", "light", "dark")


def test_a_misspelt_source_is_named_by_its_own_key(place: Path) -> None:
    said = (
        r"^dataset\.sources: \S*omniglott is neither .* \(did you mean omniglot\?\), nor a folder"
    )
    with pytest.raises(DataError, match=said):
        mixture(place, sources=["omniglott"], rotations="none", protocol="random", **SPLITS)
