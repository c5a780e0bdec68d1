"""Omniglot: 1,623 characters of 50 alphabets, 20 drawings each (Lake et al., Science 2015)."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import Field

from metarun.data.archives import Limits, read_archive
from metarun.data.counter import bits
from metarun.data.decode import decode, square
from metarun.data.fetch import fetch, readable
from metarun.data.images import ImageSource, Pictures, Rotations, image_source
from metarun.data.source import Split
from metarun.data.store import stored
from metarun.errors import ConfigError, DataError

FORMAT = 1  # raise it whenever the pictures change
URL = "https://raw.githubusercontent.com/brendenlake/omniglot/master/python/"
DRAWINGS = 20  # a character
DRAWING_BYTES = 2048
DRAWN, SIZE = 105, 28
DRAWING = re.compile(r"(?P<character>[^/]+/(?P<alphabet>[^/]+)/character\d\d)/\d{4}_\d\d\.png")
RANDOM = (1100, 100, 423)
VINYALS_TEST = 423
HELD_OUT = {"Armenian", "Bengali", "Early_Aramaic", "Hebrew", "Mkhedruli_(Georgian)"}
Protocol = Literal["random", "vinyals", "lake", "within_alphabet"]


class Part(NamedTuple):
    """One of the two halves in which Omniglot is published."""

    name: str
    md5: str  # of the published archive; local copies are known by what they hold
    alphabets: int
    characters: int


PARTS = (
    Part("images_background", "68d2efa1b9178cc56df9314c21c6e718", 30, 964),
    Part("images_evaluation", "6b91aef0f799c5bb55b94e3f2daec811", 20, 659),
)


def omniglot(
    root: Path,
    *,
    protocol: Protocol,
    rotations: Rotations,
    split_seed: Annotated[int, Field(ge=0)],
) -> ImageSource:
    """Give few-shot tasks over Omniglot's characters at 28 x 28, ink 1 and paper 0.

    Reads `root/omniglot/images_background.zip` and `images_evaluation.zip`, or folders of those
    names, or downloads the archives; the first use decodes them, in seconds, and keeps the result.

    `random`: 1100, 100 and 423 characters by a shuffle that `split_seed` names (Finn et al., 2017,
    who drew their own). `vinyals`: the published 1028, 172 and 423 by alphabet (Vinyals et al.,
    2016). `lake`: test on the evaluation half; of the background half five alphabets, those that
    `vinyals` validates on, are held out: 792, 172 and 659. `within_alphabet`: the same characters,
    and each task's are of one alphabet.

    Raises:
        ConfigError: a `split_seed` for a protocol that has one split only.
    """
    if split_seed and protocol != "random":
        raise ConfigError(
            f"dataset.split_seed: {split_seed} does nothing with dataset.protocol={protocol}; set "
            "dataset.split_seed=0, or dataset.protocol=random"
        )
    pictures = read_omniglot(root / "omniglot", PARTS)
    alphabets = [name.rsplit("/", 1)[0] for name in pictures.names]
    number = {alphabet: index for index, alphabet in enumerate(sorted(set(alphabets)))}
    groups = [number[a] for a in alphabets] if protocol == "within_alphabet" else ()
    splits = split_characters(pictures.names, protocol, split_seed)
    return replace(image_source(pictures, splits, rotations, groups), home="omniglot")


def read_omniglot(folder: Path, parts: Sequence[Part]) -> Pictures:
    """Return all drawings, characters in the order of their names `part/alphabet/characterNN`.

    Raises:
        DataError: a part is missing and cannot be downloaded, or does not hold what it should.
    """
    paths = [_locate(folder, part) for part in parts]
    with readable():
        digest = hashlib.sha256(b"".join(map(_fingerprint, paths))).hexdigest()

    def build() -> Pictures:
        characters: dict[str, list[bytes]] = {}
        for path, part in zip(paths, parts, strict=True):
            with readable():
                characters |= _drawings(path, part)
        pixels = bytearray().join(data for drawings in characters.values() for data in drawings)
        ink = 255 - torch.frombuffer(pixels, dtype=torch.uint8).view(-1, 1, SIZE, SIZE)
        return Pictures(ink, (DRAWINGS,) * len(characters), tuple(characters))

    return stored(f"omniglot/{FORMAT}-{digest[:16]}", build)


def split_characters(names: Sequence[str], protocol: Protocol, seed: int) -> dict[Split, list[int]]:
    """Say which characters each split of a protocol holds, by their place in `names`, sorted."""
    places = range(len(names))
    if protocol == "random":
        train, validation, test = RANDOM
        order = bits(("omniglot", "split", seed), torch.tensor(places)).argsort().tolist()
        return {
            "train": order[:train],
            "validation": order[train : train + validation],
            "test": order[train + validation : train + validation + test],
        }
    # The published list is a cut: in the order of names the last 423 are for test, whereby four
    # characters of Gurmukhi are parted from the others; of the rest, five alphabets validate.
    test_from = len(names) - VINYALS_TEST
    if protocol != "vinyals":
        test_from = sum(name.startswith(PARTS[0].name) for name in names)
    held_out = {place for place in places if names[place].split("/")[1] in HELD_OUT}
    return {
        "train": [place for place in places[:test_from] if place not in held_out],
        "validation": sorted(held_out),
        "test": list(places[test_from:]),
    }


def _locate(folder: Path, part: Part) -> Path:
    unpacked = folder / part.name
    if unpacked.is_dir():
        return unpacked
    archive = folder / f"{part.name}.zip"
    return fetch(archive, f"{URL}{archive.name}", f"md5:{part.md5}")


def _fingerprint(path: Path) -> bytes:
    digest = hashlib.sha256()
    if path.is_file():
        digest.update(path.read_bytes())
    for file in sorted(path.rglob("*.png")):
        about = file.stat()
        digest.update(f"{file.relative_to(path)} {about.st_size} {about.st_mtime_ns}\n".encode())
    return digest.digest()


def _members(path: Path, part: Part) -> Iterator[tuple[str, bytes]]:
    drawings = part.characters * DRAWINGS
    folders = part.characters + part.alphabets + 1
    if path.is_file():
        yield from read_archive(path, Limits(drawings + folders, drawings * DRAWING_BYTES))
    for file in path.rglob("*.png"):
        yield file.relative_to(path.parent).as_posix(), file.read_bytes()


def _drawings(path: Path, part: Part) -> dict[str, list[bytes]]:
    """Return a part's characters, each with its drawings as rows of bytes, both in name order."""
    found: dict[str, dict[str, bytes]] = {}
    for name, data in _members(path, part):
        if any(piece.startswith((".", "__")) for piece in name.split("/")):
            continue  # what a desktop leaves in folders and archives
        match = DRAWING.fullmatch(name)
        if match is None or not name.startswith(f"{part.name}/"):
            raise DataError(f"{path}: {name!r} is no drawing of Omniglot; delete or replace it")
        image = decode(data, f"{path}: {name}")
        if image.size != (DRAWN, DRAWN):
            raise DataError(f"{path}: {name!r} is {image.size}, not {DRAWN} x {DRAWN} pixels")
        found.setdefault(match["character"], {})[name] = square(image, SIZE, "L")
    for character, drawings in found.items():
        if len(drawings) != DRAWINGS:
            raise DataError(f"{path}: {len(drawings)} drawings of {character}, not {DRAWINGS}")
    alphabets = len({character.split("/")[1] for character in found})
    if (alphabets, len(found)) != (part.alphabets, part.characters):
        raise DataError(
            f"{path}: {alphabets} alphabets and {len(found)} characters, where Omniglot has "
            f"{part.alphabets} and {part.characters}; delete or replace it"
        )
    return {name: [found[name][key] for key in sorted(found[name])] for name in sorted(found)}
