"""The user's own images: both layouts, any size, and one clear line when something is wrong."""

from __future__ import annotations

import os
from collections.abc import Callable
from itertools import chain
from pathlib import Path

import pytest
import torch
from PIL import Image

from metarun.data.folder import deal_classes, folder
from metarun.data.images import ImageSource
from metarun.errors import ConfigError, DataError, MetarunError

KEYS = {
    "size": 8,
    "colour": True,
    "rotations": "none",
    "train_fraction": 0.5,
    "validation_fraction": 0.25,
    "split_seed": 0,
}


def paint(path: Path, colour: tuple[int, int, int], size: tuple[int, int] = (20, 20)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Eight classes of 3 to 10 images of mixed sizes; red tells the class, green the image."""
    for label in range(8):
        for number in range(3 + label):
            suffix = (".png", ".bmp", ".PNG")[number % 3]
            path = tmp_path / "mine" / f"class{label}" / f"{number}{suffix}"
            paint(path, (label * 30, number * 20, 7), (9 + number, 30 - number))
    (tmp_path / "mine" / ".hidden").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("not a class")
    (tmp_path / "mine" / "class0" / "notes.txt").write_text("not an image")
    (tmp_path / "mine" / "class0" / "._0.png").write_text("as macOS leaves one for each image")
    return tmp_path / "mine"


def opened(place: Path, **other: object) -> ImageSource:
    return folder(place.parent, path=str(place), **(KEYS | other))


def class_names(source: ImageSource) -> dict[str, set[str]]:
    return {split: {source.names[i] for i in ids.tolist()} for split, ids in source.classes.items()}


def test_images_of_any_size_become_classes(place: Path):
    source = opened(place)
    assert source.features == (3, 8, 8)
    assert source.names == tuple(f"class{label}" for label in range(8))
    assert source.counts.tolist() == list(range(3, 11))
    for label in range(8):
        start = int(source.starts[label])
        for number in range(3 + label):
            found = source.bank[start + number].flatten(1)
            expected = torch.tensor([[label * 30], [number * 20], [7]])
            assert (found == expected).all()


def test_grey_has_one_channel(place: Path):
    assert opened(place, colour=False, size=12).features == (1, 12, 12)


def test_classes_are_dealt_out_by_the_fractions(place: Path):
    splits = class_names(opened(place))
    assert [len(splits[s]) for s in ("train", "validation", "test")] == [4, 2, 2]
    assert len(set.union(*splits.values())) == 8
    assert splits == class_names(opened(place))
    assert any(splits != class_names(opened(place, split_seed=seed)) for seed in (1, 2))


@pytest.mark.parametrize("classes", [1, 2, 3, 7, 100])
def test_every_class_is_dealt_once(classes: int):
    dealt = deal_classes(classes, (0.64, 0.16), 3)
    assert sorted(chain.from_iterable(dealt.values())) == list(range(classes))


@pytest.mark.parametrize("val", ["val", "valid", "validation"])
def test_folders_may_name_the_splits(tmp_path: Path, val: str):
    for split, labels in {"train": "abc", val: "de", "test": "fg"}.items():
        for label in labels:
            paint(tmp_path / "mine" / split / label / "1.png", (1, 2, 3))
    splits = class_names(opened(tmp_path / "mine"))
    assert splits == {
        "train": {"train/a", "train/b", "train/c"},
        "validation": {f"{val}/d", f"{val}/e"},
        "test": {"test/f", "test/g"},
    }


def test_the_path_is_found_from_here_and_from_the_root(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(place.parent)
    here = folder(tmp_path / "elsewhere", path="mine", **KEYS)
    monkeypatch.chdir("/")
    there = folder(place.parent, path="mine", **KEYS)
    assert torch.equal(here.bank, there.bank)


def test_the_cache_follows_the_images(place: Path, cache: Path):
    first = opened(place)
    assert torch.equal(opened(place).bank, first.bank)
    assert len(list((cache / "folder").glob("*.safetensors"))) == 1
    paint(place / "class0" / "0.png", (255, 255, 255))
    assert not torch.equal(opened(place).bank, first.bank)
    paint(place / "class0" / "new.png", (9, 9, 9))
    assert opened(place).counts[0] == 4


def test_a_name_that_is_no_text_is_as_good_as_any(place: Path):
    before = opened(place)
    (place / "class0").rename(os.fsdecode(bytes(place) + b"/class0\xe9"))
    found = opened(place)
    assert torch.equal(found.bank, before.bank)
    assert found.names[0] == "class0\udce9"


def refused(place: Path, kind: type[MetarunError] = DataError, **other: object) -> str:
    with pytest.raises(kind) as caught:
        opened(place, **other)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_missing_folder_is_named(tmp_path: Path):
    assert refused(tmp_path / "nowhere").startswith(f"dataset.path={tmp_path / 'nowhere'}: no such")


def test_a_folder_without_classes_is_explained(tmp_path: Path):
    (tmp_path / "mine").mkdir()
    paint(tmp_path / "mine" / "1.png", (1, 1, 1))
    assert "class/image.png" in refused(tmp_path / "mine")


def test_a_class_without_images_is_named(place: Path):
    (place / "class9").mkdir()
    assert refused(place).startswith(f"{place / 'class9'}: no images")


def test_folders_in_a_class_are_taken_for_splits_of_another_name(place: Path):
    paint(place / "Train" / "cat" / "1.png", (1, 2, 3))
    text = refused(place)
    assert text.startswith(f"{place / 'Train'}: no images of this class, but folders; ")
    assert text.endswith("must be train, validation (or val, valid) and test, and no others")


@pytest.mark.parametrize("name", ["bad.heic", "bad.SVG"])
def test_an_image_of_another_kind_is_not_left_out_unsaid(place: Path, name: str):
    (place / "class3" / name).write_text("of a kind that is not read")
    assert refused(place).startswith(f"{place / 'class3' / name}: not a readable image (none of ")


@pytest.mark.parametrize("fault", ["text", "cut", "folder", "huge"])
def test_an_unreadable_image_is_named(place: Path, fault: str):
    path = place / "class3" / "bad.png"
    if fault == "text":
        path.write_text("no image")
    elif fault == "cut":
        paint(path, (1, 2, 3), (200, 200))
        path.write_bytes(path.read_bytes()[:100])
    elif fault == "folder":
        path.mkdir()
    else:
        Image.new("1", (9000, 9000)).save(path)
    assert refused(place).startswith(f"{path}: ")


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_is_no_file_is_named(place: Path, make: Callable[[Path], None]):
    """To read a pipe that nobody writes to would take for ever."""
    make(place / "class3" / "odd.png")
    with pytest.raises(DataError, match=r"class3/odd\.png: called as an image and no file"):
        opened(place)


def test_a_class_in_two_splits_is_refused(tmp_path: Path):
    for split in ("train", "test"):
        paint(tmp_path / "mine" / split / "cat" / "1.png", (1, 2, 3))
    text = refused(tmp_path / "mine")
    assert "class 'cat' lies in test and in train; " in text
    assert text.endswith("put all images of a class into one split")


@pytest.mark.parametrize(
    ("there", "missing"),
    [("train", "validation/ and test/"), ("train test", "validation/"), ("train val", "test/")],
)
def test_a_missing_folder_of_a_split_is_named(tmp_path: Path, there: str, missing: str):
    (tmp_path / "mine" / "test").mkdir(parents=True)  # without classes it is no split
    for split in there.split():
        paint(tmp_path / "mine" / split / f"{split}-cat" / "1.png", (1, 2, 3))
    text = refused(tmp_path / "mine")
    assert text.startswith(f"{tmp_path / 'mine'}: {missing} missing or without classes; add ")


def test_fractions_must_leave_something_for_test(place: Path):
    text = refused(place, ConfigError, train_fraction=0.8, validation_fraction=0.2)
    assert text.startswith("dataset.train_fraction=0.8: ")


@pytest.mark.parametrize(
    ("train", "validation", "said"),
    [
        (0.1, 0.4, "train split .* by a larger dataset.train_fraction"),
        (0.6, 0.1, "validation split .* by a larger dataset.validation_fraction"),
        (0.5, 0.45, "test split .* by smaller dataset.train_fraction and dataset.validation_frac"),
    ],
)
def test_a_split_with_too_few_classes_names_the_fraction_that_gives_it_more(
    train: float, validation: float, said: str, place: Path
):
    source = opened(place, train_fraction=train, validation_fraction=validation)
    with pytest.raises(ConfigError, match=f"{said}.*$"):
        source.check(ways=2, shots=1, queries=1)


def test_splits_that_folders_name_are_not_dealt_out(tmp_path: Path):
    for split in ("train", "validation", "test"):
        paint(tmp_path / "mine" / split / f"{split}-cat" / "1.png", (1, 2, 3))
    with pytest.raises(ConfigError, match=r"give the split more classes$"):
        opened(tmp_path / "mine").check(ways=2, shots=1, queries=1)


def test_a_class_that_is_too_small_is_named(place: Path):
    source = opened(place)
    with pytest.raises(ConfigError, match=r"'class\d' of the \w+ split has \d+ \(4 of its 4 class"):
        source.check(ways=2, shots=5, queries=6)
    with pytest.raises(ConfigError, match=r"'class0' of the \w+ split has 3; lower .* leave such"):
        source.check(ways=2, shots=1, queries=3)
    source.check(ways=2, shots=1, queries=2)
