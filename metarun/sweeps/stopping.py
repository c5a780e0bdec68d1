"""How a sweep stops: its jobs are told, no more are started, and none outlives it."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from metarun import manifest
from metarun.lifeline import die_with
from metarun.manifest import Entry
from metarun.signals import REQUESTS, say_stopping, stop_requests

HERE = ("basic", "joblib")  # launchers whose jobs are processes of this machine
OF_HYDRA = "multirun.yaml"  # what Hydra leaves in a sweep's folder, and nobody reads


@contextmanager
def stoppable(sweep: Path) -> Generator[None]:
    """Pass the first request to stop on to the jobs and start no more; leave at the second."""

    def tell(number: int) -> None:
        say_stopping(number)
        manifest.append(sweep, "stop", signal=number)
        # Workers pass on to their jobs that SIGHUP is ignored, which the jobs take for nohup.
        _signal(sweep, signal.SIGTERM if number == signal.SIGHUP else number)

    def leave() -> None:
        _signal(sweep, signal.SIGKILL)
        (sweep / OF_HYDRA).unlink(missing_ok=True)

    with stop_requests(tell, leave):
        yield


def _signal(sweep: Path, number: int) -> None:
    """Send a signal to the jobs that run on this machine."""
    header, since = manifest.current(sweep)
    for entry in manifest.jobs(since).values() if header["launcher"] in HERE else ():
        if entry["state"] == "running":
            with suppress(ProcessLookupError):
                os.kill(entry["pid"], number)


def follow(header: Entry) -> int | None:
    """Return the process that a job must not outlive, where the jobs are on its machine."""
    if header["launcher"] not in HERE or header["host"] != socket.gethostname():
        return None
    owner: int = header["pid"]
    if owner != os.getpid():  # a worker, which waits for its job whatever its group is told
        for number in REQUESTS:
            signal.signal(number, signal.SIG_IGN)
        die_with(owner)
    return owner


def halted(header: Entry, since: Sequence[Entry]) -> bool:
    """Tell whether no further job is to start: the sweep is asked to stop, or fails fast."""
    failed = any(entry.get("state") == "failed" for entry in since)
    return any(entry["kind"] == "stop" for entry in since) or (header["fail_fast"] and failed)


def is_stopped(sweep: Path) -> bool:
    """Tell whether a sweep was asked to stop since it was last started."""
    return any(entry["kind"] == "stop" for entry in manifest.current(sweep)[1])
