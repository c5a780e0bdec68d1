"""A request to stop is a flag that is looked at between units of work, never an interruption."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType

from metarun.errors import KeyboardStopError, MetarunError, PreemptedError

REQUESTS: dict[int, type[MetarunError]] = {
    signal.SIGTERM: PreemptedError,
    signal.SIGINT: KeyboardStopError,
}
SHOW_CURSOR = b"\x1b[?25h\n"


class Stop:
    """The flag; `requested` is the number of the first signal that came, or None."""

    requested: int | None = None

    def check(self) -> None:
        """Raise PreemptedError after SIGTERM, KeyboardStopError after Ctrl-C, else nothing."""
        if self.requested is None:
            return
        name = signal.Signals(self.requested).name
        raise REQUESTS[self.requested](
            f"stopped by {name}; the same command goes on from the last checkpoint"
        )

    def _handle(self, number: int, _: FrameType | None) -> None:
        if self.requested is None:
            self.requested = number
            return
        # The second request must not wait for anything: no cleanup, but a terminal with a cursor.
        for descriptor in (1, 2):
            if os.isatty(descriptor):
                os.write(descriptor, SHOW_CURSOR)
        os._exit(REQUESTS[self.requested].exit_code)


def preemptible() -> None:
    """Let SIGTERM end this process at once with its exit code, until `stop_requests` takes over.

    For the seconds in which a run is imported and composed: there is nothing yet to write down.
    Call it first thing in the main thread.
    """

    def end(*_: object) -> None:
        line = b"metarun: stopped by SIGTERM before it began; give the same command again\n"
        os.write(2, line)
        os._exit(PreemptedError.exit_code)

    signal.signal(signal.SIGTERM, end)


@contextmanager
def stop_requests() -> Generator[Stop]:
    """Turn SIGTERM and Ctrl-C into a flag inside the block; a second signal exits at once.

    Only the main thread may install handlers; elsewhere the flag exists and stays down.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, stop._handle) for number in REQUESTS}  # pyright: ignore[reportPrivateUsage]
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
