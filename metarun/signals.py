"""A request to stop is a flag that is looked at between units of work, never an interruption."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from metarun.errors import KeyboardStopError, MetarunError, PreemptedError

REQUESTS: dict[int, type[MetarunError]] = {
    signal.SIGTERM: PreemptedError,
    signal.SIGINT: KeyboardStopError,
}
ONE_REQUEST_S = 0.3  # a cluster signals every process of a job, and a sweep hands it on as well
SHOW_CURSOR = b"\x1b[?25h\n"


class Stop:
    """The flag; `requested` is the number of the first signal that came, or None."""

    requested: int | None = None
    since: float = 0.0

    def check(self) -> None:
        """Raise PreemptedError after SIGTERM, KeyboardStopError after Ctrl-C, else nothing."""
        if self.requested is None:
            return
        name = signal.Signals(self.requested).name
        raise REQUESTS[self.requested](
            f"stopped by {name}; the same command goes on from the last checkpoint"
        )

    def _handle(self, number: int, _: FrameType | None) -> None:
        now = time.monotonic()
        if self.requested is None:
            self.requested, self.since = number, now
        if now - self.since < ONE_REQUEST_S:
            return
        _exit(self.requested)  # the second request must not wait for anything


@contextmanager
def nothing_to_save() -> Generator[None]:
    """Let a signal end the process at once with its exit code.

    For the time in which a run is imported, composed, compiled and torn down; `stop_requests`
    inside takes over. A KeyboardInterrupt would not do: raised inside an import, it can cost the
    exit code.
    """

    def end(number: int, _: FrameType | None) -> None:
        name = signal.Signals(number).name
        text = f"metarun: stopped by {name} with nothing to save; the same command goes on\n"
        _exit(number, text)

    with _handling(end):
        yield


@contextmanager
def stop_requests() -> Generator[Stop]:
    """Turn SIGTERM and Ctrl-C into a flag inside the block; a second signal exits at once.

    Only the main thread may install handlers; elsewhere the flag exists and stays down.
    """
    stop = Stop()
    with _handling(stop._handle):  # pyright: ignore[reportPrivateUsage]
        yield stop


def _exit(request: int, text: str = "") -> NoReturn:
    """End the process without any cleanup, but leave a terminal with a cursor."""
    if terminal := next(filter(os.isatty, (2, 1)), None):
        os.write(terminal, SHOW_CURSOR)
    if text:
        os.write(2, text.encode())
    os._exit(REQUESTS[request].exit_code)


@contextmanager
def _handling(handle: Callable[[int, FrameType | None], None]) -> Generator[None]:
    """Install a handler for both requests; only the main thread can, elsewhere nothing happens."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handle) for number in REQUESTS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
