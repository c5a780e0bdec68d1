"""Mistakes end a sweep early, in one line, and leave what is there alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from sweeps import ODD, TINY, odd_environment, only, ran, results

from metarun import cli, manifest
from metarun.config import compose_job
from metarun.settings.compose import compose, parse
from metarun.sweeps import sweep
from metarun.sweeps.grid import job_name


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["-m", "algo=maml,mmal"], "algo=mmal: no such option (did you mean mmaml?)"),
        (["-m", "algo=maml,scratch", "algo.steps=2"], "algo.steps: no such setting; algo=scratch"),
        (["-m", "seed=0,1", "launch.workers=0"], "launch.workers: 0 is not allowed"),
        (["search=grid", "search.trials=3"], "search.trials: 3 does nothing with search=grid"),
        (["-m", "seed=0,1", "~launch"], "launch: missing"),
        (["-m", "seed=0,1", "hydra.sweep.dir=x"], "hydra.sweep.dir=x: metarun decides this itself"),
        (["-m", "seed=0,1", "name=../up"], 'name: "../up" is not allowed'),
        (["seed=0,1"], "seed=0,1: several values make a sweep; add -m"),
        (["-m", "outer.lr=interval(0,1)"], "only search=optuna can draw from a range"),
        (["-m", "seed=range(3,1)"], "metarun: seed=range(3,1): is no value at all, so there is no"),
        (["-m", "algo=glob(zz*)"], "metarun: algo=glob(zz*): is no value at all, so there is no"),
        (["-m", "name=a,b"], "metarun: name=a,b: all jobs of a sweep share it; give one value"),
        (["-m", "launch=basic,local"], "metarun: launch=basic,local: all jobs of a sweep share it"),
        (["-m", "search=none,grid"], "metarun: search=none,grid: all jobs of a sweep share it"),
        (["-m", "launch=local", "launch.workers=1,2"], "launch.workers=1,2: all jobs of a sweep"),
        (
            ["-m", "experiment=transfer_vs_maml,sinusoid"],
            "here something else is to be swept than in other jobs; an experiment that is itself a",
        ),
        (["-m", "outer.lr=0.1,0"], "metarun: outer.lr=0 (of 2 jobs): outer.lr: 0 is not allowed"),
        (["-m", "seed=0,1", "outer.lr=0"], "metarun: outer.lr: 0 is not allowed"),
        (["-m", "weights=null,prr"], "metarun: weights=prr (of 2 jobs): weights: prr: neither a"),
        (
            ["-m", "algo=clustered,maml,tsamaml", "outer.batch=4"],
            "metarun: algo=clustered, algo=tsamaml (of 3 jobs): algo.starts: 5 is more than",
        ),
    ],
)
def test_nothing_is_written(
    words: list[str], said: str, outputs: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*words, *TINY]) == 2
    captured = capfd.readouterr()
    assert said in captured.err
    assert (captured.out, captured.err.count("\n")) == ("", 1)
    assert not outputs.exists()


def test_what_hydra_knows_of_a_job_may_be_a_setting() -> None:
    command = parse(["-m", "algo=maml,scratch", "seed=${hydra:job.num}", *TINY])
    planned = sweep._planned(command, compose(command), {})
    assert [config["seed"] for _, _, config in planned] == [0, 1]


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["algo=clustered,tsamaml", "algo.starts=3"], ["algo=clustered", "algo=tsamaml"]),
        (["algo=clustered,tsamaml", "algo.steps="], []),
        (
            ["algo=maml,anil", "algo.adapt=[norm,head]", "seed=1,2", "outer.clip=1.0"],
            [f"algo={algo},seed={seed}" for algo in ("maml", "anil") for seed in (1, 2)],
        ),
    ],
)
def test_a_setting_of_options_that_vary_reaches_each_job(
    words: list[str], names: list[str], outputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hydra, which starts the jobs, has the same as were planned."""
    ran: list[str] = []

    def noted(config: DictConfig) -> None:
        (header, _), node = manifest.current(only(outputs)), HydraConfig.get()
        ran.append(job_name(list(node.overrides.task), header["fixed"]))

    monkeypatch.setattr(sweep, "run_one", noted)
    assert cli.main(["-m", *words, *TINY]) == (8 if names else 2)
    assert ran == names
    if names:
        assert list(manifest.jobs(manifest.read(only(outputs)))) == names


def test_what_the_launcher_reads_is_not_put_off() -> None:
    words = ["-m", "experiment=sinusoid,omniglot_5w1s", "launch=local", "launch.workers=3"]
    assert compose(parse([*words, "seed=1"])).words == [*words[1:], "seed=choice(1)"]
    words = ["-m", "algo=clustered,tsamaml", "algo.starts=3", "hardware.threads=4", "seed=0,1"]
    assert compose(parse(words)).words == [words[1], "algo.starts=choice(3)", *words[3:]]
    words = ["search=grid", "algo=maml", "algo.steps=2"]
    assert compose(parse(words)).words == words


def test_a_folder_of_another_kind_or_of_other_settings_is_left_alone(
    outputs: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (outputs / "run").mkdir(parents=True)
    assert cli.main(["algo=scratch", "name=run", *TINY]) == 0
    there = compose_job(["algo=scratch", "test.tasks=9", *TINY])
    (outputs / "sweep" / "algo=scratch").mkdir(parents=True)
    manifest.append(outputs / "sweep", "sweep", command=["metarun"])
    manifest.append(outputs / "sweep", "job", job="algo=scratch", state="done")
    OmegaConf.save(there, outputs / "sweep" / "algo=scratch" / "config.yaml")
    before = {path: path.stat().st_mtime_ns for path in outputs.rglob("*")}
    capfd.readouterr()
    for words, said in (
        (["-m", "name=run"], "run holds a run; choose another name"),
        (["name=sweep"], "sweep holds a sweep; choose another name"),
        (["-m", "algo=maml,scratch", "name=sweep"], "algo=scratch holds a run with other settings"),
    ):
        assert cli.main([*words, *TINY]) == 2
        captured = capfd.readouterr()
        assert said in captured.err
        assert (captured.out, captured.err.count("\n")) == ("", 1)
    assert {path: path.stat().st_mtime_ns for path in outputs.rglob("*")} == before


@pytest.mark.slow
def test_a_mistake_leaves_a_finished_sweep_alone(
    outputs: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["-m", "algo=scratch,scratch", "name=mine", *TINY]) == 0
    before = results(outputs / "mine")
    assert cli.main(["-m", "algo=scratch,nosuch", "name=mine", *TINY]) == 2
    assert results(outputs / "mine") == before
    assert len(before) == 1
    capfd.readouterr()
    assert cli.main(["-m", "algo=scratch,maml", "name=mine", *TINY]) == 0
    assert ran(outputs / "mine") == ["algo=maml"]
    assert "algo=scratch: done before: test mse" in capfd.readouterr().out


@pytest.mark.slow
def test_a_job_is_the_same_whatever_varies_beside_it(outputs: Path) -> None:
    def given(*words: str) -> list[str]:
        """Give a command; return what it trained."""
        assert cli.main(["-m", "launch=local", "name=mine", *TINY, *words]) == 0
        return sorted(ran(outputs / "mine"))

    assert given("algo=scratch,transfer", "seed=0") == ["algo=scratch", "algo=transfer"]
    assert given("algo=scratch", "seed=0,1") == ["seed=1"], "smaller in one way, larger in another"
    assert given("algo=transfer,scratch", "seed=1,0") == ["algo=transfer,seed=1"]
    assert given("algo=transfer", "seed=0,1") == []
    assert len(results(outputs / "mine")) == 4


@pytest.mark.slow
def test_a_bug_is_shown_whole(outputs: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "metarun", *ODD[1:], "algo.how=bug"],
        capture_output=True,
        text=True,
        env=odd_environment(),
        check=False,
    )
    assert ended.returncode == 1
    assert "RuntimeError: as asked for" in ended.stderr
    assert "Traceback" in ended.stderr
    assert not outputs.exists()
