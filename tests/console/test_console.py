"""What is printed, letter by letter, at 80 columns."""

import errno
import io
import os
import subprocess
import sys
from contextlib import nullcontext

import pytest
from rich.console import Console

from metarun import console

OUTCOME = {
    "status": "done",
    "algo": "maml",
    "dataset": "glyphs",
    "seed": 0,
    "shape": {"ways": 5, "shots": 1, "test_queries": 15},
    "test": {
        "accuracy": {"mean": 0.612, "ci95": 0.011, "tasks": 600, "by_step": [0.2, 0.5, 0.612]}
    },
    "chosen": {"steps": 2, "inner_lr": 0.4},
    "normalisation": "batch, transductive",
    "task_list": "3fa9c1b2d4",
    "budget": {"unit": "meta_steps", "total": 1000},
    "cost": {
        "meta_steps": 1000,
        "train_seconds": 63.0,
        "tasks_per_second": 254.0,
        "flops_total": 1.1e13,
        "peak_memory_bytes": 503316480,
        "parameters": 112261,
        "meta_parameters": 112261,
    },
    "clusters": {"purity": 0.93, "nmi": 0.85, "ari": 0.83, "effective": 4.8, "usage": [1.0]},
    "divergence": {"skipped_steps": 2, "dropped_tasks": 0},
}


def rendered(what, width=80):
    """The lines of a renderable, without the blanks that pad them."""
    screen = Console(file=io.StringIO(), width=width, record=True, markup=False, highlight=False)
    screen.print(what)
    return [line.rstrip() for line in screen.export_text().splitlines()]


def test_result_of_a_run():
    assert rendered(console.outcome_table(OUTCOME)) == [
        "maml on glyphs, seed 0",
        "",
        " test accuracy   61.2 ± 1.1 % on 600 held-out tasks",
        " by step         20.0, 50.0, 61.2",
        " task            5-way 1-shot",
        " queries         15 a class",
        " chosen          2 steps, inner_lr 0.4",
        " normalisation   batch, transductive",
        " task list       3fa9c1b2",
        " budget          1,000 meta-steps",
        " training        1,000 meta-steps, 63 s, 254 tasks/s, 11.0 TFLOP, 480 MiB",
        " parameters      112,261 in the model; 112,261 numbers meta-learned",
        " clusters        purity 0.93, NMI 0.85, ARI 0.83, 4.8 in use",
        " in training     2 skipped steps",
        "",
    ]


def test_result_of_a_regression_with_a_long_curve():
    test = {
        "mse": {
            "mean": 0.31,
            "ci95": 0.02,
            "tasks": 600,
            "by_step": [1 / (k + 1) for k in range(101)],
        }
    }
    lines = rendered(console.outcome_table(OUTCOME | {"test": test, "clusters": None}))
    assert lines[2] == " test mse        0.310 ± 0.020 on 600 held-out tasks"
    assert "(at 0, 10, 20, 30, 40, 50, 60, 70, 80, 90, 100)" in " ".join(
        line.strip() for line in lines
    )


def test_result_of_a_run_that_failed_or_left_out_nearly_all():
    failed = {"status": "diverged", "algo": "[b]", "dataset": "d", "reason": "step 40: [red] NaN"}
    assert rendered(console.outcome_table(failed)) == [
        "[b] on d, seed ?",
        "",
        " status   diverged: step 40: [red] NaN",
        "",
    ]
    bare = {"status": "done", "test": OUTCOME["test"]}
    assert " task list       not recorded" in rendered(console.outcome_table(bare))


def test_sweep():
    rows = [
        ("maml-s0", "done", "61.2 ± 1.1 %", "", ""),
        ("maml-s1", "failed", "", "exit code 3: no [data]", "outputs/sweep/maml-s1/log.txt"),
        ("maml-s2", "pending", "", "", ""),
    ]
    assert rendered(console.sweep_table(rows)) == [
        "Sweep",
        "",
        " Job       State     Result         Reason",
        " ─────────────────────────────────────────────────────────",
        " maml-s0   done      61.2 ± 1.1 %",
        " maml-s1   failed                   exit code 3: no [data]",
        " maml-s2   pending",
        "",
        " maml-s1: outputs/sweep/maml-s1/log.txt",
    ]
    assert "Reason" not in "".join(rendered(console.sweep_table(rows[:1])))


def test_the_path_of_a_log_stays_in_one_piece(capsys):
    log = "outputs/" + 20 * "long-" + "/log.txt"
    console.say(console.sweep_table([("job", "failed", "", "words " * 30, log)]))
    assert f" job: {log}\n" in capsys.readouterr().out


def test_checks():
    rows = [("torch", "ok", "2.13.0"), ("data [omniglot]", "warn", "absent"), ("gpu", "fail", "no")]
    assert rendered(console.check_table("What is here", rows)) == [
        "What is here",
        "",
        " Check             State   Detail",
        " ────────────────────────────────",
        " torch             ok      2.13.0",
        " data [omniglot]   warn    absent",
        " gpu               fail    no",
        "",
    ]


@pytest.mark.parametrize("text", ["[red]x[/red]", ":smile:", "a  b", "x" * 300, "[/]", "\\[b]"])
def test_text_is_printed_as_it_is(capsys, text):
    console.say(text)
    console.error(text)
    console.warn(text)
    out, err = capsys.readouterr()
    assert out == f"{text}\n"
    assert err == f"metarun: {text}\nmetarun: warning: {text}\n"


def test_control_characters_are_spelt_out_and_errors_stay_on_one_line(capsys):
    console.error("bad \x1b[31m\x07 name\nand\r more")
    console.say("two\nlines\x1b]0;title\x07")
    out, err = capsys.readouterr()
    assert err == "metarun: bad \\x1b[31m\\x07 name and\\r more\n"
    assert out == "two\nlines\\x1b]0;title\\x07\n"


def run(code, *, stdout=subprocess.PIPE, **environment):
    """Run a program that has imported the console."""
    return subprocess.run(
        [sys.executable, "-c", f"from metarun import console\n{code}"],
        env={"PATH": "/usr/bin", **environment},
        stdout=stdout,
        stderr=subprocess.PIPE,
        check=False,
    )


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
def test_any_encoding_can_show_anything(encoding):
    code = (
        "console.say('± \\u2013 caf\\u00e9 \\u5b57 \\udce9')\n"
        "console.error('\\udce9 \\u2212')\n"
        "console.say(console.check_table('t', [('a', 'ok', '± 1')]))"
    )
    done = run(code, PYTHONIOENCODING=encoding)
    assert done.returncode == 0
    if encoding == "ascii":
        first = done.stdout.decode("ascii").splitlines()[0]
        assert first == "+-- caf\\xe9 \\u5b57 \\udce9"
        assert done.stderr == b"metarun: \\udce9 -\n"


def test_a_reader_that_leaves_ends_nothing():
    code = (
        "import os, sys, time\nread, write = os.pipe()\nos.dup2(write, 1)\nos.close(read)\n"
        "os.close(write)\nfor i in range(9): console.say('line')\nconsole.error('still here')"
    )
    done = run(code)
    assert (done.returncode, done.stderr) == (0, b"metarun: still here\n")


def test_colours_only_on_a_terminal(capsys):
    console.error("x")
    console.say(console.check_table("t", [("a", "fail", "b")]))
    out, err = capsys.readouterr()
    assert "\x1b" not in out + err


@pytest.mark.parametrize(
    ("number", "passed_over"),
    [(errno.ENOSPC, True), (errno.EPIPE, True), (errno.EIO, True), (errno.EBADF, False)],
)
def test_a_line_that_nobody_can_take_is_no_failure(number, passed_over):
    """Where a log's disk is full, the run goes on: it may have room elsewhere."""

    class Full(io.StringIO):
        def write(self, text):
            raise OSError(number, os.strerror(number))

    with open(os.devnull, "w") as file:
        stream = Full()
        stream.fileno = file.fileno
        with nullcontext() if passed_over else pytest.raises(OSError, match="Bad file"):
            assert console._Stream(stream).write("unheard") == 7


def test_a_terminal_that_is_closed_ends_nothing():
    """As after `disown`: the run is to end as it would have, unseen."""
    code = (
        "import os, sys, pty\nscreen, own = pty.openpty()\nos.dup2(own, 1)\nos.close(own)\n"
        "os.close(screen)\nfor i in range(9): console.say('line')\nconsole.error('still here')"
    )
    done = run(code)
    assert (done.returncode, done.stderr) == (0, b"metarun: still here\n")
