"""Read archives that may be broken or hostile, without ever unpacking one.

Members are handed out as bytes in memory, so no name in an archive can reach the disk. All that
can be judged from the list of members is judged before the first of them is handed out.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import mmap
import re
import stat
import tarfile
import unicodedata
import zipfile
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from metarun.errors import DataError

SLACK = 1.1
ENTRY_BYTES = 2048  # that an archive may spend on a member, beside its content
ZIP_ENTRY = re.compile(rb"PK\x01\x02")
TAR_PLAIN = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE)
DRIVE = re.compile(r"[A-Za-z]:")


class Limits(NamedTuple):
    """What an archive of a known data set holds; a tenth more is let through."""

    members: int
    content: int  # bytes, uncompressed

    @property
    def stream(self) -> int:
        """Bytes of content and of what describes it."""
        return self.content + self.members * ENTRY_BYTES

    def allow(self, path: Path, *, members: int = 0, content: int = 0, stream: int = 0) -> None:
        """Raise DataError when an archive holds more than that."""
        for name, found, limit in (
            ("members", members, self.members),
            ("bytes", content, self.content),
            ("bytes with headers", stream, self.stream),
        ):
            if found > limit * SLACK:
                raise DataError(
                    f"{path}: over {limit * SLACK:.0f} {name}, more than it should hold"
                )


def read_archive(path: Path, limits: Limits) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of each regular file of a zip or tar archive, in its own order.

    Raises:
        DataError: a name is absolute, leaves the archive, comes twice or differs in case alone; a
            member is a link, a device or encrypted; more than `limits`; damaged or cut short.
    """
    with _refusing(path):
        with path.open("rb") as file:
            is_zip = file.read(2) == b"PK"
        if is_zip:
            yield from _zip_members(path, limits)
        else:
            for _ in _tar_members(path, limits, content=False):
                pass
            yield from _tar_members(path, limits, content=True)


@contextmanager
def _refusing(path: Path) -> Generator[None]:
    try:
        yield
    except DataError:
        raise
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise DataError(f"{path}: {error.strerror}") from None
    # Decoders of five formats meet hostile bytes here, and none of them says what it may raise.
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{path}: damaged or cut short ({reason}); delete or replace it") from error


def _zip_members(path: Path, limits: Limits) -> Iterator[tuple[str, bytes]]:
    # Counted in the raw file: zipfile makes an object of each entry, however many there are.
    limits.allow(path, stream=path.stat().st_size)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as raw:
        for number, _ in enumerate(ZIP_ENTRY.finditer(raw), 1):
            limits.allow(path, members=number)
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        limits.allow(path, members=len(entries), content=sum(e.file_size for e in entries))
        seen: dict[str, str] = {}
        names = [_plain_name(path, entry.orig_filename, seen) for entry in entries]
        for entry in entries:
            _expect_plain(
                path,
                entry.filename,
                stat.S_IFMT(entry.external_attr >> 16) in (0, stat.S_IFREG, stat.S_IFDIR),
            )
            if entry.flag_bits & 1:
                raise DataError(f"{path}: member {entry.filename!r} is encrypted")
        for name, entry in zip(names, entries, strict=True):
            if not entry.is_dir():
                yield name, archive.read(entry)


def _tar_members(path: Path, limits: Limits, content: bool) -> Iterator[tuple[str, bytes]]:
    with _decompressed(path) as plain:
        metered = _Metered(plain, path, limits)
        with tarfile.open(fileobj=metered, mode="r|") as archive:
            seen: dict[str, str] = {}
            total = 0
            for number, member in enumerate(archive, 1):
                total += abs(member.size)
                limits.allow(path, members=number, content=total)
                name = _plain_name(path, member.name, seen)
                _expect_plain(path, name, member.type in TAR_PLAIN and not member.issparse())
                if content and member.isreg():
                    data = archive.extractfile(member)
                    assert data is not None
                    yield name, data.read()
            if metered.total <= archive.offset:
                raise EOFError("the end mark is missing")


def _decompressed(path: Path) -> io.BufferedIOBase:
    with path.open("rb") as file:
        magic = file.read(6)
    if magic.startswith(b"\x1f\x8b"):
        return gzip.open(path)
    if magic.startswith(b"BZh"):
        return bz2.open(path)
    return lzma.open(path) if magic == b"\xfd7zXZ\x00" else path.open("rb")


class _Metered(io.BufferedIOBase):
    """A stream that stops a bomb: tarfile reads long headers whole, whatever size they claim."""

    def __init__(self, source: io.BufferedIOBase, path: Path, limits: Limits) -> None:
        self.source, self.path, self.limits, self.total = source, path, limits, 0

    def read(self, size: int | None = -1, /) -> bytes:
        data = self.source.read(size)
        self.total += len(data)
        self.limits.allow(self.path, stream=self.total)
        return data


def _expect_plain(path: Path, name: str, plain: bool) -> None:
    if not plain:
        raise DataError(f"{path}: member {name!r} is a link or a device, not a file or a folder")


def _plain_name(path: Path, name: str, seen: dict[str, str]) -> str:
    """Return a member's name without `.` parts; refuse one that escapes or that is not unique."""
    parts = name.removesuffix("/").split("/")
    if {"", ".."} & set(parts) or DRIVE.match(name) or "\\" in name or not name.isprintable():
        raise DataError(f"{path}: member {name!r} is not a plain path within the archive")
    plain = "/".join(part for part in parts if part != ".")
    folded = unicodedata.normalize("NFC", plain).casefold()
    if folded in seen:
        raise DataError(f"{path}: members {seen[folded]!r} and {name!r} would be one file")
    seen[folded] = name
    return plain
