"""Archives that no reader should trust, each well-formed but for its one fault."""

from __future__ import annotations

import gzip
import io
import stat
import struct
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

GOOD = {"part/a/one.txt": b"first", "part/a/two.txt": b"second" * 50, "part/b/three.txt": b""}
SYMLINK = (stat.S_IFLNK | 0o777) << 16
DEVICE = (stat.S_IFBLK | 0o666) << 16


def zip_of(
    path: Path, members: Mapping[str, bytes], extra: tuple[zipfile.ZipInfo, bytes] | None = None
) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
        if extra:
            archive.writestr(*extra)
    return path


def tar_of(path: Path, members: Mapping[str, bytes], *extra: tarfile.TarInfo) -> Path:
    mode = {".gz": "w:gz", ".xz": "w:xz", ".bz2": "w:bz2"}.get(path.suffix, "w")
    with tarfile.open(path, mode) as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        for info in extra:
            archive.addfile(info)
    return path


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def zip_special(name: str, attributes: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = attributes
    return info


def zip_twice(path: Path) -> Path:
    zip_of(path, {"x/a": b"1", "x/b": b"2"})
    return rewrite(path, path.read_bytes().replace(b"x/b", b"x/a"))


def zip_encrypted(path: Path) -> Path:
    data = bytearray(zip_of(path, GOOD).read_bytes())
    for signature, offset in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        data[data.index(signature) + offset] |= 1
    return rewrite(path, bytes(data))


def zip_crowd(path: Path, members: int) -> Path:
    """So many entries that a list of them is the harm; they all tell of one file."""
    one = zip_of(path, {"a": b""}).read_bytes()
    start, end = one.index(b"PK\1\2"), one.index(b"PK\5\6")
    entry = one[start:end]
    directory = entry * members
    tail = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 65535, 65535, len(directory), start, 0)
    return rewrite(path, one[:start] + directory + tail)


def tar_crowd(path: Path, members: int) -> Path:
    blocks = b"".join(tarfile.TarInfo(f"f{number}").tobuf() for number in range(1000))
    with gzip.open(path, "wb", compresslevel=1) as file:
        for _ in range(members // 1000):
            file.write(blocks)
        file.write(bytes(1024))
    return path


def zip_bomb(path: Path, size: int) -> Path:
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("a", "w") as file,
    ):
        for _ in range(size >> 20):
            file.write(bytes(1 << 20))
    return path


def tar_header_bomb(path: Path, size: int) -> Path:
    """A long-name header of `size` bytes, which tarfile reads whole before anybody is asked."""
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, size
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(info.tobuf())
        for _ in range(size >> 20):
            file.write(b"a" * (1 << 20))
    return path


def cut(path: Path, share: float) -> Path:
    data = path.read_bytes()
    return rewrite(path, data[: int(len(data) * share)])


def rewrite(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


# What is wrong -> (the archive, a word of the refusal)
CASES: dict[str, tuple[Callable[[Path], Path], str]] = {
    "zip: parent": (lambda p: zip_of(p / "a.zip", GOOD | {"../out": b"x"}), "plain path"),
    "zip: inner parent": (lambda p: zip_of(p / "a.zip", {"a/../../out": b"x"}), "plain path"),
    "zip: backslash": (lambda p: zip_of(p / "a.zip", {"..\\out": b"x"}), "plain path"),
    "zip: drive": (lambda p: zip_of(p / "a.zip", {"C:out": b"x"}), "plain path"),
    "zip: absolute": (lambda p: zip_of(p / "a.zip", {"/tmp/out": b"x"}), "plain path"),
    "zip: control character": (lambda p: zip_of(p / "a.zip", {"a\nb": b"x"}), "plain path"),
    "zip: symbolic link": (
        lambda p: zip_of(p / "a.zip", GOOD, (zip_special("l", SYMLINK), b"/etc/passwd")),
        "link",
    ),
    "zip: device": (lambda p: zip_of(p / "a.zip", GOOD, (zip_special("d", DEVICE), b"")), "device"),
    "zip: duplicate": (lambda p: zip_twice(p / "a.zip"), "one file"),
    "zip: case": (lambda p: zip_of(p / "a.zip", {"x/ab": b"1", "X/aB": b"2"}), "one file"),
    "zip: composed name": (
        lambda p: zip_of(p / "a.zip", {"\u00e9": b"1", "e\u0301": b"2"}),
        "one file",
    ),
    "zip: truncated": (lambda p: cut(zip_of(p / "a.zip", GOOD), 0.7), "cut short"),
    "zip: encrypted": (lambda p: zip_encrypted(p / "a.zip"), "encrypted"),
    "zip: ratio": (lambda p: zip_bomb(p / "a.zip", 200 << 20), "bytes"),
    "zip: count": (lambda p: zip_crowd(p / "a.zip", 10**6), "more than it should"),
    "tar: parent": (lambda p: tar_of(p / "a.tar", GOOD | {"../out": b"x"}), "plain path"),
    "tar: absolute": (lambda p: tar_of(p / "a.tar", {"/tmp/out": b"x"}), "plain path"),
    "tar: symbolic link": (
        lambda p: tar_of(p / "a.tar", GOOD, special("l", tarfile.SYMTYPE, "/etc/passwd")),
        "link",
    ),
    "tar: hard link": (
        lambda p: tar_of(p / "a.tar", GOOD, special("l", tarfile.LNKTYPE, "../../etc/passwd")),
        "link",
    ),
    "tar: device": (lambda p: tar_of(p / "a.tar", GOOD, special("d", tarfile.BLKTYPE)), "device"),
    "tar: pipe": (lambda p: tar_of(p / "a.tar", GOOD, special("d", tarfile.FIFOTYPE)), "device"),
    "tar: duplicate": (
        lambda p: tar_of(p / "a.tar", GOOD, tarfile.TarInfo("part/a/one.txt")),
        "one file",
    ),
    "tar: same but for a dot": (
        lambda p: tar_of(p / "a.tar", GOOD, tarfile.TarInfo("./part/./a/one.txt")),
        "one file",
    ),
    "tar: case": (lambda p: tar_of(p / "a.tar", {"x/ab": b"1", "X/aB": b"2"}), "one file"),
    "tar: truncated": (lambda p: cut(tar_of(p / "a.tar", GOOD), 0.1), "cut short"),
    "tar: truncated after a member": (
        lambda p: rewrite(p / "a.tar", tar_of(p / "a.tar", GOOD).read_bytes()[:1024]),
        "cut short",
    ),
    "tar.gz: truncated": (lambda p: cut(tar_of(p / "a.tar.gz", GOOD), 0.9), "cut short"),
    "tar.gz: ratio": (
        lambda p: tar_of(p / "a.tar.gz", {"a": bytes(200 << 20)}),
        "bytes",
    ),
    "tar.gz: ratio of a header": (lambda p: tar_header_bomb(p / "a.tar.gz", 200 << 20), "bytes"),
    "tar.gz: count": (lambda p: tar_crowd(p / "a.tar.gz", 10**6), "members"),
    "empty file": (lambda p: rewrite(p / "a.zip", b""), "cut short"),
    "no archive": (lambda p: rewrite(p / "a.zip", b"<html>not found</html>" * 40), "cut short"),
}
