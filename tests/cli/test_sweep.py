"""Sweeps: folders and manifest, jobs that fail, and sweeps that are killed or stopped."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from metarun import cli, manifest
from metarun.compose import compose, parse, quoted
from metarun.job import state_of
from metarun.sweep import job_name, sweep_name

HERE = Path(__file__).parent
TINY = ("dataset=sinusoid", "debug=default")
ODD = ("-m", "--config-dir", str(HERE / "conf"), "algo=odd", *TINY)
GOOD, BAD = "abcdefg", ("bug", "diverge", "kill", "stop", "sleep")
CODES = {"bug": 1, "diverge": 4, "kill": -9, "stop": 75, "sleep": 2}
KILLS = 20


@pytest.fixture
def environment(outputs: Path) -> dict[str, str]:
    path = os.pathsep.join([str(HERE), str(HERE.parents[1])])
    return os.environ | {"METARUN_ALLOW": "odd", "PYTHONPATH": path}


def sweep(environment: Mapping[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "metarun", *ODD, *words],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )


def only(outputs: Path) -> Path:
    (folder,) = outputs.iterdir()
    return folder


def since_start(folder: Path) -> list[dict[str, Any]]:
    return manifest.latest(manifest.read(folder))[1]


def ran(folder: Path) -> list[str]:
    """Return the jobs that the newest invocation gave a process."""
    return [e["job"] for e in since_start(folder) if e.get("state") == "running"]


def results(folder: Path) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for path in sorted(folder.glob("*/scores.npz")):
        with np.load(path) as scores:
            found[path.parent.name] = scores["mse"].ravel().tolist()
    return found


# names ------------------------------------------------------------------------------------


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
    assert compose(parse([f"hydra.sweep.dir={quoted(path)}"])).config.hydra.sweep.dir == path


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


# mistakes ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["-m", "algo=maml,mmal"], "algo=mmal: no such option (did you mean maml?)"),
        (["-m", "algo=maml,scratch", "algo.steps=2"], "algo.steps: no such setting; algo=scratch"),
        (["-m", "seed=0,1", "launch.workers=0"], "launch.workers: 0 is not allowed"),
        (["-m", "seed=0,1", "~launch"], "launch: missing"),
        (["-m", "seed=0,1", "name=../up"], 'name: "../up" is not allowed'),
        (["seed=0,1"], "seed=0,1: several values make a sweep; add -m"),
        (["-m", "outer.lr=interval(0,1)"], "only search=optuna can draw from a range"),
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


# goal 9: failing jobs ---------------------------------------------------------------------


@pytest.mark.faults
@pytest.mark.parametrize("launch", ["local"])
def test_a_failing_job_costs_only_itself(
    launch: str, outputs: Path, environment: dict[str, str]
) -> None:
    words = (f"algo.how={','.join([*GOOD, *BAD])}", f"launch={launch}")
    ended = sweep(environment, *words)
    folder = only(outputs)
    assert ended.returncode == 8, ended.stderr
    assert ended.stderr.count("\n") == 1
    assert "7 of 12 jobs are done" in ended.stderr
    jobs = manifest.jobs(since_start(folder))
    assert {name for name, e in jobs.items() if e["state"] == "done"} == {
        f"algo.how={how}" for how in GOOD
    }
    for how in BAD:
        entry = jobs[f"algo.how={how}"]
        assert entry["exit_code"] == CODES[how]
        assert entry["state"] == ("preempted" if how == "stop" else "failed")
        assert entry["reason"]
        assert (folder / entry["log"]).is_file()
        assert f"algo.how={how}" in ended.stdout.rpartition("Sweep")[2]
    assert "as asked for" in jobs["algo.how=bug"]["reason"]
    assert "SIGKILL" in jobs["algo.how=kill"]["reason"]
    assert "Traceback" in (folder / jobs["algo.how=bug"]["log"]).read_text()
    assert (folder / "comparison.json").is_file()
    before = results(folder)

    again = sweep(environment, *words)
    assert again.returncode == 8
    assert sorted(ran(folder)) == sorted(f"algo.how={how}" for how in BAD)
    skipped = {e["job"] for e in since_start(folder) if e.get("skipped")}
    assert skipped == {f"algo.how={how}" for how in GOOD}
    assert results(folder) == before


@pytest.mark.faults
@pytest.mark.parametrize("launch", ["basic", "local"])
def test_fail_fast(launch: str, outputs: Path, environment: dict[str, str]) -> None:
    ended = sweep(environment, "algo.how=bug,a,b,c", "launch.fail_fast=true", f"launch={launch}")
    assert ended.returncode == 8
    states = {n: e["state"] for n, e in manifest.jobs(since_start(only(outputs))).items()}
    assert states["algo.how=bug"] == "failed"
    assert states["algo.how=c"] == "pending"
    assert "not started" in ended.stdout


@pytest.mark.slow
def test_a_bug_is_shown_whole(outputs: Path, environment: dict[str, str]) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "metarun", *ODD[1:], "algo.how=bug"],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert ended.returncode == 1
    assert "RuntimeError: as asked for" in ended.stderr
    assert "Traceback" in ended.stderr
    assert not outputs.exists()


# goal 10: sweeps that die -----------------------------------------------------------------


def start(environment: Mapping[str, str], *words: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "metarun", *ODD, *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment,
        start_new_session=True,
    )


def family(mark: str) -> list[int]:
    """Return the living jobs that have a word in their environment."""
    found: list[int] = []
    for process in Path("/proc").iterdir():
        try:
            alive = process.name.isdigit() and "State:\tZ" not in (process / "status").read_text()
            job = b"metarun.job" in (process / "cmdline").read_bytes()
            if alive and job and mark.encode() in (process / "environ").read_bytes():
                found.append(int(process.name))
        except OSError:
            continue
    return found


def gone(mark: str, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while family(mark) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not family(mark)


@pytest.mark.faults
@pytest.mark.timeout(600)
@pytest.mark.parametrize("launch", ["basic", "local"])
def test_a_killed_sweep_goes_on(
    launch: str, outputs: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    seed = random.SystemRandom().randrange(1000)
    print(f"seed {seed}")
    chance = random.Random(seed)
    mark = f"METARUN_OUTPUTS={outputs}"
    words = ("algo.how=a,b,c", f"launch={launch}")
    kills = finished = 0
    while kills < KILLS // 2:
        process = start(environment, *words, f"seed={finished}")
        try:
            assert process.wait(chance.uniform(0.5, 12)) == 0
            finished += 1
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills += 1
            assert gone(mark, 2), "a job outlived its sweep"
    last = (*words, f"seed={finished}")
    assert sweep(environment, *last).returncode == 0
    elsewhere = environment | {"METARUN_OUTPUTS": str(tmp_path / "uninterrupted")}
    for folder in outputs.iterdir():
        entries = manifest.read(folder)
        for name in manifest.jobs(entries):
            done = [e for e in entries if e.get("job") == name and e["state"] == "done"]
            assert sum(not e.get("skipped") for e in done) <= 1
            lines = (folder / name / "records.jsonl").read_text().splitlines()
            ends = [json.loads(line) for line in lines]
            assert [e["status"] for e in ends if e["kind"] == "end"] == ["done"]
    assert sweep(elsewhere, *last).returncode == 0
    whole = only(tmp_path / "uninterrupted")
    assert results(outputs / whole.name) == results(whole)
    assert len(results(whole)) == 3


@pytest.mark.faults
@pytest.mark.parametrize("launch", ["basic", "local"])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_a_stopped_sweep_stops_its_jobs(
    launch: str, number: signal.Signals, code: int, outputs: Path, environment: dict[str, str]
) -> None:
    words = (f"launch={launch}", "algo.how=a,b,c,d", "budget.total=1000000")
    process = start(environment, *words)
    deadline = time.monotonic() + 60
    while not list(outputs.glob("*/*/checkpoints/step-*")) and time.monotonic() < deadline:
        time.sleep(0.1)
    os.killpg(process.pid, number)  # as a terminal does
    assert process.wait(30) == code
    assert gone(f"METARUN_OUTPUTS={outputs}", 2)
    states = {e["state"] for e in manifest.jobs(since_start(only(outputs))).values()}
    assert states == {"preempted", "pending"}
    assert not list(outputs.glob("*/*/outcome.json")) or all(
        json.loads(path.read_text())["exit_code"] == code
        for path in outputs.glob("*/*/outcome.json")
    )


@pytest.mark.faults
def test_a_second_signal_leaves_at_once(outputs: Path, environment: dict[str, str]) -> None:
    process = start(environment, "algo.how=wait")
    deadline = time.monotonic() + 60
    while not (list(outputs.glob("*")) and ran(only(outputs))) and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(5)  # until the job has its handlers, and waits
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert process.poll() is None
    begin = time.monotonic()
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == 130
    assert time.monotonic() - begin < 1
    assert gone(f"METARUN_OUTPUTS={outputs}", 2)


@pytest.mark.faults
def test_two_sweeps_in_one_folder(outputs: Path, environment: dict[str, str]) -> None:
    first = start(environment, "algo.how=wait")
    deadline = time.monotonic() + 60
    while not (list(outputs.glob("*")) and ran(only(outputs))) and time.monotonic() < deadline:
        time.sleep(0.1)
    second = sweep(environment, "algo.how=wait")
    first.kill()
    first.wait()
    assert second.returncode == 7
    assert str(first.pid) in second.stderr
    assert second.stderr.count("\n") == 1
