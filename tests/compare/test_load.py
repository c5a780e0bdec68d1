"""Every folder that looks like a run is either used or listed with its reason."""

import json

import numpy as np
import pytest
import yaml

from metarun.errors import ConfigError, DataError
from metarun.report.pooling import methods
from metarun.report.runs import load


def test_finds_runs_at_any_depth_once_and_nothing_that_is_none(make_run, tmp_path):
    one, two = make_run("sweep/maml"), make_run("sweep/deep/down/transfer", "transfer")
    for no_run in ("sweep/maml/checkpoints/x", "sweep/maml/wandb/run", "sweep/.hydra"):
        (tmp_path / no_run).mkdir(parents=True)
        (tmp_path / no_run / "records.jsonl").touch()
    found = load([tmp_path / "sweep", one, tmp_path])
    assert {run.folder for run in found.runs} == {one, two}
    assert found.left_out == ()


def test_tasks_come_back_in_the_order_of_their_numbers(make_run):
    def shuffle(_, arrays):
        order = np.random.default_rng(0).permutation(600)
        arrays.update({key: value[order] for key, value in arrays.items()})

    (plain,), _ = load([make_run("a")])
    (shuffled,), _ = load([make_run("b", edit=shuffle)])
    assert np.array_equal(shuffled.task, np.arange(600))
    assert np.array_equal(shuffled.scores, plain.scores)


def set_outcome(**values):
    return lambda outcome, _: outcome.update(values)


def set_nan(outcome, arrays):
    arrays["accuracy"][17, outcome["test"]["accuracy"]["step"]] = np.nan


LISTED = {
    "failed": (set_outcome(status="failed", exit_code=3), "exit code 3"),
    "diverged": (set_outcome(status="diverged", reason="step 40: loss is NaN"), "step 40"),
    "preempted": (set_outcome(status="preempted", exit_code=75), "exit code 75"),
    "not finite": (set_nan, "1 of 600 test tasks have no finite accuracy"),
    "no metric": (set_outcome(test={"f1": {}}), "neither accuracy nor mse"),
    "no task list": (set_outcome(task_list=None), "lacks task_list"),
    "foreign scores": (lambda _, a: a["accuracy"].__imul__(0.5), "scores.npz gives"),
    "short mode": (lambda _, a: a.update(mode=a["mode"][:9]), "does not fit 600 tasks"),
    "no scores": (lambda _, a: a.pop("accuracy"), "scores.npz lacks accuracy"),
    "no step": (lambda o, _: o["test"]["accuracy"].update(step=99), "step 99"),
    "no mean": (lambda o, _: o["test"]["accuracy"].pop("mean"), "mean"),
}


@pytest.mark.parametrize("case", LISTED)
def test_a_run_that_cannot_be_used_is_listed(make_run, case):
    edit, says = LISTED[case]
    good, bad = make_run("good", "transfer"), make_run("bad", edit=edit)
    found = load([good, bad])
    assert [run.folder for run in found.runs] == [good]
    (listed,) = found.left_out
    assert (listed.folder, listed.name) == (str(bad), "maml seed 0")
    assert says in listed.reason
    assert "\n" not in listed.reason


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("outcome.json", b"{", "outcome.json is no whole JSON (Expecting"),
        ("outcome.json", b"[1]", "no object"),
        ("outcome.json", b"\xff\xfe", "outcome.json is no whole JSON ('utf-8'"),
        ("scores.npz", b"", "cannot be read"),
        ("scores.npz", b"not an archive", "cannot be read"),
        ("scores.npz", None, "scores.npz is missing"),
    ],
)
def test_a_damaged_file_is_named(make_run, file, content, says):
    run = make_run("run")
    (run / file).unlink()
    if content is not None:
        (run / file).write_bytes(content)
    (listed,) = load([run]).left_out
    assert listed.status == "damaged"
    assert says in listed.reason


def test_every_truncation_of_the_scores_is_damage_and_no_crash(make_run):
    run = make_run("run", tasks=20)
    whole = (run / "scores.npz").read_bytes()
    for size in range(0, len(whole), 97):
        (run / "scores.npz").write_bytes(whole[:size])
        assert load([run]).left_out[0].status == "damaged"


def test_an_unfinished_run_says_how_far_it_came(sweep):
    (listed,) = load([sweep]).left_out
    assert (listed.name, listed.status) == ("maml seed 3", "unfinished")
    assert "train, step 340" in listed.reason


def test_a_job_of_a_sweep_that_never_started_is_listed(make_run, tmp_path):
    make_run("sweep/algo=maml")
    with (tmp_path / "sweep" / "manifest.jsonl").open("w") as file:
        for job, state in (("algo=maml", "done"), ("algo=imaml", "pending"), ("x", "failed")):
            reason = "no such device" if state == "failed" else None
            line = {"kind": "job", "time": 0, "job": job, "state": state, "reason": reason}
            file.write(json.dumps(line) + "\n")
    found = load([tmp_path])
    assert len(found.runs) == 1
    assert {(item.name, item.status, item.reason) for item in found.left_out} == {
        ("algo=imaml", "pending", "its folder holds no run"),
        ("x", "failed", "no such device"),
    }


def test_a_run_without_config_or_with_a_broken_one_still_counts(make_run):
    bare, broken = make_run("bare"), make_run("broken", "transfer")
    (bare / "config.yaml").unlink()
    (broken / "config.yaml").write_text("{")
    assert len(load([bare, broken]).runs) == 2


def test_a_configuration_that_was_deleted_is_read_from_the_records(make_run):
    run = make_run("bare")
    whole = yaml.safe_load((run / "config.yaml").read_text())
    records = [{"kind": "start", "step": 0, "time": 0, "config": whole}]
    (run / "records.jsonl").write_text("".join(f"{json.dumps(r)}\n" for r in records))
    (run / "config.yaml").unlink()
    assert load([run]).runs[0].config == whole


def test_runs_without_settings_are_named_by_their_folders_and_never_pooled(make_run):
    runs = [make_run("known"), make_run("one", seed=1), make_run("two", seed=2)]
    for run in runs[1:]:
        (run / "config.yaml").unlink()
    found = methods(load(runs).runs, 1)
    assert [method.entry.label for method in found] == [
        "maml",
        "maml (one, settings unknown)",
        "maml (two, settings unknown)",
    ]


def test_folders_that_hold_nothing_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="no such folder"):
        load([tmp_path / "gone"])
    with pytest.raises(DataError, match="no run in there"):
        load([tmp_path])


def test_outcome_of_another_tool_is_no_reason_to_fail(make_run):
    run = make_run("run")
    (run / "outcome.json").write_text(json.dumps({"anything": 1}))
    assert load([run]).left_out[0].status == "None"
