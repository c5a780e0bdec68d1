"""Child processes of tests: with the package on their path, quiet, and gone when the test is."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import metarun

ROOT = Path(metarun.__file__).parents[1]


def python(
    *words: str | Path, env: Mapping[str, str] | None = None, error: int = subprocess.PIPE
) -> subprocess.Popen[str]:
    """Start Python with the package importable and its output in pipes, on one thread."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return subprocess.Popen(
        [sys.executable, *map(str, words)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, **(env or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=error,
        text=True,
    )


def kill(process: subprocess.Popen[str]) -> None:
    """Kill it as the kernel would, and close what the test holds of it."""
    process.kill()
    process.communicate()
