"""The user's own images: one folder a class, and a folder a split where the user has split them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from stat import S_ISREG
from typing import Annotated

import torch
from pydantic import Field

from metarun.data.counter import bits
from metarun.data.decode import Mode, decode, square
from metarun.data.fetch import readable
from metarun.data.images import ImageSource, Pictures, Rotations, image_source
from metarun.data.repeats import repeats
from metarun.data.source import Split
from metarun.data.store import stored
from metarun.errors import ConfigError, DataError

FORMAT = 1  # raise it whenever the pictures change
# What people take for images: one that cannot be read is refused by name, not left out unsaid.
SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".gif", ".bmp", ".webp", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".heic", ".heif", ".avif", ".jp2", ".svg"),
)
SPLIT_NAMES: dict[str, Split] = {
    "train": "train",
    "validation": "validation",
    "val": "validation",
    "valid": "validation",
    "test": "test",
}
WIDER: dict[Split, str] = {
    "train": "a larger dataset.train_fraction",
    "validation": "a larger dataset.validation_fraction",
    "test": "smaller dataset.train_fraction and dataset.validation_fraction, which leave it more",
}
Fraction = Annotated[float, Field(gt=0, lt=1)]


def folder(
    root: Path,
    *,
    path: Annotated[str, Field(min_length=1, description="a folder")],
    size: Annotated[int, Field(ge=4, le=1024)],
    colour: bool,
    rotations: Rotations,
    train_fraction: Fraction,
    validation_fraction: Fraction,
    split_seed: Annotated[int, Field(ge=0)],
) -> ImageSource:
    """Give few-shot tasks over a folder of images, `class/image.png` or `split/class/image.png`.

    `path` is taken from the working directory, else from `root`. Images of any size and kind are
    cut to their largest centred square and resized; hidden files and folders do not count. Folders
    named train, validation (or val, valid) and test, and no others, are the splits; otherwise
    classes are dealt out by the fractions, of which test gets the rest, in an order that
    `split_seed` names.

    Raises:
        DataError: no such folder, no images in it, in a split or in a class, or an image that
            cannot be read.
        ConfigError: the fractions leave nothing for test.
    """
    if train_fraction + validation_fraction >= 1:
        raise ConfigError(
            f"dataset.train_fraction={train_fraction}: with dataset.validation_fraction="
            f"{validation_fraction} nothing is left for test; their sum must be below 1"
        )
    place = located(root, path)
    if place is None:
        raise DataError(f"dataset.path={path}: no such folder, neither here nor in {root}")
    mode: Mode = "RGB" if colour else "L"
    with readable():
        files = _images_by_class(place)
        pictures = stored(_key(place, files, size, mode), lambda: _decode(files, size, mode))
    splits, wider = _named_splits(place, pictures.names), {}
    if splits is None:
        shares, wider = (train_fraction, validation_fraction), WIDER
        splits = deal_classes(len(pictures.names), shares, split_seed)
    source = image_source(pictures, splits, rotations)
    return replace(source, home=str(place), notice=repeats(pictures, splits), wider=wider)


def deal_classes(classes: int, shares: tuple[float, float], seed: int) -> Mapping[Split, list[int]]:
    """Deal classes out to train, validation and, what is left, test; rounded to whole classes."""
    order = bits(("folder", "split", seed), torch.arange(classes)).argsort().tolist()
    first = round(classes * shares[0])
    second = round(classes * sum(shares))
    return {"train": order[:first], "validation": order[first:second], "test": order[second:]}


def located(root: Path, path: str) -> Path | None:
    """Return the folder that a path names, from the working directory or else from `root`."""
    given = Path(path).expanduser()
    return next((place.resolve() for place in (given, root / given) if place.is_dir()), None)


def _images_by_class(place: Path) -> dict[str, list[Path]]:
    """Return each class's images; a class is called as its folder, from `place` on."""
    visible = [child for child in sorted(place.iterdir()) if _is_open_folder(child)]
    names = {child.name for child in visible}
    if "train" in names and names <= set(SPLIT_NAMES):
        visible = [c for split in visible for c in sorted(split.iterdir()) if _is_open_folder(c)]
    if not visible:
        raise DataError(
            f"{place}: holds no folders of classes; images belong into class/image.png or "
            "split/class/image.png below it"
        )
    files: dict[str, list[Path]] = {}
    for child in visible:
        found = sorted(file for file in child.iterdir() if _is_image(file))
        if not found:
            raise DataError(_no_images(child))
        files[child.relative_to(place).as_posix()] = found
    return files


def _is_open_folder(path: Path) -> bool:
    return path.is_dir() and not path.name.startswith((".", "__"))


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def _no_images(place: Path) -> str:
    if any(map(_is_open_folder, place.iterdir())):
        return (
            f"{place}: no images of this class, but folders; where these are the classes, the "
            "folders above them must be train, validation (or val, valid) and test, and no others"
        )
    return f"{place}: no images of this class; add some, or take the folder away"


def _named_splits(place: Path, names: Sequence[str]) -> dict[Split, list[int]] | None:
    """Return the splits that the user's folders name, or None where these name none."""
    splits: dict[Split, list[int]] = {"train": [], "validation": [], "test": []}
    homes: dict[str, str] = {}
    for number, name in enumerate(names):
        home, _, label = name.rpartition("/")
        if not home:
            return None
        if label in homes:
            raise DataError(
                f"{place}: class {label!r} lies in {homes[label]} and in {home}; a test is of "
                "classes that training did not see, so put all images of a class into one split"
            )
        homes[label] = home
        splits[SPLIT_NAMES[home]].append(number)
    if missing := [split for split, numbers in splits.items() if not numbers]:
        folders = " and ".join(f"{split}/" for split in missing)
        raise DataError(
            f"{place}: {folders} missing or without classes; add {missing[0]}/class/image.png, or "
            "take all classes out of the folders of splits to have them dealt out"
        )
    return splits


def _key(place: Path, files: Mapping[str, list[Path]], size: int, mode: Mode) -> str:
    digest = hashlib.sha256(os.fsencode(f"{place} {size} {mode}"))
    for found in files.values():
        for file in found:
            about = file.stat()
            if not S_ISREG(about.st_mode):  # a pipe would never end
                raise DataError(f"{file}: called as an image and no file; take it away")
            digest.update(os.fsencode(f"{file} {about.st_size} {about.st_mtime_ns}\n"))
    return f"folder/{FORMAT}-{digest.hexdigest()[:16]}"


def _decode(files: Mapping[str, list[Path]], size: int, mode: Mode) -> Pictures:
    pixels = bytearray()
    for file in (file for found in files.values() for file in found):
        pixels += square(decode(file.read_bytes(), str(file)), size, mode)
    flat = torch.frombuffer(pixels, dtype=torch.uint8).view(-1, size, size, len(mode))
    counts = tuple(len(found) for found in files.values())
    return Pictures(flat.permute(0, 3, 1, 2).contiguous(), counts, tuple(files))
