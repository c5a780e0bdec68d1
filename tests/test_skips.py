"""A skipped test fails where everything that it needs is said to be there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from skips import LISTED

TESTS = Path(__file__).parent
SKIPPED = """
import pytest

@pytest.mark.parametrize("size", [1, 2])
def NAME(size):
    pytest.skip("no room")

@pytest.mark.skipif(True, reason="no wish")
def test_marked():
    pass

def test_other():
    pass
"""


def ended(name: str, folder: Path, data: Path) -> subprocess.CompletedProcess[str]:
    """Run a skipped test of that name in two processes, with the data of a folder."""
    (folder / "test_it.py").write_text(SKIPPED.replace("NAME", name))
    which = ["-k", "not marked"] if name in LISTED else []
    environment = os.environ | {"PYTHONPATH": str(TESTS), "METARUN_DATA": str(data)}
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-p",
            "skips",
            "-n",
            "2",
            "-rN",
            "--rootdir",
            ".",
            ".",
            *which,
        ],
        capture_output=True,
        text=True,
        env=environment,
        cwd=folder,
        check=False,
    )


@pytest.mark.skipif(sys.platform != "linux", reason="the rule is of Linux alone")
def test_a_test_that_is_not_listed_may_not_be_skipped(tmp_path: Path) -> None:
    archive = tmp_path / "data" / "omniglot" / "images_background.zip"
    archive.parent.mkdir(parents=True)
    archive.touch()
    found = ended("test_new", tmp_path, tmp_path / "data")
    assert (found.returncode, found.stdout.count("may be skipped (tests/skips.py): (")) == (1, 3)
    assert "2 failed, 1 passed, 1 error" in found.stdout
    assert "no room" in found.stdout
    assert "no wish" in found.stdout
    listed = ended(next(iter(LISTED)), tmp_path, tmp_path / "data")
    assert listed.returncode == 0, listed.stdout
    assert "1 passed, 2 skipped" in listed.stdout


def test_each_listed_test_is_there() -> None:
    texts = [path.read_text() for path in TESTS.glob("*/test_*.py")]
    for name in LISTED:
        assert sum(f"def {name}(" in text for text in texts) == 1, name
