"""Broken and hostile archives: refused in one line, with nothing read into memory or written."""

from __future__ import annotations

import random
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from hostile import CASES, GOOD, rewrite, tar_of, zip_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from metarun.data.archives import Limits, read_archive
from metarun.errors import DataError

LIMITS = Limits(members=10, content=10_000)
MEMORY_CAP = 150 << 20
WRITERS = {
    "a.zip": zip_of,
    "a.tar": tar_of,
    "a.tar.gz": tar_of,
    "a.tar.xz": tar_of,
    "a.tar.bz2": tar_of,
}
CHILD = """
import resource, sys
from pathlib import Path
from metarun.data.archives import Limits, read_archive
from metarun.errors import DataError
sys.stdout.write(str(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) + "\\n")
try:
    for name, data in read_archive(Path(sys.argv[1]), Limits(10, 10_000)):
        print("handed out", name)
except DataError as error:
    print(error)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.parametrize("name", WRITERS)
def test_a_sound_archive_is_read_whole(tmp_path: Path, name: str):
    path = WRITERS[name](tmp_path / name, GOOD)
    assert dict(read_archive(path, LIMITS)) == GOOD


def test_folders_and_leading_dots_are_no_files(tmp_path: Path):
    folder = tarfile.TarInfo("./part")
    folder.type = tarfile.DIRTYPE
    path = tar_of(tmp_path / "a.tar", {f"./{name}": data for name, data in GOOD.items()}, folder)
    assert dict(read_archive(path, LIMITS)) == GOOD
    assert dict(read_archive(zip_of(tmp_path / "a.zip", GOOD | {"c/": b""}), LIMITS)) == GOOD


@pytest.mark.parametrize("case", CASES)
def test_a_hostile_archive_is_refused(tmp_path: Path, case: str):
    inside = tmp_path / "inside"
    inside.mkdir()
    build, word = CASES[case]
    path = build(inside)
    before = path.stat()
    result = subprocess.run(
        [sys.executable, "-c", CHILD, str(path)],
        cwd=inside,
        env={"PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    at_first, *lines, at_last = result.stdout.splitlines()
    assert len(lines) == 1, lines  # the refusal alone: no member came before it
    assert lines[0].startswith(f"{path}: ")
    assert word in lines[0]
    assert (int(at_last) - int(at_first)) * 1024 < MEMORY_CAP
    assert list(tmp_path.rglob("*")) == [inside, path]
    assert path.stat() == before or path.stat().st_mtime_ns == before.st_mtime_ns


@pytest.mark.parametrize(
    "case",
    [
        c
        for c in CASES
        if not any(
            w in c for w in ("truncated", "encrypted", "file", "no archive", "count", "ratio")
        )
    ],
)
def test_the_hostile_archives_are_well_formed(tmp_path: Path, case: str):
    """The control: what is refused above would satisfy a reader that looks at the format only."""
    path = CASES[case][0](tmp_path)
    if case.startswith("zip"):
        with zipfile.ZipFile(path) as archive:
            assert archive.testzip() is None
    else:
        with tarfile.open(path) as archive:
            assert archive.getmembers()


def test_limits_leave_a_tenth(tmp_path: Path):
    eleven = {f"f{i}": bytes(1000) for i in range(11)}
    assert len(dict(read_archive(zip_of(tmp_path / "a.zip", eleven), LIMITS))) == 11
    for more in ({"f11": b""}, {"f10": bytes(1001)}):
        for path, write in ((tmp_path / "b.zip", zip_of), (tmp_path / "b.tar", tar_of)):
            with pytest.raises(DataError, match="more than it should hold"):
                list(read_archive(write(path, eleven | more), LIMITS))


def test_a_zip_that_is_large_beside_its_content_is_refused(tmp_path: Path):
    note = zipfile.ZipInfo("a")
    note.comment = bytes(60_000)
    path = zip_of(tmp_path / "a.zip", {}, (note, b"x"))
    with pytest.raises(DataError, match="bytes with headers"):
        list(read_archive(path, LIMITS))


def test_a_member_that_is_larger_than_it_says_is_refused(tmp_path: Path):
    path = zip_of(tmp_path / "a.zip", {"a": bytes(5000)})
    lying = path.read_bytes().replace((5000).to_bytes(4, "little"), (50).to_bytes(4, "little"))
    with pytest.raises(DataError, match="damaged"):
        list(read_archive(rewrite(path, lying), LIMITS))


@pytest.mark.parametrize("missing", ["nowhere.zip", "."])
def test_what_is_no_file_is_named(tmp_path: Path, missing: str):
    with pytest.raises(DataError, match=str(tmp_path / missing)):
        list(read_archive(tmp_path / missing, LIMITS))


@pytest.mark.parametrize("name", WRITERS)
def test_mutated_archives_raise_nothing_else(tmp_path: Path, name: str):
    source = random.Random(20)
    sound = WRITERS[name](tmp_path / name, GOOD).read_bytes()
    read: list[int] = []
    refused: list[str] = []
    for _ in range(200):
        data = bytearray(sound)
        for _ in range(source.randint(1, 4)):
            data[source.randrange(len(data))] = source.randrange(256)
        if source.random() < 0.3:
            data = data[: source.randrange(len(data))]
        try:
            found = dict(read_archive(rewrite(tmp_path / "mutated", bytes(data)), LIMITS))
            read.append(sum(map(len, found.values())))
        except DataError as error:
            refused.append(str(error))
    assert read
    assert max(read) <= LIMITS.content * 1.1
    assert len(refused) > 25
    assert not any("\n" in line for line in refused)


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(st.text("aB./\\:~é\x00", min_size=1, max_size=8), min_size=1, max_size=4, unique=True)
)
def test_no_name_that_is_handed_out_leaves_its_folder(tmp_path: Path, names: list[str]):
    path = tar_of(tmp_path / "a.tar", dict.fromkeys(names, b"x"))
    try:
        found = [name for name, _ in read_archive(path, LIMITS)]
    except DataError:
        return
    for name in found:
        assert (tmp_path / "in" / name).resolve().is_relative_to(tmp_path / "in")
    assert len({name.casefold() for name in found}) == len(found)
