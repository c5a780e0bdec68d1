"""The embedded characters: classes apart, splits by script, hard enough and not too hard."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest
import torch

from metarun.data.glyphs import IMAGES, SCRIPTS, draw, glyphs
from metarun.data.images import ImageSource
from metarun.data.source import Split


def script(name: str) -> str:
    return name.split()[0]


def names(source: ImageSource, split: Split) -> set[str]:
    return {source.names[i] for i in source.classes[split].tolist()}


def test_there_are_enough_classes_of_twenty_images(glyph_source: ImageSource):
    sizes = {split: len(ids) for split, ids in glyph_source.classes.items()}
    assert sizes["train"] > 700
    assert sizes["validation"] > 80
    assert sizes["test"] > 150
    assert (glyph_source.counts == IMAGES).all()
    assert glyph_source.features == (1, 28, 28)
    glyph_source.check(ways=20, shots=5, queries=15)


def test_no_script_is_in_two_splits(glyph_source: ImageSource):
    homes = {
        split: {script(name) for name in names(glyph_source, split)}
        for split in glyph_source.classes
    }
    assert set.union(*homes.values()) == set(SCRIPTS)
    assert sum(map(len, homes.values())) == len(SCRIPTS)


TWINS = [
    "AΑА",  # noqa: RUF001
    "oOοоՕ",  # noqa: RUF001
    "IΙІ",  # noqa: RUF001
    "xXх",  # noqa: RUF001
    "cсC",  # noqa: RUF001
    "wW",
    "шШ",
]


@pytest.mark.parametrize("twins", TWINS)
def test_characters_that_look_alike_are_one_class(glyph_source: ImageSource, twins: str):
    assert sum(unicodedata.name(twin) in glyph_source.names for twin in twins) <= 1


@pytest.mark.parametrize("others", ["OQ", "EFGH", "AOC", "רד", "ႠႡႢ"])
def test_characters_that_look_different_are_not(glyph_source: ImageSource, others: str):
    assert all(unicodedata.name(other) in glyph_source.names for other in others)


def test_every_picture_is_a_character(glyph_source: ImageSource):
    pixels = glyph_source.bank[:, 0].float() / 255
    ink = pixels.mean((1, 2))
    assert ink.min() > 0.01
    assert ink.max() < 0.6
    assert pixels.amax((1, 2)).min() > 0.5
    border = torch.cat([pixels[:, 0], pixels[:, -1], pixels[:, :, 0], pixels[:, :, -1]], 1)
    assert border.mean() < 0.02


def test_no_two_pictures_are_equal(glyph_source: ImageSource):
    rows = glyph_source.bank.flatten(1)
    assert len(rows.unique(dim=0)) > 0.999 * len(rows)


def nearest_neighbour(source: ImageSource, split: Split) -> float:
    """5-way 1-shot accuracy of comparing pixels."""
    tasks = source.tasks(split, 0, 300, ways=5, shots=1, queries=15, seed=0)
    support, query = (
        torch.nn.functional.normalize(x.flatten(2), dim=-1)
        for x in (tasks.support_x, tasks.query_x)
    )
    return float(((query @ support.mT).argmax(-1) == tasks.query_y).float().mean())


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_pixels_tell_something_and_leave_room(glyph_source: ImageSource, split: Split):
    """Omniglot's own figure is 0.49 (upright, random protocol, test)."""
    assert 0.4 < nearest_neighbour(glyph_source, split) < 0.7


@pytest.mark.slow
def test_drawing_again_gives_the_same_pictures(glyph_source: ImageSource):
    again = draw()
    assert torch.equal(again.pixels, glyph_source.bank)
    assert again.names == glyph_source.names


@pytest.mark.slow
def test_the_first_use_fills_the_cache_and_the_second_reads_it(cache: Path):
    first = glyphs(Path(), rotations="as_classes")
    (file,) = (cache / "glyphs").glob("*.safetensors")
    written = file.stat()
    second = glyphs(Path(), rotations="as_classes")
    now = file.stat()  # reading moves the time of access
    assert (now.st_ino, now.st_mtime_ns) == (written.st_ino, written.st_mtime_ns)
    assert torch.equal(first.bank, second.bank)
    assert first.train_classes == 4 * len(glyphs(Path(), rotations="none").classes["train"])
