"""Requests to stop: a flag, handlers restored, and a second signal that does not wait."""

from __future__ import annotations

import os
import pty
import signal
import threading
import time

import pytest
from children import python

from metarun.errors import KeyboardStopError, PreemptedError
from metarun.signals import ONE_REQUEST_S, REQUESTS, stop_requests

STUBBORN = """
import time
from metarun.signals import stop_requests
with stop_requests() as stop:
    print("ready", flush=True)
    while True:
        time.sleep(0.01)
        if stop.requested:
            print("asked", flush=True)
            time.sleep(60)
"""


@pytest.mark.parametrize(
    ("number", "error", "code"),
    [
        (signal.SIGTERM, PreemptedError, 75),
        (signal.SIGHUP, PreemptedError, 75),
        (signal.SIGINT, KeyboardStopError, 130),
    ],
)
def test_a_signal_raises_only_where_it_is_looked_for(number, error, code):
    before = {n: signal.getsignal(n) for n in REQUESTS}
    with stop_requests() as stop:
        stop.check()
        os.kill(os.getpid(), number)
        assert stop.requested == number
        with pytest.raises(error, match="same command goes on") as caught:
            stop.check()
        assert caught.value.exit_code == code
    assert {n: signal.getsignal(n) for n in before} == before


def test_handlers_are_restored_after_an_error():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(ZeroDivisionError), stop_requests():
        raise ZeroDivisionError
    assert signal.getsignal(signal.SIGTERM) is before


def test_another_thread_gets_a_flag_that_stays_down():
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def work():
        with stop_requests() as stop:
            stop.check()
            seen.append((stop.requested, signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(None, before)]


START_UP = """
import time
from metarun.signals import nothing_to_save, stop_requests
with nothing_to_save():
    with stop_requests():
        pass
    print("ready", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 75), (signal.SIGHUP, 75), (signal.SIGINT, 130)]
)
def test_with_nothing_to_save_a_request_ends_the_process_at_once(number, code):
    process = python("-c", START_UP)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    _, error = process.communicate(timeout=5)
    assert process.returncode == code
    assert "with nothing to save; the same command goes on" in error
    assert error.count("\n") == 1


def test_a_terminal_is_left_with_a_cursor():
    """A progress bar hides it, and the compiler may be at work below it."""
    screen, its_side = pty.openpty()
    process = python("-c", START_UP, error=its_side)
    os.close(its_side)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    assert process.wait(5) == 75
    shown = os.read(screen, 1000)
    os.close(screen)
    process.communicate()
    assert shown.startswith(b"\x1b[?25h")
    assert b"with nothing to save" in shown


BUSY = """
import sys, time
from metarun.signals import say_stopping, stop_requests
with stop_requests(say_stopping) as stop:
    print("ready", flush=True)
    while stop.requested is None:
        time.sleep(0.01)
"""


@pytest.mark.parametrize(("number", "said"), [(signal.SIGINT, True), (signal.SIGTERM, False)])
def test_ctrl_c_on_a_terminal_is_answered_at_once(number, said):
    """The step that is being taken may last; who hears nothing presses again, and loses more."""
    screen, its_side = pty.openpty()
    on_terminal, elsewhere = python("-c", BUSY, error=its_side), python("-c", BUSY)
    os.write(its_side, b"end of what was shown")
    for process in (on_terminal, elsewhere):
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        assert process.wait(5) == 0
    os.close(its_side)
    shown = os.read(screen, 1000)
    os.close(screen)
    on_terminal.communicate()
    assert (b"stopping after this step; Ctrl-C again stops at once" in shown) is said
    assert elsewhere.communicate()[1] == "", "a log is no place for it"


def test_a_request_that_arrives_twice_is_one():
    """A cluster signals every process of a job, and a sweep hands the signal on as well."""
    with stop_requests() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested == signal.SIGTERM


@pytest.mark.parametrize(
    ("first", "second", "code"),
    [
        (signal.SIGTERM, signal.SIGTERM, 75),
        (signal.SIGINT, signal.SIGINT, 130),
        (signal.SIGTERM, signal.SIGINT, 75),
    ],
)
def test_a_second_signal_exits_at_once(first, second, code):
    process = python("-c", STUBBORN)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(first)
    assert process.stdout.readline() == "asked\n"
    time.sleep(1.5 * ONE_REQUEST_S)
    begun = time.monotonic()
    process.send_signal(second)
    assert process.wait(5) == code
    assert time.monotonic() - begun < 0.5
    _, error = process.communicate()
    assert error == (
        "metarun: stopped at once; the same command goes on from the last checkpoint\n"
    )


def test_a_closed_terminal_is_one_request_however_often_it_signals():
    """The shell hands SIGHUP on, and the kernel sends it again when the shell is gone."""
    with stop_requests() as stop:
        os.kill(os.getpid(), signal.SIGHUP)
        time.sleep(1.5 * ONE_REQUEST_S)
        os.kill(os.getpid(), signal.SIGHUP)
        assert stop.requested == signal.SIGHUP


def test_under_nohup_a_closed_terminal_is_no_request():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_requests() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            stop.check()
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_terminal_that_is_gone_costs_no_exit_code(number):
    screen, its_side = pty.openpty()
    process = python("-c", START_UP, error=its_side)
    os.close(its_side)
    assert process.stdout.readline() == "ready\n"
    os.close(screen)
    process.send_signal(number)
    assert process.wait(5) == 75
    process.communicate()


ENDING = """
import atexit, sys, time
import metarun.cli as cli
def slowly():
    print("ready", flush=True)
    time.sleep(0.5)
atexit.register(slowly)
cli.main = lambda: 4
cli.entry()
"""


@pytest.mark.parametrize("number", REQUESTS)
def test_a_process_that_is_ending_keeps_its_exit_code(number):
    process = python("-c", ENDING)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    assert process.wait(5) == 4
    process.communicate()


LOADING = """
import sys, time
from pathlib import Path
import metarun.run as run
from metarun.config import compose_job
def assemble(*_):
    print("ready", flush=True)
    time.sleep(60)
run.assemble = assemble
sys.exit(run.run_job(compose_job(["dataset=sinusoid"]), Path(sys.argv[1])))
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_run_that_waits_for_its_data_ends_at_once(number, code, tmp_path):
    """It may download them, or wait for another process that does."""
    process = python("-c", LOADING, tmp_path / "run")
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    _, error = process.communicate(timeout=5)
    assert process.returncode == code
    assert "with nothing to save" in error
    assert not (tmp_path / "run").exists()
