"""What became of each job of a sweep: one JSON object a line, only ever appended to.

Several processes write it, each line by one call. An invocation of the sweep starts with a line of
kind `sweep`; then come lines of kind `job`, and of kind `stop` when it was asked to end early.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from metarun.errors import StorageError
from metarun.files import is_torn, storage_error, write_all
from metarun.records import masked

NAME = "manifest.jsonl"
State = Literal["pending", "running", "done", "failed", "preempted"]
Entry = dict[str, Any]


def append(sweep: Path, kind: Literal["sweep", "job", "stop"], **figures: Any) -> None:
    """Append one line, stamped with the wall clock; secrets of the environment are masked.

    Raises:
        StorageError: the folder is full, read-only or gone.
    """
    entry = masked({"kind": kind, "time": time.time(), **figures})
    line = f"{json.dumps(entry)}\n".encode()
    path = sweep / NAME
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            if kind == "sweep" and is_torn(file):
                line = b"\n" + line
            write_all(file, line)
        finally:
            os.close(file)
    except OSError as error:
        raise storage_error(error, path, len(line)) from error


def read(sweep: Path) -> list[Entry]:
    """Return all lines in the order written, without those that a kill tore."""
    try:
        data = (sweep / NAME).read_bytes()
    except FileNotFoundError:
        return []
    entries: list[Entry] = []
    for line in data.split(b"\n"):
        with suppress(ValueError):
            entry = json.loads(line)
            if isinstance(entry, dict) and "kind" in entry:
                entries.append(entry)
    return entries


def latest(entries: Sequence[Entry]) -> tuple[Entry, list[Entry]]:
    """Return the line that the newest invocation started with, and the lines since."""
    start = max(n for n, entry in enumerate(entries) if entry["kind"] == "sweep")
    return entries[start], list(entries[start + 1 :])


def current(sweep: Path) -> tuple[Entry, list[Entry]]:
    """Return `latest` of a sweep that is running.

    Raises:
        StorageError: there is no such line any more: somebody removed the folder.
    """
    if is_lost(sweep):
        raise StorageError(
            f"{sweep / NAME}: was deleted while the sweep was running; no result can be kept, so "
            "the sweep stops; give the same command again to start afresh"
        )
    return latest(read(sweep))


def is_lost(sweep: Path) -> bool:
    """Tell whether a sweep that once began has no line left that says so."""
    return not any(entry["kind"] == "sweep" for entry in read(sweep))


def jobs(entries: Sequence[Entry]) -> dict[str, Entry]:
    """Return each job's newest line, in the order in which the jobs were first named."""
    found: dict[str, Entry] = {}
    for entry in entries:
        if entry["kind"] == "job":
            found[entry["job"]] = {**found.get(entry["job"], {}), **entry}
    return found


def outcome(folder: Path) -> dict[str, Any] | None:
    """Return a run's outcome, or None when it has none yet, or one that is damaged."""
    with suppress(FileNotFoundError, NotADirectoryError, ValueError):
        found = json.loads((folder / "outcome.json").read_bytes())
        return found if isinstance(found, dict) and "status" in found else None
    return None
