"""Atomic writes, folder locks, and what a user reads when storage fails."""

from __future__ import annotations

import errno
import os
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from children import kill, python

from metarun.errors import InUseError, StorageError
from metarun.files import TEMPORARY, folder_lock, prepare_folder, storage_error, write_atomic

HOLD = """
import sys, time
from pathlib import Path
from metarun.files import folder_lock
with folder_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def hold(folder: Path) -> subprocess.Popen[str]:
    """Start a process that owns the folder, and wait until it does."""
    process = python("-c", HOLD, folder)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_write_atomic_replaces_the_content_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "a.json"
    for content in (b"old", b"", b"x" * 5_000_000):
        write_atomic(path, content)
        assert path.read_bytes() == content
    assert os.listdir(tmp_path) == ["a.json"]
    umask = os.umask(0o022)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask


def test_a_name_of_the_greatest_length_can_be_written(tmp_path):
    path = tmp_path / ("é" * 127 + "x")
    write_atomic(path, b"1")
    assert path.read_bytes() == b"1"


@pytest.mark.parametrize("call", ["open", "write", "fsync", "replace"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EIO])
def test_any_failing_call_keeps_the_old_file_and_says_why_in_one_line(
    tmp_path, monkeypatch, call, number
):
    path = tmp_path / "kept"
    write_atomic(path, b"old")

    def fail(*_):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(StorageError) as caught:
            write_atomic(path, b"new content")
    text = str(caught.value)
    assert text.count("\n") == 0
    assert str(path) in text
    assert os.strerror(number) in text
    assert "METARUN_OUTPUTS" in text
    of_space = number in (errno.ENOSPC, errno.EDQUOT)
    assert ("make room" in text) == ("free: " in text) == of_space
    assert caught.value.exit_code == 5
    assert path.read_bytes() == b"old"
    assert not list(tmp_path.glob(TEMPORARY))


def test_a_partial_write_is_continued(tmp_path, monkeypatch):
    whole = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: whole(descriptor, bytes(data[:7])))
    write_atomic(tmp_path / "a", b"0123456789" * 5)
    assert (tmp_path / "a").read_bytes() == b"0123456789" * 5


def test_space_is_counted_in_units_that_can_be_read(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=44_486_434_816))
    full = OSError(errno.ENOSPC, "No space left on device")
    text = str(storage_error(full, tmp_path, 3 * 2**20))
    assert text.startswith(f"{tmp_path}: No space left on device; needed: 3 MiB, free: 41.4 GiB; ")
    assert "needed: less than 1 MiB, " in str(storage_error(full, tmp_path, 1))


@pytest.mark.parametrize("name", ["", "config.yaml", "evaluations/digest"])
def test_a_run_that_cannot_be_written_is_to_be_copied(tmp_path, name):
    refusal = OSError(errno.EROFS, "Read-only file system")
    new = str(storage_error(refusal, tmp_path / "run" / name, 1))
    assert new.endswith("set METARUN_OUTPUTS to another folder, then give the same command again")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "records.jsonl").touch()
    there = str(storage_error(refusal, tmp_path / "run" / name, 1))
    assert f"copy {tmp_path / 'run'} to where you may write" in there
    assert "METARUN_OUTPUTS" not in there
    full = str(storage_error(OSError(errno.ENOSPC, "No space"), tmp_path / "run" / name, 1))
    assert "make room, or set METARUN_OUTPUTS" in full
    large = str(storage_error(OSError(errno.EFBIG, "File too large"), tmp_path / "run" / name, 1))
    assert "make it writable" not in large


@pytest.mark.parametrize("below", ["", "deeper", "much/deeper"])
def test_a_folder_under_a_regular_file_is_refused(tmp_path, below):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(StorageError, match="METARUN_OUTPUTS"):
        prepare_folder(tmp_path / "file" / below)
    assert (tmp_path / "file").read_text() == "mine"


def test_prepare_folder_creates_and_leaves_it_empty(tmp_path):
    folder = tmp_path / "a b" / "ü'\"" / "c"
    prepare_folder(folder)
    prepare_folder(folder)
    assert list(folder.iterdir()) == []


def test_a_vanished_folder_is_not_recreated(tmp_path):
    with pytest.raises(StorageError, match="No such file"):
        write_atomic(tmp_path / "gone" / "file", b"1")
    assert not (tmp_path / "gone").exists()


def test_a_second_owner_is_told_who_the_first_is(tmp_path):
    process = hold(tmp_path)
    try:
        begun = time.monotonic()
        with (
            pytest.raises(
                InUseError, match=rf"process {process.pid} on host {os.uname().nodename}"
            ),
            folder_lock(tmp_path),
        ):
            pytest.fail("both own it")
        assert time.monotonic() - begun < 0.3
        with folder_lock(tmp_path, ".other"):
            pass
    finally:
        kill(process)


def test_the_lock_of_a_killed_owner_is_free_at_once(tmp_path):
    for _ in range(3):
        process = hold(tmp_path)
        kill(process)
        begun = time.monotonic()
        with folder_lock(tmp_path) as exclusive:
            assert exclusive
        assert time.monotonic() - begun < 0.2


def test_a_lock_can_be_taken_again_after_an_error(tmp_path):
    with pytest.raises(ZeroDivisionError), folder_lock(tmp_path):
        raise ZeroDivisionError
    with folder_lock(tmp_path):
        pass


def test_a_file_system_without_locks_is_reported_not_refused(tmp_path, monkeypatch):
    def unknown(*_):
        raise OSError(errno.EOPNOTSUPP, "no locks here")

    monkeypatch.setattr("fcntl.flock", unknown)
    with folder_lock(tmp_path) as exclusive:
        assert not exclusive
