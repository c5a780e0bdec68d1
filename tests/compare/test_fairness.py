"""What a reader must know before comparing: who is missing, what differs, what few tasks decide."""

import json

import numpy as np

from metarun.compare import compare
from metarun.report.runs import load


def compared(*folders):
    return compare(load(list(folders)))


def test_a_method_of_which_a_training_seed_diverged_says_so(make_run, tmp_path):
    """The mean of those that are left is the mean of the lucky ones."""

    def diverged(seed, inner_lr=0.4):
        lost = make_run(f"m{seed}-{inner_lr}", seed=seed, config=settings(inner_lr))
        config = {"algo": "maml", "dataset": "glyphs", "model": "conv4", "seed": seed}
        ended = config | {"status": "diverged", "exit_code": 4, "reason": "diverged: at step 3"}
        (lost / "outcome.json").write_text(json.dumps(ended))

    def settings(inner_lr):
        return {"algo": {"inner_lr": inner_lr}}

    make_run("t", "transfer")
    make_run("m0", seed=0, config=settings(0.4))
    diverged(1)
    diverged(2)
    diverged(3, inner_lr=40.0)  # another method, of which nothing is left
    (section,) = compared(tmp_path).sections
    assert [line for line in section.notices if "diverged" in line] == [
        "maml: 2 of 3 training seeds diverged; its numbers are of the rest, which flatters it."
    ]


def test_other_examples_a_step_and_other_validation_are_said(make_run):
    """Equal meta-steps are no equal budget when one batch is larger than another."""

    def larger(outcome, _):
        outcome["cost"]["examples"] *= 2

    few, many = ({"tasks": n, "steps": 10, "every": 250} for n in (10, 200))
    maml = make_run("m", edit=larger, config={"validation": many})
    scratch = make_run("s", "scratch", config={"validation": many})
    transfer = make_run("t", "transfer", config={"validation": few})
    (section,) = compared(maml, scratch, transfer).sections
    assert section.fair
    assert [line for line in section.notices if "not the same" in line] == [
        "Examples a meta-step: not the same for all: 2,560 (maml); 1,280 (transfer).",
        "Validation: not the same for all: 200 tasks, 10 steps at most, every 250 meta-steps (maml "
        "and scratch); 10 tasks, 10 steps at most, every 250 meta-steps (transfer).",
    ]
    (section,) = compared(maml, scratch).sections
    assert not any("not the same" in line for line in section.notices)


def test_numbers_that_few_tasks_decide_are_said_to(make_run):
    """Of a mean squared error with a long tail, 1.96 standard errors hold less than 95 %."""

    def tail(outcome, arrays):
        arrays["mse"][:] = np.random.default_rng(3).lognormal(0, 2, (600, 1))
        outcome["test"]["mse"]["mean"] = float(arrays["mse"][:, 0].mean())

    even = make_run("t", "transfer", metric="mse")
    (section,) = compared(make_run("m", metric="mse", edit=tail), even).sections
    (line,) = (line for line in section.notices if "Few tasks" in line)
    assert line.startswith("Few tasks weigh heavily in the numbers of maml: their ± may be too")
    (section,) = compared(make_run("s", "scratch", metric="mse"), even).sections
    assert not any("Few tasks" in line for line in section.notices)
