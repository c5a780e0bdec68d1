"""Omniglot: its four protocols, and the care with which its archives are read."""

from __future__ import annotations

import io
import itertools
import os
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hostile import rewrite, zip_of
from PIL import Image
from scipy import stats

from metarun.data.images import ImageSource
from metarun.data.omniglot import (
    HELD_OUT,
    PARTS,
    Part,
    Protocol,
    omniglot,
    read_omniglot,
    split_characters,
)
from metarun.errors import ConfigError, DataError

TINY = (Part("images_background", "0" * 32, 2, 3), Part("images_evaluation", "0" * 32, 1, 2))
CHARACTERS = (
    "images_background/Greek/character01",
    "images_background/Greek/character02",
    "images_background/Hebrew/character01",
    "images_evaluation/ULOG/character01",
    "images_evaluation/ULOG/character02",
)
PROTOCOLS: tuple[Protocol, ...] = ("random", "vinyals", "lake", "within_alphabet")


def drawing(character: int, number: int, side: int = 105) -> bytes:
    """A black square on white paper, whose place tells which drawing it is."""
    image = Image.new("1", (side, side), 1)
    image.paste(0, (4 * number, 12 * character, 4 * number + 12, 12 * character + 12))
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def tiny_members(part: Part) -> dict[str, bytes]:
    return {
        f"{name}/{index + 1:04}_{number + 1:02}.png": drawing(index, number)
        for index, name in enumerate(CHARACTERS)
        for number in range(20)
        if name.startswith(part.name)
    }


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A folder with the archives of an Omniglot of five characters."""
    folder = tmp_path / "data" / "omniglot"
    folder.mkdir(parents=True)
    for part in TINY:
        zip_of(folder / f"{part.name}.zip", tiny_members(part))
    return folder


def test_drawings_come_out_in_order_with_ink_as_one(tiny: Path):
    found = read_omniglot(tiny, TINY)
    assert found.names == CHARACTERS
    assert found.counts == (20,) * 5
    assert found.pixels.shape == (100, 1, 28, 28)
    images = found.pixels.view(5, 20, 28, 28).double()
    assert images.amax((2, 3)).min() > 250
    assert images.mean() < 10
    ink = images / images.sum((2, 3), keepdim=True)
    place = torch.arange(28).double()
    across, down = (ink.sum(2) * place).sum(2), (ink.sum(3) * place).sum(2)
    expected = torch.arange(20) * 4 * 28 / 105 + 6 * 28 / 105 - 0.5
    assert (across - expected).abs().max() < 0.2
    assert (down.mean(1) - (torch.arange(5) * 12 + 6) * 28 / 105 + 0.5).abs().max() < 0.2


def test_folders_and_archives_give_the_same(tiny: Path, cache: Path):
    zipped = read_omniglot(tiny, TINY)
    for part in TINY:
        with zipfile.ZipFile(tiny / f"{part.name}.zip") as archive:
            archive.extractall(tiny)
        (tiny / f"{part.name}.zip").unlink()
        (tiny / part.name / ".DS_Store").write_bytes(b"what a desktop leaves")
    unpacked = read_omniglot(tiny, TINY)
    assert torch.equal(zipped.pixels, unpacked.pixels)
    assert zipped[1:] == unpacked[1:]
    assert len(list((cache / "omniglot").glob("*.safetensors"))) == 2
    assert sum(path.suffix == ".lock" for path in tiny.iterdir()) == 0  # a root that is only read


def test_reading_leaves_the_root_as_it_was(tiny: Path):
    before = {path: path.stat().st_mtime_ns for path in tiny.rglob("*")}
    read_omniglot(tiny, TINY)
    assert {path: path.stat().st_mtime_ns for path in tiny.rglob("*")} == before


def test_the_cache_is_used_while_the_archive_stays_the_same(tiny: Path, cache: Path):
    read_omniglot(tiny, TINY)
    (kept,) = (cache / "omniglot").glob("*.safetensors")
    written = kept.stat()
    os.utime(tiny / "images_background.zip", (0, 0))
    read_omniglot(tiny, TINY)
    now = kept.stat()  # reading moves the time of access
    assert (now.st_ino, now.st_mtime_ns) == (written.st_ino, written.st_mtime_ns)
    members = tiny_members(TINY[0])
    first = next(iter(members))
    zip_of(tiny / "images_background.zip", members | {first: drawing(7, 7)})
    changed = read_omniglot(tiny, TINY)
    assert len(list((cache / "omniglot").glob("*.safetensors"))) == 2
    assert changed.pixels[0, 0, 22:26].any()


def without_one(members: dict[str, bytes]) -> dict[str, bytes]:
    return dict(itertools.islice(members.items(), 1, None))


def without_character(members: dict[str, bytes]) -> dict[str, bytes]:
    return dict(itertools.islice(members.items(), 20, None))


FAULTS: dict[str, tuple[Callable[[dict[str, bytes]], dict[str, bytes]], str]] = {
    "a drawing is missing": (without_one, "19 drawings of images_background/Greek/character01"),
    "a character is missing": (without_character, "2 alphabets and 2 characters, where"),
    "a stranger": (lambda m: m | {"images_background/notes.txt": b"x"}, "notes.txt"),
    "the other half": (lambda m: tiny_members(TINY[1]), "is no drawing"),
    "a small drawing": (lambda m: m | {next(iter(m)): drawing(0, 0, 60)}, "not 105 x 105"),
    "no image": (lambda m: m | {next(iter(m)): b"x"}, "not a readable image"),
    "climbing out": (lambda m: m | {"images_background/../../x.png": b"x"}, "plain path"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_an_archive_with_a_fault_is_refused(tiny: Path, cache: Path, fault: str):
    change, word = FAULTS[fault]
    path = zip_of(tiny / "images_background.zip", change(tiny_members(TINY[0])))
    with pytest.raises(DataError) as caught:
        read_omniglot(tiny, TINY)
    text = str(caught.value)
    assert word in text
    assert text.startswith(f"{path}: ")
    assert "\n" not in text
    assert not list(cache.rglob("*.safetensors"))


def test_a_drawing_that_cannot_be_read_is_named(tiny: Path):
    (tiny / "images_background" / "bad.png").mkdir(parents=True)
    with pytest.raises(DataError, match=r"bad\.png: Is a directory; make it readable"):
        read_omniglot(tiny, TINY)


def test_a_truncated_archive_is_refused(tiny: Path):
    path = tiny / "images_evaluation.zip"
    rewrite(path, path.read_bytes()[:-2000])
    with pytest.raises(DataError, match="damaged or cut short"):
        read_omniglot(tiny, TINY)


def test_missing_archives_say_what_to_put_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")  # nobody listens: no network
    monkeypatch.setattr("metarun.data.fetch.RETRIES", 0)
    with pytest.raises(DataError) as caught:
        omniglot(tmp_path, protocol="random", rotations="none", split_seed=0)
    path = tmp_path / "omniglot" / "images_background.zip"
    assert str(caught.value).startswith(f"{path}: not there")
    assert "brendenlake/omniglot" in str(caught.value)


@pytest.fixture(scope="session")
def names(real_data: Path) -> list[str]:
    """The 1,623 characters of the real archives, from the lists of their members."""
    found: set[str] = set()
    for part in PARTS:
        with zipfile.ZipFile(real_data / "omniglot" / f"{part.name}.zip") as archive:
            found |= {name.rsplit("/", 1)[0] for name in archive.namelist() if name[-1] != "/"}
    return sorted(found)


COUNTS = {
    "random": (1100, 100, 423),
    "vinyals": (1028, 172, 423),
    "lake": (792, 172, 659),
    "within_alphabet": (792, 172, 659),
}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_protocols_split_as_published(names: list[str], protocol: Protocol):
    splits = split_characters(names, protocol, 0)
    assert tuple(len(splits[s]) for s in ("train", "validation", "test")) == COUNTS[protocol]
    together = [place for places in splits.values() for place in places]
    assert len(set(together)) == len(together)


def test_vinyals_split_is_by_alphabet_as_the_published_lists_are(names: list[str]):
    splits = split_characters(names, "vinyals", 0)
    homes = {
        split: Counter(names[place].rsplit("/", 1)[0] for place in places)
        for split, places in splits.items()
    }
    assert {home.split("/")[1] for home in homes["validation"]} == HELD_OUT
    assert sum(home.startswith("images_background/") for home in homes["train"]) == 25
    assert sum(home.startswith("images_evaluation/") for home in homes["train"]) == 8
    assert len(homes["test"]) == 13
    assert set(homes["train"]) & set(homes["test"]) == {"images_evaluation/Gurmukhi"}
    assert homes["train"]["images_evaluation/Gurmukhi"] == 41
    assert homes["test"]["images_evaluation/Gurmukhi"] == 4


@pytest.mark.parametrize("protocol", ["lake", "within_alphabet"])
def test_lake_tests_on_the_evaluation_half(names: list[str], protocol: Protocol):
    splits = split_characters(names, protocol, 0)
    assert all(names[place].startswith("images_evaluation") for place in splits["test"])
    for split in ("train", "validation"):
        assert all(names[place].startswith("images_background") for place in splits[split])
    alphabets = [{names[p].split("/")[1] for p in splits[s]} for s in ("train", "validation")]
    assert not alphabets[0] & alphabets[1]


def test_the_random_split_is_named_by_its_seed(names: list[str]):
    first, again, other = (split_characters(names, "random", seed) for seed in (1, 1, 2))
    assert first == again
    shared = len(set(first["test"]) & set(other["test"]))
    assert 1e-3 < stats.hypergeom.cdf(shared, 1623, 423, 423) < 1 - 1e-3


def test_a_seed_of_the_split_is_for_the_random_split_alone(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"split_seed: 3 does nothing with .*protocol=lake"):
        omniglot(tmp_path, protocol="lake", rotations="none", split_seed=3)


@pytest.fixture(scope="session")
def real_source(real_data: Path, shared_cache: Path) -> Callable[[Protocol, str], ImageSource]:
    def source(protocol: Protocol, rotations: str) -> ImageSource:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("XDG_CACHE_HOME", str(shared_cache))
            return omniglot(real_data, protocol=protocol, rotations=rotations, split_seed=0)

    return source


@pytest.mark.slow
def test_the_real_archives_give_every_protocol(
    real_data: Path, real_source: Callable[[Protocol, str], ImageSource]
):
    before = sorted(real_data.rglob("*"))
    for protocol, rotations in itertools.product(PROTOCOLS, ("per_task", "as_classes", "none")):
        source = real_source(protocol, rotations)
        turns = 4 if rotations == "as_classes" else 1
        assert source.train_classes == COUNTS[protocol][0] * turns
        source.check(ways=20, shots=1, queries=1)
        tasks = source.tasks("test", 0, 4, ways=20, shots=1, queries=1, seed=0)
        assert tasks.support_x.shape == (4, 20, 1, 28, 28)
        assert 0.02 < tasks.query_x.mean() < 0.2
    assert sorted(real_data.rglob("*")) == before


@pytest.mark.slow
def test_tasks_within_an_alphabet_keep_to_it(
    real_source: Callable[[Protocol, str], ImageSource],
):
    source = real_source("within_alphabet", "none")
    tasks = source.tasks("train", 0, 30, ways=14, shots=1, queries=1, seed=0)
    rows = {image.numpy().tobytes(): i for i, image in enumerate(source.bank)}
    whole = (tasks.support_x * 255).round().to(torch.uint8)
    for task in whole:
        characters = {source.names[rows[image.numpy().tobytes()] // 20] for image in task}
        assert len(characters) == 14
        assert len({name.rsplit("/", 1)[0] for name in characters}) == 1
