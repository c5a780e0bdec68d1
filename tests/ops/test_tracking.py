"""What is sent to W&B, whether it is, and that starting it costs training nothing."""

from __future__ import annotations

import json
import math
import os
import sys
import time

import pytest
from children import python

from metarun import cli
from metarun.errors import ConfigError
from metarun.records import Records
from metarun.tracking import none, start_mirror, sync_main, wandb
from metarun.tracking.rows import Row, adaptation, comparison_table, figures, rows, summary
from metarun.tracking.settings import choose_mode
from metarun.tracking.start import LABEL, LOG, read_label

SETTINGS = wandb(project="p", entity=None, tags=["a"], mode="auto", timeout_s=1.0, log_images=True)
ACCURACY = {"mean": 0.6, "ci95": 0.01, "tasks": 600, "step": 2, "by_step": [0.2, 0.5, 0.6]}


def record(kind, step, **more):
    """Return a record stamped with its own step."""
    return {"kind": kind, "step": step, "time": float(step), **more}


def test_importing_tracking_does_not_import_wandb_or_torch():
    code = "import sys, metarun.tracking; print({'wandb', 'torch'} & set(sys.modules))"
    done = python("-c", code)
    assert done.communicate()[0] == "set()\n"


def test_records_of_one_step_become_one_row():
    lines = [
        record("start", 0, config={}),
        record("train", 1, loss=1.0),
        record("train", 2, loss=0.5),
        record("validate", 2, accuracy=ACCURACY),
        record("train", 3, loss="NaN"),
        record("test", 3, accuracy=ACCURACY),
        record("end", 3, status="done"),
    ]
    first, second, third = rows(lines)
    assert first == Row(1, 1.0, {"step": 1, "train/loss": 1.0})
    assert second.figures == {
        "step": 2,
        "train/loss": 0.5,
        "validate/accuracy": 0.6,
        "validate/accuracy_ci95": 0.01,
    }
    assert math.isnan(third.figures["train/loss"])


def test_a_row_that_may_be_incomplete_waits():
    lines = [record("train", 1, loss=1.0), record("train", 2, loss=0.5)]
    assert [row.step for row in rows(lines)] == [1]
    assert [row.step for row in rows([*lines, record("end", 2)])] == [1, 2]
    assert [row.step for row in rows([*lines, record("end", 2)], first=2)] == [2]


@pytest.mark.parametrize("killed_after", range(2, 9))
def test_a_resume_sends_every_step_once_and_whole(killed_after):
    steps = [[record("train", s, loss=float(s))] for s in range(1, 7)]
    for step in (2, 4, 6):
        steps[step - 1].append(record("validate", step, accuracy=ACCURACY))
    flat = [r for group in steps for r in group]
    history = flat[:killed_after]
    saved = max([0, *(r["step"] for r in history if r["kind"] == "validate")])
    again = [r for r in flat if r["step"] > saved]
    restart = record("resumed", saved) if saved else record("start", 0)
    sent = list(rows([*history, restart, *again, record("end", 6)]))
    assert [row.step for row in sent] == [1, 2, 3, 4, 5, 6]
    assert ["validate/accuracy" in row.figures for row in sent] == [False, True] * 3


def test_figures_are_numbers_only():
    line = record("train", 3, loss=2, ok=True, name="x", many=[1], none=None, lr="Infinity")
    assert figures(line) == {"train/loss": 2, "train/lr": math.inf}


def test_the_summary_and_the_adaptation_table():
    test = record("test", 3, accuracy=ACCURACY)
    outcome = {
        "test": {"accuracy": ACCURACY | {"mean": 0.7, "ci95_by_step": [0.1, 0.2, 0.3]}},
        "cost": {"flops_total": 1e9, "device": "cpu"},
        "clusters": None,
        "divergence": {"skipped_steps": 1},
    }
    assert summary(test, {}) == {"test/accuracy": 0.6, "test/accuracy_ci95": 0.01}
    assert summary(test, outcome) == {
        "test/accuracy": 0.7,
        "test/accuracy_ci95": 0.01,
        "cost/flops_total": 1e9,
        "divergence/skipped_steps": 1,
    }
    assert adaptation(None, {}).lines == []
    assert adaptation(test, {}).columns == ("step", "accuracy")
    table = adaptation(test, outcome)
    assert table.columns == ("step", "accuracy", "ci95")
    assert table.lines == [[0, 0.2, 0.1], [1, 0.5, 0.2], [2, 0.6, 0.3]]


def test_the_comparison_table_pairs_each_method_with_the_reference():
    entries = [
        {"label": "maml", "mean": 0.7, "ci95": 0.01, "tasks": 9, "seeds": [0, 1], "cost": {}},
        {"label": "transfer", "mean": 0.6, "ci95": 0.01, "tasks": 9, "seeds": [0]},
    ]
    section = {"dataset": "glyphs", "metric": "accuracy", "reference": "transfer"}
    pair = {"section": 0, "a": "maml", "b": "transfer", "difference": 0.1, "ci95": 0.02}
    pair |= {"p_value": 0.01, "p_holm": 0.03, "p_holm_reference": 0.02, "seeds_ci95": 0.3}
    other = {"section": 1, "a": "maml", "b": "transfer", "difference": 0.5, "ci95": 0.02}
    table = comparison_table({"sections": [section | {"entries": entries}], "pairs": [other, pair]})
    first, second = (dict(zip(table.columns, line, strict=True)) for line in table.lines)
    assert first["method"] == "maml"
    assert (first["difference"], first["difference_ci95"], first["seeds"]) == (0.1, 0.02, 2)
    assert (first["p_value"], first["p_holm_reference"]) == (0.01, 0.02)
    assert first["difference_seeds_ci95"] == 0.3
    assert second["difference"] is None


@pytest.mark.parametrize(
    ("asked", "environment", "mode"),
    [
        ("auto", {}, "offline"),
        ("auto", {"WANDB_API_KEY": "k"}, "online"),
        ("auto", {"WANDB_IDENTITY_TOKEN_FILE": "t"}, "online"),
        ("online", {}, "offline"),
        ("offline", {"WANDB_API_KEY": "k"}, "offline"),
        ("disabled", {"WANDB_API_KEY": "k"}, "disabled"),
        ("online", {"WANDB_API_KEY": "k", "WANDB_MODE": "offline"}, "offline"),
        ("disabled", {"WANDB_API_KEY": "k", "WANDB_MODE": "run"}, "online"),
        ("auto", {"WANDB_API_KEY": "k", "WANDB_MODE": "dryrun"}, "offline"),
        ("auto", {"WANDB_API_KEY": "k", "WANDB_MODE": "auto"}, "online"),
    ],
)
def test_the_mode_is_the_environments_else_the_keys(asked, environment, mode):
    found, notice = choose_mode(asked, environment)
    assert found == mode
    missing = mode == "offline" and asked != "offline" and "WANDB_API_KEY" not in environment
    assert (notice is not None) == missing


def test_a_key_in_netrc_counts_for_its_own_server_only(tmp_path):
    home = {"HOME": str(tmp_path)}
    netrc = tmp_path / ".netrc"
    netrc.write_text("machine api.wandb.ai\n  login user\n  password k\n")
    netrc.chmod(0o600)
    assert choose_mode("auto", home)[0] == "online"
    assert choose_mode("auto", home | {"WANDB_BASE_URL": "https://wandb.corp"})[0] == "offline"
    settings = tmp_path / ".config/wandb/settings"
    settings.parent.mkdir(parents=True)
    settings.write_text("[default]\nbase_url = https://wandb.corp\n")
    assert choose_mode("auto", home)[0] == "offline"
    netrc.write_text("machine wandb.corp\n  login user\n  password k\n")
    assert choose_mode("auto", home)[0] == "online"
    for broken in ("machine", "\xff\xfe nonsense"):
        netrc.write_text(broken)
        assert choose_mode("auto", home)[0] == "offline"


def test_an_unknown_mode_is_one_line():
    with pytest.raises(ConfigError, match="WANDB_MODE=onlin: no such mode") as caught:
        choose_mode("auto", {"WANDB_MODE": "onlin"})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("sweep", [[], ["-m"]], ids=["run", "sweep"])
def test_an_unknown_mode_is_refused_before_anything_is_written(sweep, outputs, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "onlin")
    assert cli.main([*sweep, "dataset=sinusoid", "tracking=wandb"]) == 2
    assert not outputs.exists()


def test_no_tracking_starts_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "posix_spawn", lambda *_, **__: pytest.fail("started"))
    assert start_mirror(tmp_path, none()) is None
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert start_mirror(tmp_path, SETTINGS) is None
    assert list(tmp_path.iterdir()) == []


def test_starting_takes_milliseconds_and_never_fails_the_run(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setattr(sys, "executable", "/bin/true")
    times = []
    for _ in range(5):
        begun = time.perf_counter()
        assert start_mirror(tmp_path, SETTINGS) is None
        times.append(time.perf_counter() - begun)
    assert sorted(times)[2] < 0.05, times
    label = json.loads((tmp_path / LABEL).read_text())
    assert label["settings"]["project"] == "p"
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    assert "could not be started" in start_mirror(tmp_path, SETTINGS)
    assert read_label(tmp_path)["id"] == label["id"]
    assert "could not be started" in start_mirror(tmp_path / "gone", SETTINGS)


def test_without_wandb_the_notice_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setattr("metarun.tracking.start.find_spec", lambda _: None)
    assert "not installed" in start_mirror(tmp_path, SETTINGS)
    assert list(tmp_path.iterdir()) == []


def test_sync_explains_what_it_cannot_do(tmp_path, capsys, monkeypatch):
    with Records(tmp_path) as records:
        records.write("start", 0)
    (tmp_path / "empty").mkdir()
    for words, text in [
        ([], "no run given"),
        ([str(tmp_path / "none")], "no such folder"),
        ([str(tmp_path / "empty")], "no run in it"),
        ([str(tmp_path), "projct=a"], "did you mean project"),
    ]:
        assert sync_main(words) == 2
        error = capsys.readouterr().err
        assert text in error
        assert error.count("\n") == 1
    (tmp_path / LOG).mkdir()
    assert sync_main([str(tmp_path)]) == 5
    assert f"{tmp_path / LOG}: Is a directory; " in capsys.readouterr().err
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert sync_main([str(tmp_path)]) == 2
