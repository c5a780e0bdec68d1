"""Keep decoded images on disk, so that only the first run of a data set waits for them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from metarun.data.images import Pictures
from metarun.errors import StorageError
from metarun.files import TEMPORARY, cache_root, waiting_lock, write_atomic

FORMAT = 1


def stored(name: str, build: Callable[[], Pictures]) -> Pictures:
    """Return the pictures kept as `name`, built first where they are missing or damaged.

    `name` must tell everything that the result depends on, but for pillow's version, which makes
    all pictures. One process builds while others wait; where the cache folder cannot be written,
    each builds its own.
    """
    path = cache_root() / f"{name}-pillow-{version('pillow')}.safetensors"
    found = _read(path)
    if found is None:
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
        with waiting_lock(path.parent / ".lock") as alone:
            found = _read(path)
            if found is None:
                found = build()
                _write(path, found, alone)
    return found


def _read(path: Path) -> Pictures | None:
    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata()
            pixels, counts = file.get_tensor("pixels"), file.get_tensor("counts").tolist()
        found = Pictures(pixels, tuple(counts), tuple(json.loads(about["names"])))
        if about["digest"] == _digest(found):
            return found
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, AttributeError):
        pass
    return None


def _write(path: Path, pictures: Pictures, alone: bool) -> None:
    tensors = {"pixels": pictures.pixels, "counts": torch.tensor(pictures.counts)}
    about = {"names": json.dumps(pictures.names), "digest": _digest(pictures)}
    with suppress(OSError, StorageError):
        if alone:
            for left in path.parent.glob(TEMPORARY):  # by a process that was killed here
                left.unlink()
        write_atomic(path, save(tensors, about))


def _digest(pictures: Pictures) -> str:
    about = (FORMAT, pictures.pixels.shape, pictures.counts, pictures.names)
    digest = hashlib.sha256(repr(about).encode())
    digest.update(pictures.pixels.numpy().data)
    return digest.hexdigest()
