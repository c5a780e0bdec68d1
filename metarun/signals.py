"""A request to stop is a flag that is looked at between units of work, never an interruption."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

from metarun.errors import KeyboardStopError, MetarunError, PreemptedError

REQUESTS: dict[int, type[MetarunError]] = {
    signal.SIGTERM: PreemptedError,
    signal.SIGHUP: PreemptedError,  # the terminal was closed, or the connection to it lost
    signal.SIGINT: KeyboardStopError,
}
Heard = Callable[[int], None]
ONE_REQUEST_S = 0.3  # a cluster signals every process of a job, and a sweep hands it on as well
SHOW_CURSOR = b"\x1b[?25h\n"
# In place of the line where the cursor is, and to be replaced by what comes: a progress of several
# lines draws itself again from there.
STOPPING = b"\r\x1b[2Kmetarun: stopping after this step; Ctrl-C again stops at once\r"
GOES_ON = "goes on from the last checkpoint"


class Stop:
    """The flag; `requested` is the number of the first signal that came, or None."""

    def __init__(
        self,
        heard: Heard | None = None,
        leaving: Callable[[], None] | None = None,
        then: str = GOES_ON,
    ) -> None:
        self.requested: int | None = None
        self.since = 0.0
        self._heard, self._leaving, self._then = heard, leaving, then

    def check(self) -> None:
        """Raise PreemptedError after SIGTERM or SIGHUP, KeyboardStopError after Ctrl-C."""
        if self.requested is None:
            return
        name = signal.Signals(self.requested).name
        raise REQUESTS[self.requested](f"stopped by {name}; the same command {self._then}")

    def _handle(self, number: int, _: FrameType | None) -> None:
        now = time.monotonic()
        if self.requested is None:
            self.requested, self.since = number, now
            if self._heard is not None:
                self._heard(number)
        # A terminal that closes signals through the shell and again through the kernel.
        elif now - self.since >= ONE_REQUEST_S and number != signal.SIGHUP:
            if self._leaving is not None:
                self._leaving()
            text = f"metarun: stopped at once; the same command {self._then}\n"
            _exit(self.requested, text)  # the second request must not wait for anything


def say_stopping(number: int) -> None:
    """Answer Ctrl-C on a terminal: a step may take long, and who hears nothing presses again."""
    if number == signal.SIGINT and os.isatty(2):
        with suppress(OSError):  # it is gone
            os.write(2, STOPPING)


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
def stop_requests(
    heard: Heard | None = None,
    leaving: Callable[[], None] | None = None,
    then: str = GOES_ON,
) -> Generator[Stop]:
    """Turn the requests into a flag inside the block; a second one exits at once.

    `heard` is called with the number of the first, `leaving` before the exit; `then` is what the
    same command does. Only the main thread may install handlers; elsewhere the flag exists and
    stays down.
    """
    stop = Stop(heard, leaving, then)
    with _handling(stop._handle):  # pyright: ignore[reportPrivateUsage]
        yield stop


def let_end() -> None:
    """Pass over all requests from here on: a process that has its exit code is to end with it."""
    for number in REQUESTS:
        signal.signal(number, signal.SIG_IGN)


def _exit(request: int, text: str) -> NoReturn:
    """End the process without any cleanup, but leave a terminal with a cursor."""
    with suppress(OSError):  # the terminal is gone
        if terminal := next(filter(os.isatty, (2, 1)), None):
            os.write(terminal, SHOW_CURSOR)
        os.write(2, text.encode())
    os._exit(REQUESTS[request].exit_code)


@contextmanager
def _handling(handle: Callable[[int, FrameType | None], None]) -> Generator[None]:
    """Install a handler for all requests; only the main thread can, elsewhere nothing happens.

    Under nohup a closed terminal is no request.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    deaf = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    heeded = [number for number in REQUESTS if not (deaf and number == signal.SIGHUP)]
    before = {number: signal.signal(number, handle) for number in heeded}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
