"""Where data sets lie, and how one that is missing gets there."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import textwrap
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from metarun.errors import DataError
from metarun.files import cache_root, waiting_lock

RETRIES = 2


def data_root() -> Path:
    """Return the folder of data sets: METARUN_DATA, or the user's cache folder."""
    named = os.environ.get("METARUN_DATA")
    return Path(named).expanduser() if named else cache_root()


def fetch(path: Path, url: str, checksum: str) -> Path:
    """Return `path`; when no file is there, download it first, once for all processes that ask.

    Only what has the checksum (`md5:...` or `sha256:...`) ever bears the name.

    Raises:
        DataError: it cannot be had; the text says which file to put where.
    """
    if path.is_file():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with waiting_lock(path.with_name(f".{path.name}.lock")) as alone:
            if not path.is_file():
                _download(path, url, checksum, alone)
    # What requests raises is an OSError; for a wrong sum pooch raises a ValueError.
    except (OSError, ValueError) as error:
        reason = textwrap.shorten(str(error), 160, placeholder=" ...")
        raise DataError(
            f"{path}: not there, and not to be had from {url} ({reason}); put that file there, or "
            f"set METARUN_DATA to the folder that holds {path.parent.name}/{path.name}"
        ) from error
    return path


@contextmanager
def readable() -> Generator[None]:
    """Turn the system's refusal to read a file or folder into a DataError that names it."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{error.filename}: {error.strerror}; make it readable, or remove it"
        ) from error


def _download(path: Path, url: str, checksum: str, alone: bool) -> None:
    import pooch  # slow to import, and needed once in the life of a data set

    pooch.get_logger().setLevel(logging.CRITICAL)
    if alone:
        for left in path.parent.glob(f".{path.name}-*"):  # by a process that was killed here
            shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent) as folder:
        source = pooch.create(
            path=folder,
            base_url="",
            registry={path.name: checksum},
            urls={path.name: url},
            retry_if_failed=RETRIES,
        )
        os.replace(source.fetch(path.name), path)
