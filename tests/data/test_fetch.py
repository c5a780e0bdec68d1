"""Downloads: only what has its checksum gets its name, once, and failure is one clear line."""

from __future__ import annotations

import gc
import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from loopback import Served, file_server

from metarun.data import fetch as fetching
from metarun.data.fetch import data_root, fetch
from metarun.errors import DataError
from metarun.files import cache_root

DATA = bytes(range(256)) * 4000
SUM = f"md5:{hashlib.md5(DATA).hexdigest()}"
CHILD = """
import sys
from pathlib import Path
from metarun.data.fetch import fetch
print("ready", flush=True)
sys.stdin.readline()
path = fetch(Path(sys.argv[1]), sys.argv[2], sys.argv[3])
print(len(path.read_bytes()))
"""


@pytest.fixture
def server() -> Iterator[Served]:
    with file_server(DATA) as served:
        yield served


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No second try: pooch waits a second before each."""
    monkeypatch.setattr(fetching, "RETRIES", 0)
    yield
    gc.collect()  # pooch leaves the connection of a refused answer to it, which warns


def waiting_child(path: Path, url: str) -> subprocess.Popen[str]:
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(path), url, SUM],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert child.stdout
    assert child.stdout.readline() == "ready\n"
    return child


def test_what_is_there_is_not_asked_for(tmp_path: Path, server: Served):
    path = tmp_path / "file.zip"
    path.write_bytes(b"a local copy of another checksum")
    assert fetch(path, server.url, SUM) == path
    assert server.requests == []


def test_a_download_leaves_the_file_and_nothing_else(
    tmp_path: Path, server: Served, capfd: pytest.CaptureFixture[str]
):
    path = tmp_path / "set" / "file.zip"
    assert fetch(path, server.url, SUM).read_bytes() == DATA
    fetch(path, server.url, SUM)
    assert len(server.requests) == 1
    assert {p.name for p in path.parent.iterdir()} == {"file.zip", ".file.zip.lock"}
    assert capfd.readouterr() == ("", "")


@pytest.mark.usefixtures("impatient")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("fault", ["checksum", "missing", "refused", "below a file"])
def test_a_failure_says_which_file_to_put_where(tmp_path: Path, server: Served, fault: str):
    path, url, checksum = tmp_path / "set" / "file.zip", server.url, SUM
    if fault == "checksum":
        checksum = "md5:" + "0" * 32
    elif fault == "missing":
        server.failures = [404]
    elif fault == "refused":
        url = "http://127.0.0.1:9/file.zip"
    else:
        path.parent.write_text("not a folder")
    with pytest.raises(DataError) as caught:
        fetch(path, url, checksum)
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith(f"{path}: not there")
    assert all(part in text for part in (url, "METARUN_DATA", "set/file.zip"))
    assert caught.value.exit_code == 3
    left = list(path.parent.iterdir()) if path.parent.is_dir() else []
    assert [p.name for p in left] in ([".file.zip.lock"], [])


@pytest.mark.faults
def test_a_server_that_stumbles_is_asked_again(tmp_path: Path, server: Served):
    server.failures = [503]
    assert fetch(tmp_path / "file.zip", server.url, SUM).read_bytes() == DATA
    assert len(server.requests) == 2


@pytest.mark.faults
def test_eight_processes_download_once(tmp_path: Path, server: Served):
    children = [waiting_child(tmp_path / "set/file.zip", server.url) for _ in range(8)]
    results = [child.communicate("go\n")[0] for child in children]
    assert results == [f"{len(DATA)}\n"] * 8
    assert len(server.requests) == 1


@pytest.mark.faults
def test_a_killed_download_leaves_nothing_that_is_believed(tmp_path: Path, server: Served):
    path = tmp_path / "set" / "file.zip"
    for trial in range(4):
        child = waiting_child(path, server.url)
        assert child.stdin
        child.stdin.write("go\n")
        child.stdin.flush()
        time.sleep(0.02 + 0.15 * trial)
        child.send_signal(signal.SIGKILL)
        child.communicate()
        assert not path.exists() or path.read_bytes() == DATA
    (path.parent / ".file.zip-left").mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    assert fetch(path, server.url, SUM).read_bytes() == DATA
    assert {p.name for p in path.parent.iterdir()} == {"file.zip", ".file.zip.lock"}


def test_the_root_is_named_or_the_users_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert data_root() == cache_root() == tmp_path / "cache" / "metarun"
    monkeypatch.setenv("METARUN_DATA", "~/data")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert data_root() == tmp_path / "data"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_root() == tmp_path / ".cache" / "metarun"


def test_a_user_without_a_home_still_has_a_cache(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("XDG_CACHE_HOME")

    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    assert cache_root().name.startswith("metarun")
