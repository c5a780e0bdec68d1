"""Progress: a live line on a terminal that is left as it was, plain lines elsewhere."""

import os
import pty
import re
import select
import signal
import subprocess
import sys
import time

import pytest

from metarun import console

HIDE, SHOW = "\x1b[?25l", "\x1b[?25h"
FIGURES = "{'loss': 0.31234, 'accuracy': 0.7, 'tasks/s': 254.2}"


# A background job of a shell, and what it starts, inherits a Ctrl-C that is ignored.
PREAMBLE = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)
from metarun import console
"""


def run_on_a_terminal(body, *, until=None, send=None, **environment):
    """Run a program with a terminal of its own; return its exit code and what was shown."""
    parent, child = pty.openpty()
    env = {"TERM": "xterm", "COLUMNS": "100", "PATH": os.environ["PATH"], **environment}
    process = subprocess.Popen(
        [sys.executable, "-c", f"{PREAMBLE}\n{body}"],
        stdin=child,
        stdout=child,
        stderr=child,
        env=env,
        start_new_session=True,
    )
    os.close(child)
    shown, deadline = "", time.monotonic() + 60
    while time.monotonic() < deadline:
        if not select.select([parent], [], [], 0.2)[0]:
            continue
        try:
            data = os.read(parent, 65536)
        except OSError:  # the other end is closed
            break
        shown += data.decode()
        if until and until in shown:
            os.kill(process.pid, send)
            until = None
    os.close(parent)
    return process.wait(10), shown


def words_of(shown):
    return re.sub(r"\x1b\[[?0-9;]*[A-Za-z]", "", shown)


def steps(body):
    """A program that shows forty steps and does something after each."""
    return f"""
with console.progress('maml [red]', 40, 'meta-steps') as show:
    for step in range(41):
        show(step, {FIGURES})
        {body}
"""


def test_a_terminal_gets_one_live_line_with_all_figures():
    code, shown = run_on_a_terminal(steps("time.sleep(0.02)"))
    assert code == 0
    text = words_of(shown)
    assert "maml [red]" in text
    assert "40/40 meta-steps, loss 0.3123, accuracy 70.0 %, 254 tasks/s" in text
    assert "meta-steps/s" in text
    assert " left" in text
    assert shown.rindex(SHOW) > shown.rindex(HIDE)
    assert shown.count("maml") < 15  # 41 steps in 0.8 s: not a line each


@pytest.mark.parametrize(
    ("failing", "code", "says"),
    [
        ("1 / 0", 1, "ZeroDivisionError"),
        ("sys.exit(75)", 75, ""),
        ("console.say('a line between')", 0, "a line between"),
        ("console.warn('a warning')", 0, "metarun: warning: a warning"),
    ],
)
def test_the_terminal_is_restored_however_it_ends(failing, code, says):
    ended, shown = run_on_a_terminal(steps(f"if step == 20: {failing}"))
    assert ended == code
    assert shown.rindex(SHOW) > shown.rindex(HIDE)
    assert says in words_of(shown)


def test_ctrl_c_restores_the_terminal():
    code, shown = run_on_a_terminal(steps("time.sleep(0.2)"), until="loss", send=signal.SIGINT)
    assert code == -signal.SIGINT
    assert shown.rindex(SHOW) > shown.rindex(HIDE)


def test_a_dumb_terminal_gets_plain_lines():
    _, shown = run_on_a_terminal(steps("pass"), TERM="dumb")
    assert "\x1b" not in shown
    assert "maml [red]: 40/40 meta-steps, loss 0.3123" in shown


def test_elsewhere_plain_lines_come_now_and_then_and_at_the_end(capsys, monkeypatch):
    monkeypatch.setattr(console, "PLAIN_S", 0.05)
    with console.progress("run", 1.0, "budget") as show:
        for step in range(101):
            show(step / 100, {"loss": 1.0, "state": "warm [b]"})
            time.sleep(0.002)
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert 3 <= len(lines) <= 12
    assert lines[-1] == "run: 100 % of budget, loss 1, state warm [b]"
    assert re.fullmatch(r"run: \d+ % of budget, loss 1, state warm \[b\], [\d.]+ s left", lines[0])


def test_what_the_last_line_said_is_not_said_again_at_the_end(capsys, monkeypatch):
    monkeypatch.setattr(console, "PLAIN_S", 0.2)
    with console.progress("run", 1.0, "budget") as show:
        time.sleep(0.2)
        show(0.06, {"loss": 1.0})
        show(0.061, {"loss": 0.9})  # just before a stop
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("run: 6 % of budget, loss 1")


def test_ten_seconds_lie_between_plain_lines(capsys):
    with console.progress("run", 5, "steps") as show:
        for step in range(5):
            show(step, {})
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_the_rate_of_a_resumed_run_counts_from_where_it_went_on(capsys):
    with console.progress("run", 2000, "steps") as show:
        show(1000, {})
        time.sleep(0.1)
        show(1010, {})
    (line,) = capsys.readouterr().err.splitlines()
    rate = float(re.search(r"([\d.]+) steps/s", line)[1])
    assert 50 < rate <= 100
    assert "1,010/2,000 steps" in line


def test_nothing_done_says_nothing(capsys):
    with console.progress("run", 10, "steps"):
        pass
    assert capsys.readouterr() == ("", "")


def test_an_error_outside_a_terminal_still_shows_how_far_it_came(capsys):
    def fail():
        with console.progress("run", 10, "steps") as show:
            show(3, {})
            raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        fail()
    assert "3/10 steps" in capsys.readouterr().err
