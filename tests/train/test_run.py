"""Whole runs: what they leave behind, that they repeat to the bit, and that they go on."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import TINY, tiny_config

from metarun import checkpoint
from metarun.assemble import Experiment
from metarun.data.source import Split
from metarun.errors import DivergedError
from metarun.evaluate import Scores
from metarun.problem import Meta
from metarun.records import Records, merged, read
from metarun.report.runs import load
from metarun.run import _tell_lost, run_job
from metarun.state import State
from metarun.verbs import evaluate_again

pytestmark = pytest.mark.usefixtures("undrawn")

SLOW = [
    pytest.param(algo, marks=pytest.mark.slow)
    for algo in ("mmaml", "multi_maml", "r2d2", "anil", "cavia", "mixture", "tsamaml", "fomaml")
]
ALGOS = ("maml", "imaml", "transfer", "scratch", "clustered")  # a family each


def bits(folder: Path) -> str:
    """Return a digest of everything in a run's result that must repeat to the bit."""
    digest = hashlib.sha256()
    scores = np.load(folder / "scores.npz")
    for name in sorted(scores.files):
        digest.update(scores[name].tobytes())
    for path in sorted((folder / "checkpoints").glob("*.safetensors")):
        tensors, _ = checkpoint.load(path)
        for name in sorted(tensors):
            digest.update(name.encode() + tensors[name].numpy().tobytes())
    timed = ("time", "seconds", "tasks_per_second")
    for record in merged(read(folder)):
        if record["kind"] in ("train", "validate", "test"):
            kept = {k: v for k, v in record.items() if k not in timed}
            digest.update(json.dumps(kept, sort_keys=True).encode())
    return digest.hexdigest()


@pytest.mark.parametrize("algo", [*ALGOS, *SLOW])
def test_a_run_leaves_everything_behind_and_repeats_to_the_bit(algo: str, tmp_path: Path) -> None:
    config = tiny_config(f"algo={algo}")
    assert run_job(config, tmp_path / "one") == 0
    assert run_job(config, tmp_path / "two") == 0
    assert bits(tmp_path / "one") == bits(tmp_path / "two")
    names = {path.name for path in (tmp_path / "one").iterdir()}
    assert {"config.yaml", "records.jsonl", "scores.npz", "outcome.json"} <= names
    assert {"adaptation.png", "training.png", "checkpoints"} <= names
    found = json.loads((tmp_path / "one" / "outcome.json").read_text())
    assert found["status"] == "done"
    assert found["exit_code"] == 0
    mse = found["test"]["mse"]
    assert len(mse["by_step"]) == 4
    assert mse["tasks"] == 8
    scores = np.load(tmp_path / "one" / "scores.npz")["mse"]
    assert mse["mean"] == pytest.approx(scores.mean(0)[found["chosen"]["steps"]])
    half = 1.96 * scores.std(0, ddof=1)[found["chosen"]["steps"]] / 8**0.5
    assert mse["ci95"] == pytest.approx(half)
    trains = algo != "scratch"
    assert found["cost"]["meta_steps"] == (12 if trains else 0)
    assert (found["cost"]["flops_per_meta_step"] > 0) is trains
    (test,) = [record for record in read(tmp_path / "one") if record["kind"] == "test"]
    assert test["mse"] == mse
    assert test["clusters"] == found["clusters"]
    assert ("regret" in (found["clusters"] or {})) is (algo in ("clustered", "mixture", "tsamaml"))


RESUMED = [
    "maml",
    *(pytest.param(a, marks=pytest.mark.slow) for a in ("transfer", "clustered", "mixture")),
    *(pytest.param(a, marks=pytest.mark.slow) for a in ("mamlpp", "cavia", "reptile", "tsamaml")),
]


@pytest.mark.parametrize("algo", RESUMED)
def test_a_run_cut_at_any_checkpoint_ends_in_the_same_bits(algo: str, tmp_path: Path) -> None:
    config = tiny_config(f"algo={algo}", "checkpoints.keep=9")
    assert run_job(config, tmp_path / "whole") == 0
    for step in (4, 6, 8):
        cut = tmp_path / f"cut-{step}"
        shutil.copytree(tmp_path / "whole", cut)
        for path in (cut / "checkpoints").glob("step-*.safetensors"):
            if int(path.stem.removeprefix("step-")) > step:
                path.unlink()
        (cut / "outcome.json").unlink()
        (cut / "scores.npz").unlink()
        assert run_job(config, cut) == 0
        assert bits(cut) == bits(tmp_path / "whole"), f"went on from {step}"


@pytest.mark.parametrize(("kind", "step"), [("train", 5), ("validate", 12)])
def test_the_end_of_a_stopped_run_says_at_which_step(
    kind: str, step: int, tmp_path: Path, monkeypatch
) -> None:
    write = Records.write

    def stopping(records: Records, name: str, at: int, figures=None) -> None:
        write(records, name, at, figures)
        if (name, at) == (kind, step):
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Records, "write", stopping)
    assert run_job(tiny_config("algo=maml"), tmp_path) == 75
    end = read(tmp_path)[-1]
    assert (end["kind"], end["status"], end["step"]) == ("end", "preempted", step)


def test_a_finished_run_is_not_run_again(tmp_path: Path, capsys) -> None:
    config = tiny_config("algo=maml")
    assert run_job(config, tmp_path / "run") == 0
    before = bits(tmp_path / "run")
    stamp = (tmp_path / "run" / "records.jsonl").stat().st_mtime_ns
    capsys.readouterr()
    assert run_job(config, tmp_path / "run") == 0
    assert "already complete" in capsys.readouterr().out
    assert bits(tmp_path / "run") == before
    assert (tmp_path / "run" / "records.jsonl").stat().st_mtime_ns == stamp


def test_a_folder_with_another_configuration_is_refused(tmp_path: Path, capsys) -> None:
    assert run_job(tiny_config("algo=maml"), tmp_path / "run") == 0
    before = bits(tmp_path / "run")
    assert run_job(tiny_config("algo=maml", "algo.inner_lr=0.5"), tmp_path / "run") == 2
    said = capsys.readouterr().err
    assert "algo.inner_lr (0.01 there, 0.5 here)" in said
    assert said.count("\n") == 1 or len(said.splitlines()) <= 4
    assert bits(tmp_path / "run") == before


SKIPS = ("outer.on_divergence=skip_step", "outer.max_skips=99")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (("outer.lr=1e10", *SKIPS), "after no number of inner steps is the validation score"),
        (("algo.inner_lr=1e25", *SKIPS), "not one of 12 meta-steps was finite"),
    ],
)
def test_a_run_without_a_finite_score_diverged(
    settings: tuple[str, ...], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_job(tiny_config("algo=maml", *settings), tmp_path) == 4
    assert said in capsys.readouterr().err.splitlines()[-1]
    found = json.loads((tmp_path / "outcome.json").read_text())
    assert (found["status"], found["exit_code"]) == ("diverged", 4)
    assert load([tmp_path]).left_out[0].status == "diverged"


def test_a_test_that_is_not_finite_is_no_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One task whose adaptation runs away leaves no mean to report, in a run or later."""
    config = tiny_config("algo=maml")
    assert run_job(config, tmp_path / "good") == 0
    evaluate = Experiment.evaluate

    def one_lost(self: Experiment, meta: Meta, split: Split, *rest: Any) -> Scores:
        found = evaluate(self, meta, split, *rest)
        found.values[2] *= float("inf" if split == "test" else 1)
        return found

    monkeypatch.setattr(Experiment, "evaluate", one_lost)
    assert run_job(config, tmp_path / "bad") == 4
    assert "1 of 8 test tasks have no finite mse after" in capsys.readouterr().err
    with pytest.raises(DivergedError, match="1 of 8 test tasks"):
        evaluate_again.main([str(tmp_path / "good")])
    assert not (tmp_path / "good" / "evaluations").exists()


def test_what_training_left_out_is_said(tmp_path: Path, capsys) -> None:
    _tell_lost(State({}, step=9))
    assert capsys.readouterr().err == ""
    _tell_lost(State({}, step=9, skipped=2, dropped=3))
    assert "2 of 9 meta-steps skipped, 3 tasks dropped" in capsys.readouterr().err


def test_seeds_differ_and_share_their_test_tasks(tmp_path: Path) -> None:
    found = []
    for seed in (0, 1):
        folder = tmp_path / str(seed)
        assert run_job(tiny_config("algo=maml", f"seed={seed}"), folder) == 0
        found.append(json.loads((folder / "outcome.json").read_text()))
    assert found[0]["task_list"] == found[1]["task_list"]
    assert found[0]["test"]["mse"]["mean"] != found[1]["test"]["mse"]["mean"]


def test_test_tasks_change_with_their_own_seed_and_shape(tmp_path: Path) -> None:
    lists = set()
    for number, change in enumerate(("test.seed=0", "test.seed=1", "task.shots=4", "test.tasks=9")):
        folder = tmp_path / str(number)
        assert run_job(tiny_config("algo=scratch", change), folder) == 0
        lists.add(json.loads((folder / "outcome.json").read_text())["task_list"])
    assert len(lists) == 4


@pytest.mark.slow
def test_the_same_command_in_other_processes_gives_the_same_bits(tmp_path: Path) -> None:
    """Another hash seed, working directory, cache and order of the environment change nothing."""
    assert run_job(tiny_config("algo=maml", "name=same"), tmp_path / "same") == 0
    found = {bits(tmp_path / "same")}  # this process counts as well
    for number in range(2):
        place = tmp_path / f"place {number}"
        place.mkdir()
        environment = dict(reversed(list(os.environ.items()))) if number % 2 else dict(os.environ)
        environment |= {
            "PYTHONHASHSEED": str(number * 77 + 1),
            "XDG_CACHE_HOME": str(place / "cache"),
            "METARUN_OUTPUTS": str(place / "outputs"),
            "PYTHONPATH": str(Path(__file__).parents[2]),
        }
        command = [sys.executable, "-m", "metarun", *TINY, "algo=maml", "name=same"]
        subprocess.run(command, check=True, cwd=place, env=environment, capture_output=True)
        found.add(bits(place / "outputs" / "same"))
    assert len(found) == 1


def test_transfer_chooses_its_rate_and_steps_on_validation_tasks(tmp_path: Path) -> None:
    config = tiny_config("algo=transfer", "algo.lr_grid=[1e-30,0.02]")
    assert run_job(config, tmp_path) == 0
    chosen = json.loads((tmp_path / "outcome.json").read_text())["chosen"]
    assert chosen["inner_lr"] == pytest.approx(0.02)
    _, meta = checkpoint.load(tmp_path / "checkpoints" / "best.safetensors")
    assert meta["chosen"] == chosen


def test_an_evaluation_is_compared_like_a_run(tmp_path: Path) -> None:
    """More tasks begin with the same scores; comparing the runs themselves leaves it out."""
    for algo in ("maml", "fomaml"):
        assert run_job(tiny_config(f"algo={algo}"), tmp_path / algo) == 0
        assert evaluate_again.main([str(tmp_path / algo), "test.tasks=12"]) == 0
    found = load([tmp_path])
    assert len(found.runs) == 2
    assert not found.left_out
    folders = sorted(tmp_path.glob("*/evaluations/*"))
    again = load(folders).runs
    assert [len(run.scores) for run in again] == [12, 12]
    assert len({run.outcome["task_list"] for run in again}) == 1
    assert {run.outcome["algo"] for run in again} == {"maml", "fomaml"}
    before = {run.outcome["algo"]: run.scores for run in found.runs}
    for run in again:
        np.testing.assert_allclose(run.scores[:8], before[run.outcome["algo"]], rtol=1e-6)


def test_a_stop_while_validating_repeats_no_meta_step(tmp_path: Path) -> None:
    """The checkpoint that comes before a validation is gone on from, and ends in the same bits."""
    config = tiny_config("algo=maml", "checkpoints.keep=9", "checkpoints.every=100")
    assert run_job(config, tmp_path / "whole") == 0
    assert run_job(config, tmp_path / "cut") == 0
    for path in (tmp_path / "cut" / "checkpoints").glob("*.safetensors"):
        if path.stem != "step-000000006":
            path.unlink()
    before = checkpoint.load(tmp_path / "cut" / "checkpoints" / "step-000000006.safetensors")[1]
    assert before["state"]["step"] == 6
    assert before["state"]["validated"] == 0
    (tmp_path / "cut" / "outcome.json").unlink()
    assert run_job(config, tmp_path / "cut") == 0
    assert bits(tmp_path / "cut") == bits(tmp_path / "whole")


@pytest.mark.parametrize(("steps", "said"), [(3, False), (4, True)])
def test_a_test_shorter_than_training_is_told(
    steps: int, said: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("algo=maml", f"algo.steps={steps}", "validation.steps=3", "test.steps=3")
    assert run_job(tiny_config(*words), tmp_path) == 0
    assert ("the test looks no further than" in capsys.readouterr().err) is said
