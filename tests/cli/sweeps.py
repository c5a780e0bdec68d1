"""What the tests of sweeps share: how to start one, and how to read what it left."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from metarun import manifest

HERE = Path(__file__).parent
TINY = ("dataset=sinusoid", "debug=default")
ODD = ("-m", "--config-dir", str(HERE / "conf"), "algo=odd", *TINY)


def odd_environment() -> dict[str, str]:
    """Return the environment in which the algorithm `odd` can be named."""
    path = os.pathsep.join([str(HERE), str(HERE.parents[1])])
    return os.environ | {"METARUN_ALLOW": "odd", "PYTHONPATH": path}


def sweep(environment: Mapping[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "metarun", *ODD, *words],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )


def only(outputs: Path) -> Path:
    (folder,) = outputs.iterdir()
    return folder


def since_start(folder: Path) -> list[dict[str, Any]]:
    return manifest.latest(manifest.read(folder))[1]


def ran(folder: Path) -> list[str]:
    """Return the jobs that the newest invocation gave a process."""
    return [e["job"] for e in since_start(folder) if e.get("state") == "running"]


def results(folder: Path) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for path in sorted(folder.glob("*/scores.npz")):
        with np.load(path) as scores:
            found[path.parent.name] = scores["mse"].ravel().tolist()
    return found


def start(environment: Mapping[str, str], *words: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "metarun", *ODD, *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment,
        start_new_session=True,
    )


def family(mark: str) -> list[int]:
    """Return the living jobs that have a word in their environment."""
    found: list[int] = []
    for process in Path("/proc").iterdir():
        try:
            alive = process.name.isdigit() and "State:\tZ" not in (process / "status").read_text()
            job = b"metarun.sweeps.job" in (process / "cmdline").read_bytes()
            if alive and job and mark.encode() in (process / "environ").read_bytes():
                found.append(int(process.name))
        except OSError:
            continue
    return found


def gone(mark: str, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while family(mark) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not family(mark)
