"""Files that are whole or absent, and folders that one process owns."""

from __future__ import annotations

import atexit
import errno
import fcntl
import os
import secrets
import shutil
import socket
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import TextIO

from metarun.errors import InUseError, StorageError

TEMPORARY = ".metarun-*.tmp"  # what a killed writer may leave behind
NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
UNHEARD = (errno.EPIPE, errno.EIO, *NO_SPACE)  # as `| head` ends, as a terminal is closed
REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS)
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
LASTING = ("records.jsonl", "manifest.jsonl")  # what every run and every sweep begins with
PATIENCE_S = 0.4  # for an owner that is about to write its name, or has just died


def write_atomic(path: Path, data: bytes) -> None:
    """Give a file new content such that every crash leaves the old or the new, and no other.

    A file of the same folder is written, synced, renamed over the old one, and the folder synced.

    Raises:
        StorageError: the disk is full, read-only or gone; nothing is left behind.
    """
    temporary = path.with_name(f".metarun-{secrets.token_hex(4)}.tmp")
    try:
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
            try:
                write_all(descriptor, data)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            os.replace(temporary, path)
            sync_folder(path.parent)
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
    except OSError as error:
        raise storage_error(error, path, len(data)) from error


def is_torn(file: int) -> bool:
    """Tell whether an open file of lines ends within one, as a kill leaves it."""
    size = os.fstat(file).st_size
    return size > 0 and os.pread(file, 1, size - 1) != b"\n"


def write_all(descriptor: int, data: bytes) -> None:
    """Write every byte; one call as a rule, more where the system accepts only a part."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable, where the file system knows how."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
            raise
    finally:
        os.close(descriptor)


def storage_error(error: OSError, path: Path, needed: int) -> StorageError:
    """Say in one line what the system refused and, where space is the matter, how much there is."""
    advice = "set METARUN_OUTPUTS to another folder, then give the same command again"
    if error.errno in NO_SPACE:
        try:
            free = _size(shutil.disk_usage(_existing(path)).free)
        except OSError:
            free = "unknown"
        advice = f"needed: {_size(needed)}, free: {free}; make room, or {advice}"
    elif error.errno in REFUSED and (there := _begun(path)):
        advice = f"make it writable, or copy {there} to where you may write and name the copy"
    return StorageError(f"{path}: {error.strerror or error}; {advice}")


def _begun(path: Path) -> Path | None:
    """Return the run or sweep that a path lies in, if it is one already."""
    places = (path, *path.parents[:2])
    return next((p for p in places for name in LASTING if os.path.isfile(p / name)), None)


def prepare_folder(folder: Path) -> None:
    """Create an output folder and prove that it can be written, before any work is done.

    Raises:
        StorageError: it lies under a regular file, or is read-only, or full.
    """
    probe = folder / f".metarun-{secrets.token_hex(4)}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with probe.open("wb") as file:
                file.write(b"0")
        finally:
            probe.unlink(missing_ok=True)
    except OSError as error:
        raise storage_error(error, folder, 1) from error


@contextmanager
def folder_lock(folder: Path, name: str = ".lock") -> Generator[bool]:
    """Own a folder until the block, or the process, ends; yields False where locks do not exist.

    The kernel frees the lock of a process that dies, so there is never anything to clean up.

    Raises:
        InUseError: another process has it; the text names its pid and host.
    """
    path = folder / name
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise storage_error(error, path, 64) from error
    try:
        exclusive = _take(descriptor, folder)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()} {socket.gethostname()}\n".encode(), 0)
        yield exclusive
    finally:
        os.close(descriptor)


@contextmanager
def waiting_lock(lock: Path) -> Generator[bool]:
    """Wait until no other process is in the block; yields False where that cannot be known.

    The kernel frees the lock of a process that dies. Without locks the work may be done twice, and
    must end in a rename.
    """
    try:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError:
        yield False
        return
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            alone = True
        except OSError:
            alone = False
        yield alone
    finally:
        os.close(descriptor)


def _take(descriptor: int, folder: Path) -> bool:
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid, host = _owner(descriptor)
            if _alive(pid, host) or time.monotonic() > deadline:
                raise InUseError(
                    f"{folder}: in use by process {pid or '(unknown)'} on host "
                    f"{host or '(unknown)'}; wait until it ends, or stop it"
                ) from None
            time.sleep(0.01)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            return False
        else:
            return True


def _owner(descriptor: int) -> tuple[str, str]:
    pid, _, host = os.pread(descriptor, 300, 0).decode(errors="replace").strip().partition(" ")
    return (pid, host) if pid.isdecimal() else ("", "")


def _alive(pid: str, host: str) -> bool:
    """Tell whether the named owner still exists; one on another host is believed."""
    if not pid or host != socket.gethostname():
        return bool(pid)
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _size(count: int) -> str:
    if count < 2**20:
        return "less than 1 MiB"
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def _existing(path: Path) -> Path:
    return next(p for p in (path, *path.absolute().parents) if p.is_dir())


def unheard(stream: TextIO, error: OSError) -> None:
    """Send nowhere what goes to a stream that nobody reads any more: work goes on.

    Raises:
        OSError: the given one, where it is another matter.
    """
    if error.errno not in UNHEARD:
        raise error
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)


def cache_root() -> Path:
    """Return the folder for what can be built again: `metarun` in the user's cache folder."""
    named = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(named) if named else Path.home() / ".cache") / "metarun"
    except RuntimeError:
        return Path(tempfile.gettempdir()) / f"metarun-{os.getuid()}"  # a user without a home


def code_cache() -> Path:
    """Return the cache's folder for what is run as code; nobody else can have put anything there.

    A user whose cache is not their own, or cannot be, gets a folder that ends with the process.
    """
    root = cache_root()
    folder = root / "code"
    with suppress(OSError):
        root.mkdir(mode=0o755, parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        # Whoever owns the root could swap the folder after this look. The root's group may write,
        # as umask 002 has it. Above it nothing is looked at: CI may run as root in any home.
        if is_own(root, 0o002) and is_own(folder):
            return folder
    return _temporary()


def is_own(path: Path, others: int = 0o022) -> bool:
    """Tell whether a path and what it leads to are this user's, and others may not write it."""
    try:
        link, found = path.lstat(), path.stat()
    except OSError:
        return False
    return {link.st_uid, found.st_uid} == {os.getuid()} and not found.st_mode & others


@cache
def _temporary() -> Path:
    folder = tempfile.mkdtemp(prefix="metarun-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)
