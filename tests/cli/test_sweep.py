"""Sweeps: what their folders and jobs are called, their manifest, the disk under them."""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from sweeps import TINY, only, results

from metarun import cli, manifest
from metarun.errors import StorageError
from metarun.files import storage_error
from metarun.paths import conf_dir
from metarun.report.words import DASH
from metarun.settings.compose import compose, parse, quoted
from metarun.sweeps import job, sweep
from metarun.sweeps.grid import job_name, too_small_for_sgd
from metarun.sweeps.job import state_of
from metarun.sweeps.sweep import sweep_name


@pytest.mark.parametrize(
    ("overrides", "fixed", "name"),
    [
        (["algo=maml", "seed=0", "outer.lr=0.1"], ["outer.lr"], "algo=maml,seed=0"),
        (["seed=0", "algo=maml"], [], "algo=maml,seed=0"),
        (["seed=0"], ["seed"], "run"),
        (["+x=1"], [], "+x=1"),
    ],
)
def test_job_names_tell_what_varies(overrides: list[str], fixed: list[str], name: str) -> None:
    assert job_name(overrides, fixed) == name


def test_job_names_are_folders() -> None:
    odd = [["x=a/b"], ["x=a-b"], ["x=[1, 2]"], ["x=../up"], ["x=" + "y" * 300], ["x=" + "y" * 301]]
    names = [job_name(overrides, []) for overrides in odd]
    assert len(set(names)) == len(names)
    assert all("/" not in name and " " not in name and len(name) < 120 for name in names)


@pytest.mark.parametrize(
    "path",
    [
        "a b",
        "a'b",
        'a"b',
        "a,b=c[d]{e}",
        "ü→",
        "a\\",
        "a\\b",
        'a\\"b',
        "${x}",
        "a\\${x",
        "$x",
        " x ",
    ],
)
def test_any_path_can_be_an_override(path: str) -> None:
    words = ["dataset=folder", f"dataset.path={quoted(path)}"]
    assert compose(parse(words)).config.dataset.path == path


@pytest.mark.slow
@pytest.mark.parametrize("launch", ["basic", "local"])
def test_any_folder_can_hold_a_sweep(
    launch: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "a b'c\"d, e=[f] ü ${x}" / ("y" * 100)
    monkeypatch.setenv("METARUN_OUTPUTS", str(root))
    assert cli.main(["-m", "algo=scratch", "seed=0,1", f"launch={launch}", *TINY]) == 0
    assert sorted(results(only(root))) == ["seed=0", "seed=1"]
    assert [path.name for path in tmp_path.iterdir()] == [root.parent.name]


def test_secrets_stay_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_API_KEY", "canary-0123")
    manifest.append(tmp_path, "sweep", command=["metarun", "tracking.project=canary-0123"])
    assert "canary" not in (tmp_path / manifest.NAME).read_text()


def named(*words: str) -> str:
    command = parse(list(words))
    return sweep_name(command, compose(command))


def test_sweep_names() -> None:
    name = named("-m", "algo=maml,scratch", "seed=0,1")
    assert name.startswith("sweep-")
    assert named("-m", "seed=0,1", "algo=maml,scratch") == name
    assert named("-m", "algo=maml,scratch", "seed=0,1", "tracking=wandb", "launch.lease=2") == name
    assert named("-m", "algo=maml,scratch", "seed=0,1,2") != name
    assert named("-m", "seed=0,1", "name=mine") == "mine"
    assert named("experiment=transfer_vs_maml").startswith("transfer_vs_maml-")


def test_jobs_of_a_grid() -> None:
    jobs = compose(parse(["-m", "algo=maml,scratch", "seed=range(2)", "outer.lr=0.1"])).jobs
    assert jobs == [
        [f"algo={algo}", f"seed={seed}", "outer.lr=0.1"]
        for algo in ("maml", "scratch")
        for seed in (0, 1)
    ]
    assert len(compose(parse(["search=grid"])).jobs) == 9
    assert len(compose(parse(["search=grid", "outer.lr=0.5"])).jobs) == 3


def warned(*words: str) -> str | None:
    """Return what a sweep's start says of its outer rates."""
    command = parse(["search=grid", *words])
    composed = compose(command)
    params = composed.config.hydra.sweeper.params
    jobs = [config for _, _, config in sweep._planned(command, composed, {})]
    return too_small_for_sgd(params, words, jobs)


def test_a_search_of_adam_s_rates_is_no_search_for_sgd() -> None:
    assert warned("algo=maml") is None
    assert warned("algo=reptile", "outer.lr=0.3,1.0") is None
    assert warned("algo=reptile", "outer.optimizer=adam") is None
    said = warned("algo=maml,reptile") or ""
    assert "outer.lr: the search's own values, 0.0001,0.001,0.01, are of Adam's size" in said
    assert "algo=reptile has outer.optimizer=sgd; give it its own, as in outer.lr=0.1" in said


@pytest.mark.parametrize(("algo", "warnings"), [("reptile", 1), ("maml", 0)])
def test_a_search_whose_jobs_nobody_knows_warns_by_its_first(
    algo: str, warnings: int, capsys: pytest.CaptureFixture[str]
) -> None:
    command = parse(["search=grid", f"algo={algo}"])
    composed = compose(command)._replace(jobs=[])  # as search=optuna leaves them
    sweep._warn_of_rates(command, composed, [])
    said = capsys.readouterr().err
    assert said.replace("\n", " ").count("warning: outer.lr: the search's own values") == warnings


@pytest.mark.slow
def test_a_sweep_warns_once_as_it_starts(outputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["-m", "search=grid", "algo=reptile", "suggest.inner_lr=0.1", *TINY]
    assert cli.main(words) == 0
    assert len(results(only(outputs))) == 3
    assert capsys.readouterr().err.count("metarun: warning: outer.lr: the search's own") == 1


@pytest.mark.parametrize("option", ["grid", "optuna"])
def test_every_search_s_own_outer_rates_are_adam_s(option: str) -> None:
    """That is what the warning takes for granted."""
    preset = OmegaConf.load(conf_dir() / "search" / f"{option}.yaml")
    rates = [float(r) for r in re.findall(r"[\d.]+", preset.hydra.sweeper.params["outer.lr"])]
    assert max(rates) <= 0.01


def test_a_test_that_diverged_is_a_dash_in_the_sweep_s_log(tmp_path: Path) -> None:
    outcome = {"status": "done", "test": {"mse": {"mean": "NaN", "ci95": "Infinity"}}}
    (tmp_path / "outcome.json").write_text(json.dumps(outcome))
    ended = job.Ended("done", 0, "", 61.0)
    assert sweep._summary(tmp_path, ended) == f"done: test mse {DASH}, 61 s"


def test_states() -> None:
    states = [state_of(code) for code in (0, 1, 8, 75, 130, -9, -15, -2)]
    assert states == ["done", "failed", "failed", *["preempted"] * 2, "failed", *["preempted"] * 2]


def test_the_manifest_survives_a_torn_line(tmp_path: Path) -> None:
    manifest.append(tmp_path, "sweep", command=["metarun"])
    manifest.append(tmp_path, "job", job="a", state="running", pid=3)
    with (tmp_path / manifest.NAME).open("a") as file:
        file.write('{"kind": "job", "job": "b", "sta')
    assert [entry["kind"] for entry in manifest.read(tmp_path)] == ["sweep", "job"]
    manifest.append(tmp_path, "sweep", command=["again"])
    manifest.append(tmp_path, "job", job="a", state="done")
    header, since = manifest.latest(manifest.read(tmp_path))
    assert (header["command"], len(since)) == (["again"], 1)
    assert manifest.jobs(manifest.read(tmp_path))["a"]["pid"] == 3
    assert manifest.read(tmp_path / "nowhere") == []


def test_a_running_sweep_whose_manifest_is_gone_says_so(tmp_path: Path) -> None:
    manifest.append(tmp_path, "sweep", command=["metarun"])
    assert manifest.current(tmp_path) == manifest.latest(manifest.read(tmp_path))
    (tmp_path / manifest.NAME).unlink()
    manifest.append(tmp_path, "job", job="a", state="running", pid=3)  # by a job that did not know
    with pytest.raises(StorageError, match=r"manifest.jsonl: was deleted while the sweep"):
        manifest.current(tmp_path)


@pytest.mark.parametrize("act", [job._opened, lambda path: job._reason(path / "log.txt", 0, 1)])
def test_a_job_whose_folder_is_gone_says_so(act: Callable[[Path], Any], tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"gone/a/log.txt: No such file.*METARUN_OUTPUTS"):
        act(tmp_path / "gone" / "a")
    assert not (tmp_path / "gone").exists()


def test_a_disk_that_fills_under_a_sweep_is_one_line(
    outputs: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Full from the first job's start on, so that no state of a job can be written any more."""
    no_room, full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), list[int]()
    write_all, prepare_folder = manifest.write_all, sweep.prepare_folder

    def write(file: int, data: bytes) -> None:
        if full or b'"running"' in data:
            full.append(file)
            raise no_room
        write_all(file, data)

    def prepare(folder: Path) -> None:
        if full:
            raise storage_error(no_room, folder, 1)
        prepare_folder(folder)

    monkeypatch.setattr(manifest, "write_all", write)
    monkeypatch.setattr(sweep, "prepare_folder", prepare)
    assert cli.main(["-m", "algo=scratch", "seed=0,1", *TINY]) == StorageError.exit_code
    captured = capfd.readouterr()
    assert captured.err.count("\n") == 1, captured.err
    assert captured.err.startswith("metarun: ")
    assert "No space left on device" in captured.err
    assert not list(outputs.glob("*/*/config.yaml")), "no job goes on that nobody can find"


def test_a_log_without_room_is_the_reason(tmp_path: Path) -> None:
    (tmp_path / "log.txt").touch()
    assert job._reason(tmp_path / "log.txt", 0, 5) == "no room, not even for its log"
    assert job._reason(tmp_path / "log.txt", 0, 1) == "exit code 1"
