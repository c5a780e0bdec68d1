"""The truth about a run: one JSON object a line, only ever appended to."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from metarun.errors import StorageError
from metarun.files import is_torn, storage_error, write_all

NAME = "records.jsonl"
RESTARTS = ("start", "resumed")  # the steps after theirs are done anew
ONCE = ("train", "validate", "test")  # kinds that a step has one of
SECRET_NAMES = ("KEY", "TOKEN", "SECRET", "PASSWORD")
SHORTEST_SECRET = 6  # a shorter value is a word such as "true", and would blank half the text
MASK = "***"

Record = dict[str, Any]


class Records:
    """Append records to `folder`; every line is one write, so that a kill tears at most the last.

    Values of environment variables that look like secrets are masked, non-finite numbers become
    the strings "NaN", "Infinity" and "-Infinity" (`float` reads them back), arrays lists.

    Raises:
        StorageError: from every method, when the folder is full, read-only or gone.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / NAME
        self._secrets = secrets_of(os.environ)
        try:
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
            if is_torn(self._file):  # a reader skips what a kill has torn, once it is a line
                write_all(self._file, b"\n")
        except OSError as error:
            raise storage_error(error, self.path, 1) from error

    def write(self, kind: str, step: int, figures: Mapping[str, object] | None = None) -> None:
        """Append one record, stamped with the wall clock; the caller measures intervals itself."""
        record = {"kind": kind, "step": step, "time": time.time(), **(figures or {})}
        text = json.dumps(plain(record, self._secrets), allow_nan=False)
        line = f"{text}\n".encode()
        try:
            write_all(self._file, line)
        except OSError as error:
            raise storage_error(error, self.path, len(line)) from error

    def sync(self) -> None:
        """Make all records durable; also notices that the file was deleted under the writer."""
        try:
            os.fsync(self._file)
            gone = os.fstat(self._file).st_nlink == 0
        except OSError as error:
            raise storage_error(error, self.path, 0) from error
        if gone:
            raise StorageError(
                f"{self.path}: was deleted while the run was writing it; nothing more can be kept, "
                "so the run stops; give the same command again to start afresh"
            )

    def close(self) -> None:
        """Close the file; without a sync."""
        os.close(self._file)

    def __enter__(self) -> Records:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read(folder: Path) -> list[Record]:
    """Return the records of a run folder in the order written, without lines that a kill tore."""
    try:
        data = (folder / NAME).read_bytes()
    except FileNotFoundError:
        return []
    return parse(data)


def parse(data: bytes) -> list[Record]:
    """Turn whole lines into records; an unfinished last line, or one torn earlier, is no record."""
    records: list[Record] = []
    for line in data.split(b"\n")[:-1]:
        with suppress(ValueError, RecursionError):
            record = json.loads(line)
            if isinstance(record, dict) and {"kind", "step", "time"} <= record.keys():
                records.append(record)
    return records


def merged(records: list[Record]) -> list[Record]:
    """Drop what a resume has made history: each step of each kind remains at most once.

    After `resumed` at step s, or another `start` at 0, the run repeats all that came later than s,
    its test and its end; of two records of one kind and step the later stands.
    """
    kept: dict[object, Record] = {}
    for number, record in enumerate(records):
        kind, step = record["kind"], record["step"]
        if kind in RESTARTS:
            kept = {key: r for key, r in kept.items() if not _superseded(r, step)}
        key = (kind, step) if kind in ONCE else number
        kept.pop(key, None)  # so that the later one stands at its own place
        kept[key] = record
    return list(kept.values())


def masked(value: Any) -> Any:
    """Copy plain values, such as a configuration, with the environment's secrets masked."""
    return plain(value, secrets_of(os.environ))


def secrets_of(environment: Mapping[str, str]) -> tuple[str, ...]:
    """Return the values to hide, longest first so that one inside another leaves no rest."""
    found = {
        value
        for name, value in environment.items()
        if len(value) >= SHORTEST_SECRET and any(word in name.upper() for word in SECRET_NAMES)
    }
    return tuple(sorted(found, key=len, reverse=True))


def plain(value: Any, secrets: tuple[str, ...] = ()) -> Any:
    """Turn a value into what JSON can say, with `secrets` masked in keys and texts."""
    match value:
        case bool() | int() | None:
            return value
        case float():
            return value if math.isfinite(value) else _name_of(value)
        case str():
            for secret in secrets:
                value = value.replace(secret, MASK)
            return value
        case Mapping():
            return {plain(str(k), secrets): plain(v, secrets) for k, v in value.items()}
        case list() | tuple():
            return [plain(v, secrets) for v in value]
        case Path():
            return plain(str(value), secrets)
        case _:
            return plain(value.tolist(), secrets)  # tensors, arrays and their scalars


def _name_of(number: float) -> str:
    return "NaN" if math.isnan(number) else "Infinity" if number > 0 else "-Infinity"


def _superseded(record: Record, step: int) -> bool:
    kind = record["kind"]
    return kind in ("test", "end") or (kind in (*ONCE, "diverged") and record["step"] > step)
