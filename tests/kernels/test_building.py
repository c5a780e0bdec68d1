"""How the kernels come to be: built once, loaded only where nobody else can have put them."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from shutil import which

import pytest
import torch
from children import ROOT

from metarun import files, hardware
from metarun.hardware import Hardware
from metarun.kernels import build

COMPILER = any(map(which, ("cc", "gcc", "clang")))
NEEDED = pytest.mark.skipif(not COMPILER, reason="no C compiler")
# The real build, of one small file in place of all, and without the seconds that torch takes.
CHEAP = """
import sys
from unittest.mock import MagicMock
sys.modules["torch"] = MagicMock()
from metarun.kernels import build
build.__file__ = sys.argv[1] + "/build.py"
library, why = build._load(build.Sources(("norm.c",)))
print(library and library.answer(), why)
"""
X86 = "processor : {}\nmodel name : A\nflags : fpu avx2\ncpu MHz : {}\n\n"
ARM = "processor : {}\nMHz : {}\nFeatures : fp asimd\nCPU implementer : 0x41\nCPU part : {}\n\n"


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with one source, and a cache of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "sources"
    folder.mkdir()
    (folder / "norm.c").write_text("int answer(void) { return 42; }")
    return folder


def load(sources: Path, umask: int = 0o022) -> str:
    """Load the library in a process of its own, which a damaged one may end."""
    done = subprocess.run(
        [sys.executable, "-c", CHEAP, str(sources)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        umask=umask,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def built() -> Path:
    """Return the one library of the cache."""
    (path,) = files.cache_root().rglob("*.so")
    return path


def another(answer: int, path: Path) -> None:
    """Put another library in the place of one, as whole."""
    source = path.with_suffix(".c")
    source.write_text(f"int answer(void) {{ return {answer}; }}")
    command = [build._compiler(), "-shared", "-fPIC", "-o", str(path), str(source)]
    subprocess.run(command, check=True, timeout=60)
    source.unlink()
    content = path.read_bytes()
    path.write_bytes(content + hashlib.sha256(content).digest())


@NEEDED
@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077], ids=oct)
def test_it_is_built_once_for_this_user_alone(sources: Path, umask: int) -> None:
    assert load(sources, umask) == "42"
    path = built()
    assert [p.stat().st_mode & 0o777 for p in (path, path.parents[1])] == [0o700, 0o700]
    another(43, path)
    assert load(sources, umask) == "43", "not built a second time"


@NEEDED
def test_what_a_build_that_was_stopped_leaves_is_gone_after_the_next(sources: Path) -> None:
    whole, name = CHEAP.split("library, why"), "build.subprocess.run"
    stops = f"import os\n{name} = lambda *a, check, **k: k.get('timeout') and os._exit(75) or "
    stops += "MagicMock(stdout=b'')\n"
    command = [
        sys.executable,
        "-c",
        stops.join([whole[0], f"library, why{whole[1]}"]),
        str(sources),
    ]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    assert subprocess.run(command, env=env, check=False, timeout=120).returncode == 75
    kept = files.cache_root() / "code" / "kernels"
    assert len(list(kept.glob("building-*"))) == 1, "the control: it leaves something"
    assert load(sources) == "42"
    assert {path.name for path in kept.iterdir()} == {".lock", built().name}


def truncated(content: bytes) -> bytes:
    return content[: len(content) // 2]


def emptied(content: bytes) -> bytes:
    return b""


def zeroed(content: bytes) -> bytes:
    """As a file system may leave what was named before it was written."""
    return content[:4096] + bytes(len(content) - 4096)


def foreign(content: bytes) -> bytes:
    """Whole, but no library of this machine."""
    return b"\x7fELF" + hashlib.sha256(b"\x7fELF").digest()


@NEEDED
@pytest.mark.parametrize("damage", [truncated, emptied, zeroed, foreign])
def test_a_damaged_library_is_built_again(sources: Path, damage) -> None:
    assert load(sources) == "42"
    path = built()
    content = path.read_bytes()
    path.write_bytes(damage(content))
    assert load(sources) == "42"
    assert built() == path
    assert len(path.read_bytes()) == len(content)


@NEEDED
@pytest.mark.parametrize("mode", [0o777, 0o770], ids=oct)
def test_a_folder_that_others_may_write_is_not_used(sources: Path, mode: int) -> None:
    assert load(sources) == "42"
    another(43, built())
    built().parents[1].chmod(mode)
    assert load(sources) == "42"
    built().parents[1].chmod(0o700)
    assert load(sources) == "43", "and it was left alone"


@NEEDED
def test_a_file_that_others_may_write_is_not_loaded(sources: Path) -> None:
    assert load(sources) == "42"
    another(43, built())
    built().chmod(0o775)
    assert load(sources) == "42"
    assert built().stat().st_mode & 0o777 == 0o700, "it was replaced"


@NEEDED
@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a file away")
@pytest.mark.parametrize("level", ["file", "folder", "root"])
def test_what_belongs_to_another_is_not_loaded(sources: Path, level: str) -> None:
    assert load(sources) == "42"
    path = built()
    another(43, path)
    os.chown({"file": path, "folder": path.parents[1], "root": path.parents[2]}[level], 12345, -1)
    assert load(sources) == "42"


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a file away")
def test_a_link_of_another_user_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir(mode=0o700)
    link = tmp_path / "link"
    link.symlink_to("own")
    assert files.is_own(link)
    os.chown(link, 12345, -1, follow_symlinks=False)
    assert not files.is_own(link)
    assert not files.is_own(tmp_path / "absent")


def test_code_is_cached_under_the_cache_or_in_a_folder_of_this_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    kept = files.code_cache()
    assert kept.parent == files.cache_root()
    files.cache_root().chmod(0o775)
    assert files.code_cache() == kept, "umask 002 keeps its cache"
    files.cache_root().chmod(0o777)
    assert files.code_cache() not in (kept, files.cache_root())
    assert files.code_cache().stat().st_mode & 0o777 == 0o700
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nothing-can-be-made-here")
    assert files.code_cache().is_dir()


def test_the_folder_of_a_process_ends_with_it(tmp_path: Path) -> None:
    code = "from metarun.files import code_cache; print(code_cache())"
    env = {**os.environ, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": "/proc/none"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**env, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert Path(done.stdout.strip()).parent == tmp_path
    assert not list(tmp_path.iterdir())


@pytest.fixture
def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The one compiler on the path, to be written by the test; nothing was loaded before."""
    path = tmp_path / "bin" / "cc"
    path.parent.mkdir()
    monkeypatch.setenv("PATH", str(path.parent))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(build, "_load", cache(build._load.__wrapped__))
    monkeypatch.setattr(hardware, "_warn", cache(hardware._warn.__wrapped__))
    return path


def write(path: Path, *lines: str) -> None:
    head = ["#!/bin/sh", 'if [ "$1" = --version ]; then echo one 1.0; exit; fi']
    path.write_text("\n".join([*head, *lines]))
    path.chmod(0o755)


SAID = {
    "error": (["a.c: In f:", "a.c:1:2: error: no such thing", "  int", "    ^~"], "a.c:1:2"),
    "fatal": (["cc: fatal error: no cc1", "compilation terminated."], "cc: fatal error: no cc1"),
    "other": (["something", "is amiss"], "is amiss"),
    "nothing": ([], "/cc ended with status 3"),
}


@pytest.mark.parametrize("case", SAID)
def test_a_compiler_that_fails_is_quoted(compiler: Path, case: str) -> None:
    lines, wanted = SAID[case]
    write(compiler, *(f"echo '{line}' >&2" for line in lines), "exit 3")
    assert build.why_not().startswith("the kernels could not be built (")
    assert wanted in build.why_not()
    assert "-march" not in build.why_not()
    assert not list(files.cache_root().rglob("*.so")), "nothing is left behind"


def test_what_may_not_reach_the_disk_is_not_kept(compiler: Path, monkeypatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    write(compiler, 'while [ "$1" != -o ]; do shift; done; echo > "$2"')
    assert "file too short" in build.why_not()
    (path,) = files.cache_root().rglob("*.so")
    path.unlink()
    build._load.cache_clear()
    monkeypatch.setattr("os.fsync", full)
    assert "No space left on device" in build.why_not()
    assert not list(files.cache_root().rglob("*.so"))


def test_a_build_that_fails_is_warned_of_once(compiler: Path, capsys) -> None:
    write(compiler, "echo 'a.c:1:2: error: no such thing' >&2", "exit 1")
    here = Hardware(torch.device("cpu"), torch.float32, "auto", None, 1)
    for _ in range(2):
        assert here.running(4).way == "vmap"
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("metarun: warning: hardware.batching: the kernels could not be built (a")
    assert line.endswith("no such thing); running by vmap")


def test_no_compiler_is_no_failure(compiler: Path, capsys) -> None:
    here = Hardware(torch.device("cpu"), torch.float32, "auto", None, 1)
    assert here.running(4).reason == "there is no C compiler for the kernels"
    assert not capsys.readouterr().err


def test_processors_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On ARM too; the clock, and how many cores there are, make no other processor."""
    monkeypatch.setattr(build, "CPUINFO", tmp_path / "cpuinfo")

    def of(text: str, machine: str) -> str:
        build.CPUINFO.write_text(text)
        monkeypatch.setattr("platform.machine", lambda: machine)
        return build.processor()

    x86 = of(X86.format(0, 2000), "x86_64")
    assert of(X86.format(0, 2000) + X86.format(1, 1800), "x86_64") == x86
    arm = [of(ARM.format(0, 50, part), "aarch64") for part in ("0xd0c", "0xd40")]
    arm += [of(ARM.format(0, 50, "0xd40").replace("asimd", "asimd sve"), "aarch64")]
    slow = "".join(ARM.format(core, 50, "0xd0c") for core in range(8))
    arm += [of(slow + ARM.format(8, 50, "0xd40"), "aarch64")]
    assert len({x86, *arm, of("", "aarch64"), of("", "riscv64")}) == 7
    build.CPUINFO.unlink()
    assert build.processor()
