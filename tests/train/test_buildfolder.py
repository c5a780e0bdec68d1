"""What the compiler built is kept, but for what a build that was killed may have left."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from signal import SIGKILL

import pytest
from children import ROOT
from torch._inductor.runtime.cache_dir_utils import default_cache_dir

from metarun.files import code_cache
from metarun.numerics.buildfolder import FOLDER, building

BUILD = """
import os, signal, sys
from pathlib import Path
from metarun.numerics.buildfolder import FOLDER, building
with building():
    Path(os.environ[FOLDER], sys.argv[1]).write_text("half of a library")
    if sys.argv[2] == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if sys.argv[2] == "fails":
        sys.exit(3)
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that is chosen where nobody names one; torch's own is set, as on its import."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv(FOLDER, default_cache_dir())
    return code_cache() / "inductor"


def build(name: str, how: str) -> int:
    """Build in a process of its own; return how it ended."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", BUILD, name, how]
    return subprocess.run(command, env=environment, check=False, timeout=120).returncode


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(("how", "status"), [("ends", 0), ("fails", 3)])
def test_what_ended_is_kept(own: Path, how: str, status: int):
    assert build("a.so", how) == status
    with building():
        assert (own / "a.so").exists()
    assert left(own) == ["a.so"], "and no mark stays behind"


def test_all_is_built_anew_after_a_build_that_was_killed(own: Path):
    assert build("a.so", "killed") == -SIGKILL
    assert len(left(own)) == 2, "with its mark"
    with building():
        assert not (own / "a.so").exists()
    assert left(own) == []
    assert left(own.parent) == ["inductor"]


def test_nothing_is_taken_from_a_build_that_goes_on(own: Path):
    with building():
        assert build("a.so", "killed") == -SIGKILL
        with building():
            assert (own / "a.so").exists()
    with building():
        assert not (own / "a.so").exists(), "the control: it is, when nobody builds any more"


def test_a_folder_that_the_user_named_is_left_alone(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    named = tmp_path / "named"
    named.mkdir()
    monkeypatch.setenv(FOLDER, str(named))
    (named / ".building-1234").touch()
    with building():
        assert left(named) == [".building-1234"]
    assert not own.exists()
    assert os.environ[FOLDER] == str(named)


def test_a_cache_that_cannot_be_written_stops_nothing(own: Path, monkeypatch: pytest.MonkeyPatch):
    own.parent.mkdir(parents=True, exist_ok=True)
    own.write_text("a file is in its place")
    with building():
        assert os.environ[FOLDER] == str(own)
