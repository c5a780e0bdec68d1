"""The same picture more than once: what makes test tasks easier, or senseless, without a sign."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

from metarun.data.images import Pictures
from metarun.data.source import Split


def repeats(pictures: Pictures, splits: Mapping[Split, Sequence[int]]) -> str:
    """Say in one line which pictures are there more than once, pixel by pixel; nothing if none is.

    A picture in two splits is tested after it was trained on, one in two classes has no right
    label, and one twice in a class may be support and query of one task.
    """
    split_of = {number: split for split, numbers in splits.items() for number in numbers}
    homes: dict[bytes, list[int]] = {}
    for number, images in enumerate(pictures.pixels.split(pictures.counts)):
        for image in images.numpy():
            homes.setdefault(hashlib.sha256(image.data).digest(), []).append(number)
    found: dict[str, list[list[int]]] = {"different splits": [], "different classes": []}
    found["one class"] = []
    for classes in homes.values():
        if len({split_of[number] for number in classes}) > 1:
            found["different splits"].append(classes)
        elif len(set(classes)) > 1:
            found["different classes"].append(classes)
        elif len(classes) > 1:
            found["one class"].append(classes)
    said = [
        f"{len(some)} in {kind} ({_named(pictures, some[0])})"
        for kind, some in found.items()
        if some
    ]
    return f"the same picture is there more than once: {', '.join(said)}" if said else ""


def _named(pictures: Pictures, classes: Sequence[int]) -> str:
    first, *others = dict.fromkeys(pictures.names[number] for number in classes)
    return f"such as of {first!r}" + (f" and {others[0]!r}" if others else "")
