"""One job of a sweep in a process of its own: what starts it, and what it is when started."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any, BinaryIO, NamedTuple

from metarun import manifest
from metarun.errors import StorageError
from metarun.files import storage_error
from metarun.lifeline import die_with, die_with_parent
from metarun.manifest import State
from metarun.signals import REQUESTS, nothing_to_save
from metarun.sweeps.lease import granted

LOG = "log.txt"
LOOK_S = 5.0  # between two looks at whether the sweep was stopped
# Appended, not prepended as PYTHONPATH would be: a checkout must not shadow anything.
LAUNCH = (
    "import sys; sys.path.append(sys.argv.pop(1)); "
    "from metarun.sweeps.job import main; sys.exit(main(sys.argv[1:]))"
)
STOPPED = {code for number, error in REQUESTS.items() for code in (error.exit_code, -number)}


class Ended(NamedTuple):
    """How a job ended."""

    state: State
    exit_code: int
    reason: str
    seconds: float


def main(argv: list[str]) -> int:
    """Be a job: run the configuration on standard input in a folder; return the exit code."""
    with nothing_to_save():
        order = json.load(sys.stdin)
        die_with_parent(order["parent"])
        if order["owner"] is not None:
            die_with(order["owner"])
        signal.signal(signal.SIGUSR2, _as_sigterm)
        from metarun.run import run_job

        return run_job(order["config"], Path(argv[0]))


def start_and_wait(
    config: Mapping[str, Any],
    sweep: Path,
    name: str,
    owner: int | None,
    stopped: Callable[[], bool],
) -> Ended:
    """Run a configuration as the sweep's job `name` and wait for it; keeps the manifest.

    The job dies with this process, and with process `owner` if one is given. It is asked to stop
    when `stopped` says so just after the start: whoever stops a sweep finds jobs by the manifest,
    and signals them. Nobody does where there is no owner on this machine, so it is asked again.

    Raises:
        StorageError: the sweep's folder is full, read-only or gone.
    """
    folder = sweep / name
    started = time.monotonic()
    with granted(config["launch"], config["hardware"]) as grant, _opened(folder) as log:
        begin = log.tell()
        child = subprocess.Popen(
            [sys.executable, "-c", LAUNCH, str(Path(__file__).parents[2]), str(folder)],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            env=os.environ | grant.environment,
            pass_fds=grant.held,
            start_new_session=True,  # so that Ctrl-C reaches it once, through the sweep
        )
        try:
            manifest.append(sweep, "job", job=name, state="running", pid=child.pid, **grant.note)
        except StorageError:
            child.kill()  # nobody could find it to stop it
            child.communicate()
            raise
        order = {"config": config, "parent": os.getpid(), "owner": owner}
        assert child.stdin is not None
        with suppress(BrokenPipeError), child.stdin:
            child.stdin.write(json.dumps(order).encode())
        code = _waited(child, stopped, every=LOOK_S if owner is None else None)
    ended = Ended(
        state_of(code), code, _reason(folder / LOG, begin, code), time.monotonic() - started
    )
    manifest.append(sweep, "job", job=name, **ended._asdict(), log=f"{name}/{LOG}")
    return ended


def _waited(
    child: subprocess.Popen[bytes], stopped: Callable[[], bool], every: float | None
) -> int:
    """Wait for a job, looking every so many seconds, or only once, whether it is to stop."""
    while True:
        with suppress(OSError):  # the folder is gone, which the job itself will say
            if stopped():
                child.terminate()
                return child.wait()
        with suppress(subprocess.TimeoutExpired):
            return child.wait(every)


def _opened(folder: Path) -> BinaryIO:
    """Open a job's log; the sweep's folder is not made again where it is gone."""
    try:
        folder.mkdir(exist_ok=True)
        return (folder / LOG).open("ab")
    except OSError as error:
        raise storage_error(error, folder / LOG, 0) from error


def _as_sigterm(_: int, __: FrameType | None) -> None:
    """Take Slurm's warning before a time limit, as submitit asks for it, for what it means."""
    signal.raise_signal(signal.SIGTERM)


def state_of(code: int) -> State:
    """Return what an exit status, negative for a signal, means for the job."""
    if code == 0:
        return "done"
    return "preempted" if code in STOPPED else "failed"


def _reason(log: Path, begin: int, code: int) -> str:
    """Return the error that the job printed last, or what killed it; nothing when it is done.

    A disk may be too full for the error.
    """
    if code == 0:
        return ""
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    try:
        with log.open("rb") as file:
            file.seek(begin)
            said = file.read().decode(errors="replace").splitlines()
    except OSError as error:
        raise storage_error(error, log, 0) from error
    lines = [line.strip() for line in said if line.strip()]
    errors = [line for line in lines if line.startswith("metarun: ") and "warning:" not in line]
    unsaid = (
        "no room, not even for its log" if code == StorageError.exit_code else f"exit code {code}"
    )
    return (errors or lines or [unsaid])[-1].removeprefix("metarun: ")
