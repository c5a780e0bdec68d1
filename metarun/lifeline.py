"""Processes that must not outlive another: no job trains on after its sweep was killed."""

from __future__ import annotations

import ctypes
import os
import select
import signal
import threading
import time
from contextlib import suppress
from functools import cache

PR_SET_PDEATHSIG = 1
POLL_S = 0.5


def die_with_parent(parent: int) -> None:
    """Be killed by the kernel when the process that started this one dies; `parent` is its pid.

    Killed, not asked: whoever runs the sweep again at once must find the folder free, and the
    last checkpoint stands.
    """
    try:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    except (OSError, AttributeError):  # not Linux
        die_with(parent)
    if os.getppid() != parent:  # it died before the kernel was told
        _die()


@cache
def die_with(pid: int) -> None:
    """Be killed within a second of the death of any process of this host, parent or not."""
    try:
        watched = os.pidfd_open(pid)
    except ProcessLookupError:
        _die()
        return
    except (AttributeError, OSError):  # not Linux, or an old one
        threading.Thread(target=_poll, args=(pid,), daemon=True).start()
        return
    threading.Thread(target=_wait, args=(watched,), daemon=True).start()


def _wait(watched: int) -> None:
    select.select([watched], [], [])
    _die()


def _poll(pid: int) -> None:
    with suppress(ProcessLookupError):
        while True:
            os.kill(pid, 0)
            time.sleep(POLL_S)
    _die()


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
