"""A finished run, tested again: in another precision, elsewhere, with scores that are none."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import torch as safetensors
from tiny import tiny_config

from metarun import checkpoint, cli
from metarun.errors import CheckpointError, ConfigError, PreemptedError
from metarun.outcome import versions
from metarun.records import read
from metarun.report.pooling import methods
from metarun.report.runs import load
from metarun.run import run_job
from metarun.verbs import evaluate_again

pytestmark = pytest.mark.usefixtures("undrawn")


def evaluated(run: Path, *overrides: str) -> Path:
    """Evaluate a run; return the folder that this left behind."""
    before = set(run.glob("evaluations/*"))
    assert evaluate_again.main([str(run), *overrides]) == 0
    (folder,) = set(run.glob("evaluations/*")) - before
    return folder


def outcome(folder: Path) -> dict[str, Any]:
    """Read an outcome as any reader of JSON would, who knows no NaN."""

    def never(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    return json.loads((folder / "outcome.json").read_text(), parse_constant=never)


@pytest.mark.parametrize(("trained", "again"), [("float32", "float64"), ("float64", "float32")])
def test_the_precision_may_be_another(trained: str, again: str, tmp_path: Path) -> None:
    assert run_job(tiny_config("algo=maml", f"hardware.dtype={trained}"), tmp_path) == 0
    folder = evaluated(tmp_path, f"hardware.dtype={again}")
    scores, before = (np.load(place / "scores.npz")["mse"] for place in (folder, tmp_path))
    np.testing.assert_allclose(scores, before, rtol=1e-4)
    assert (scores != before).any()


def test_fewer_steps_are_tested_down_to_those_that_validation_chose(tmp_path: Path) -> None:
    assert run_job(tiny_config("algo=maml", "test.steps=4", "validation.steps=4"), tmp_path) == 0
    found = outcome(tmp_path)
    found["chosen"]["steps"] = 2
    (tmp_path / "outcome.json").write_text(json.dumps(found))
    again = outcome(evaluated(tmp_path, "test.steps=2"))["test"]["mse"]
    assert again["by_step"] == found["test"]["mse"]["by_step"][:3]
    assert again["step"] == 2
    cost = outcome(next((tmp_path / "evaluations").iterdir()))["cost"]
    assert cost["flops_per_adaptation"] > 0
    assert {**cost, "flops_per_adaptation": 0} == {**found["cost"], "flops_per_adaptation": 0}
    with pytest.raises(ConfigError, match=r"^test.steps: 1 is fewer than the 2 inner steps"):
        evaluate_again.main([str(tmp_path), "test.steps=1"])


def test_an_evaluation_says_where_it_was_carried_out_and_where_training_was(tmp_path: Path) -> None:
    assert run_job(tiny_config("algo=maml"), tmp_path) == 0
    elsewhere = {
        "versions": {"torch": "1.0"},
        "hardware": {"device": "cuda:3", "precision": "tf32", "chunk": 4},
    }
    (tmp_path / "outcome.json").write_text(json.dumps(outcome(tmp_path) | elsewhere))
    folder = evaluated(tmp_path, "hardware.dtype=float64")
    found = outcome(folder)
    assert found["versions"] == versions()
    assert found["hardware"].items() >= {"device": "cpu", "dtype": "float64", "chunk": 8}.items()
    assert found["trained"] == elsewhere
    (method,) = methods(load([folder]).runs, 1)
    assert method.entry.devices == ("cuda:3, tf32 in training",), "its seconds are training's"


def test_scores_that_are_not_finite_are_written_as_a_run_writes_them(tmp_path: Path) -> None:
    assert run_job(tiny_config("algo=scratch", "algo.lr_grid=[1e20]"), tmp_path) == 0
    found = outcome(evaluated(tmp_path))["test"]
    assert found == outcome(tmp_path)["test"]
    assert "NaN" in found["mse"]["by_step"]


def test_an_evaluation_keeps_every_secret(tmp_path: Path, monkeypatch) -> None:
    assert run_job(tiny_config("algo=maml"), tmp_path) == 0
    monkeypatch.setenv("AN_API_KEY", "canary-5d41402abc")
    elsewhere = (*evaluate_again.ELSEWHERE, "name")  # a setting of any text
    monkeypatch.setattr(evaluate_again, "ELSEWHERE", elsewhere)
    folder = evaluated(tmp_path, "name=canary-5d41402abc")
    assert outcome(folder)["overrides"] == ["name=***"]
    for path in folder.iterdir():
        assert b"canary" not in path.read_bytes(), path


def test_a_run_whose_settings_hold_a_secret_is_found_again_and_tested(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny_config("algo=maml", "algo.adapt=head.*")
    monkeypatch.setenv("SOME_TOKEN", "head.*")
    assert run_job(config, tmp_path) == 0
    assert "head.*" not in (tmp_path / "config.yaml").read_text()
    assert run_job(config, tmp_path) == 0
    assert "already complete" in capsys.readouterr().out
    (tmp_path / "outcome.json").unlink()
    assert run_job(config, tmp_path) == 0
    assert "going on from meta-step 12" in capsys.readouterr().out
    assert run_job(config | {"seed": 1}, tmp_path) == 2, "the control"


@pytest.mark.parametrize("damaged", ["", "{", "[]", '{"status": "preempted"}'])
def test_a_run_that_is_not_finished_is_not_tested(damaged: str, tmp_path: Path) -> None:
    assert run_job(tiny_config("algo=maml"), tmp_path) == 0
    whole = (tmp_path / "outcome.json").read_text()
    (tmp_path / "outcome.json").write_text(damaged)
    with pytest.raises(ConfigError, match=r"is not finished; metarun resume .* goes on"):
        evaluate_again.main([str(tmp_path)])
    assert run_job(tiny_config("algo=maml"), tmp_path) == 0, "the same command mends it"
    assert json.loads((tmp_path / "outcome.json").read_text())["test"] == json.loads(whole)["test"]


@pytest.mark.parametrize("harm", [Path.unlink, lambda path: path.write_bytes(b"x")])
def test_a_best_checkpoint_that_is_lost_comes_back_as_is_said(
    harm: Callable[[Path], object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, checkpoints = tiny_config("algo=maml"), tmp_path / "checkpoints"
    assert run_job(config, tmp_path) == 0
    whole = (checkpoints / "best.safetensors").read_bytes()
    harm(checkpoints / "best.safetensors")
    said = (
        rf"; delete {checkpoints}, and outcome\.json beside it if there is one; then metarun resu"
    )
    with pytest.raises(CheckpointError, match=said):
        evaluate_again.main([str(tmp_path)])
    (tmp_path / "outcome.json").unlink()
    before = len(read(tmp_path))
    assert run_job(config, tmp_path) == 3, "what was best is in no other checkpoint"
    assert re.search(said, capsys.readouterr().err)
    if harm is Path.unlink:
        assert {r["kind"] for r in read(tmp_path)[before:]} == {"end"}, "before training"
    shutil.rmtree(checkpoints)
    assert run_job(config, tmp_path) == 0
    again, _ = checkpoint.load(checkpoints / "best.safetensors")
    assert safetensors.load(whole).keys() == again.keys()
    assert all(torch.equal(again[key], value) for key, value in safetensors.load(whole).items())


def test_what_an_evaluation_would_ignore_is_refused(tmp_path: Path) -> None:
    assert run_job(tiny_config("algo=maml"), tmp_path) == 0
    for word in ("outer.lr=5", "seed=7", "algo.steps=2", "budget.total=3"):
        with pytest.raises(ConfigError, match=r"cannot be changed after training; evaluate takes"):
            evaluate_again.main([str(tmp_path), word])
    assert not list(tmp_path.glob("evaluations"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["task.ways=3"],
            r"^task.ways=3: other shapes \(head.weight \[3, 8\], there \[5, 8\]\) than .*; "
            r"must be task.ways=5$",
        ),
        (
            ["task.shots=2", "dataset=glyphs", "task.ways=5"],
            r"^dataset=glyphs task.ways=5: other shapes .* trained with; must be dataset=sinusoid "
            r"task.ways=1$",
        ),
    ],
)
def test_a_setting_that_changes_shapes_is_named(
    words: list[str], said: str, tmp_path: Path
) -> None:
    images = ["dataset=glyphs", "model=mlp", "model.hidden=[8]", "task.ways=5", "test.tasks=2"]
    of_the_run = [] if "dataset=glyphs" in words else images
    assert run_job(tiny_config("algo=fomaml", "budget.total=1", *of_the_run), tmp_path) == 0
    with pytest.raises(ConfigError, match=said):
        evaluate_again.main([str(tmp_path), *words])


def test_a_data_set_comes_with_its_settings() -> None:
    config = tiny_config("algo=maml")
    words = ["dataset=folder", "dataset.path=here"]
    found = evaluate_again.with_overrides(config, words)
    assert found["dataset"]["path"] == "here"
    assert found["choices"]["dataset"] == "folder"
    assert evaluate_again.with_overrides(config, words[::-1]) == found, "in any order"


@pytest.mark.parametrize(
    ("word", "said"),
    [
        (
            "test.task=5",
            r"test.task: no such setting \(did you mean tasks\?\); test takes tasks, st",
        ),
        ("dataset.grid=1", r"dataset.grid: no such setting .*dataset takes test_grid$"),
        (
            "tests.tasks=5",
            r"tests: no such setting \(did you mean test\?\); evaluate takes dataset",
        ),
        ("foo=5", r"foo: no such setting; evaluate takes dataset, task, test, hardware$"),
    ],
)
def test_a_mistyped_setting_gets_the_nearest(word: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        evaluate_again.with_overrides(tiny_config("algo=maml"), [word])


def test_a_data_set_of_ones_own_is_found_where_the_command_line_says(tmp_path: Path) -> None:
    extra, run = tmp_path / "extra", tmp_path / "run"
    (extra / "dataset").mkdir(parents=True)
    own = "dataset: {_target_: metarun.data.sinusoid.sinusoid, test_grid: false}\n"
    (extra / "dataset" / "mine.yaml").write_text(f"# @package _global_\n{own}")
    assert run_job(tiny_config("algo=maml"), run) == 0
    with pytest.raises(ConfigError, match=r"^dataset=mine: no such option"):
        evaluate_again.main([str(run), "dataset=mine"])
    with pytest.raises(ConfigError, match=r"^evaluate: tests once, without -m"):
        evaluate_again.main([str(run), "-m", "test.tasks=3,4"])
    found = outcome(evaluated(run, "--config-dir", str(extra), "dataset=mine"))
    assert (found["dataset"], found["overrides"]) == ("mine", ["dataset=mine"])
    assert found["task_list"] != outcome(run)["task_list"], "random places, no grid"


@pytest.mark.parametrize("verb", ["resume", "evaluate"])
def test_what_another_version_left_is_refused_in_one_line(
    verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    """A version whose algorithm keeps more, or calls it something else."""
    config = tiny_config("algo=mixture")
    with monkeypatch.context() as before:
        before.setattr("metarun.algorithms.mixture.USAGE", "mixture")
        before.setattr("metarun.algorithms.parts.usage.USAGE", "mixture")
        assert run_job(config, tmp_path) == 0
    if verb == "resume":
        (tmp_path / "outcome.json").unlink()
    assert cli.main([verb, str(tmp_path)]) == CheckpointError.exit_code
    said = capsys.readouterr().err.splitlines()[-1]
    assert ": mixture/bias, mixture/restarts, mixture/share: in the checkpoint or in " in said
    assert said.endswith("or train again under another name")


def test_an_evaluation_that_is_stopped_is_said_to_begin_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run_job(tiny_config("algo=maml"), tmp_path) == 0

    def stopped(problem: Any, algorithm: Any, meta: Any, batches: Any, steps: int, check: Any, *_):
        os.kill(os.getpid(), signal.SIGTERM)
        check()

    monkeypatch.setattr("metarun.assemble.evaluate", lambda *args, **_: stopped(*args))
    with pytest.raises(PreemptedError, match="stopped by SIGTERM; the same command begins again"):
        evaluate_again.main([str(tmp_path), "test.tasks=9"])
