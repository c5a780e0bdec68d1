"""Sweeps whose jobs fail, and sweeps that are killed or stopped: nothing is lost but time."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from sweeps import ODD, gone, odd_environment, only, ran, results, since_start, start, sweep

from metarun import manifest
from metarun.errors import SweepError
from metarun.sweeps.sweep import _finish

GOOD, BAD = "abcdefg", ("bug", "diverge", "kill", "stop", "refuse")
CODES = {"bug": 1, "diverge": 4, "kill": -9, "stop": 75, "refuse": 2}
KILLS = 20


@pytest.fixture
def environment(outputs: Path) -> dict[str, str]:
    return odd_environment()


# failing jobs -----------------------------------------------------------------------------


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
    assert "listed below" in ended.stdout
    assert "Not in the comparison" not in ended.stdout
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


# sweeps that die --------------------------------------------------------------------------


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
            assert process.wait(chance.uniform(0.5, 8)) == 0
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
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75), (signal.SIGHUP, 75)]
)
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
    assert not (only(outputs) / "multirun.yaml").exists()


@pytest.mark.faults
def test_a_signal_that_arrives_twice_leaves_the_jobs_their_time(
    outputs: Path, environment: dict[str, str]
) -> None:
    process = start(environment, "algo.how=a", "budget.total=1000000")
    deadline = time.monotonic() + 60
    while not list(outputs.glob("*/*/checkpoints/step-*")) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 75
    (path,) = outputs.glob("*/*/outcome.json")
    assert json.loads(path.read_text())["status"] == "preempted"


@pytest.mark.faults
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_a_sweep_that_has_not_begun_stops(number: signal.Signals, code: int, outputs: Path) -> None:
    program = "import os, metarun.cli as c; c._dispatch = lambda _: os.kill(os.getpid(), NUMBER)"
    words = f"{program.replace('NUMBER', str(int(number)))}; c.main(['-m'])"
    ended = subprocess.run(
        [sys.executable, "-c", words],
        capture_output=True,
        text=True,
        env=odd_environment(),
        check=False,
    )
    assert ended.returncode == code
    assert ended.stderr.count("\n") == 1
    assert not outputs.exists()


@pytest.mark.faults
@pytest.mark.parametrize("launch", ["basic", "local"])
def test_a_sweep_whose_folder_is_removed_ends_in_one_line(
    launch: str, outputs: Path, environment: dict[str, str]
) -> None:
    words = (f"launch={launch}", "algo.how=a,b,c", "budget.total=1000000", "checkpoints.every=10")
    process = subprocess.Popen(
        [sys.executable, "-m", "metarun", *ODD, *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    deadline = time.monotonic() + 60
    while not list(outputs.glob("*/*/checkpoints/step-*")) and time.monotonic() < deadline:
        time.sleep(0.1)
    folder = only(outputs)
    folder.rename(outputs / "going")  # at once, where a removal may meet a file that is new
    shutil.rmtree(outputs / "going", ignore_errors=True)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 5, said
    assert said.count("\n") == 1, said
    assert said.startswith(f"metarun: {folder}"), said
    assert gone(f"METARUN_OUTPUTS={outputs}", 2)
    assert not list(outputs.glob("*/*/outcome.json"))


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


def test_a_job_whose_worker_was_killed_is_listed_as_failed_with_its_log(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nobody was left to write down how it ended, and nothing runs any more."""
    folder = tmp_path / "sweep"
    (folder / "algo=a").mkdir(parents=True)
    (folder / "algo=a" / "log.txt").touch()
    manifest.append(folder, "sweep", total=2)
    manifest.append(folder, "job", job="algo=a", state="running", pid=1)
    manifest.append(folder, "job", job="algo=b", state="pending")
    with pytest.raises(SweepError, match="0 of 2 jobs are done"):
        _finish(folder, OmegaConf.create({}))
    said = capsys.readouterr().out
    assert "running" not in said
    assert "failed" in said
    assert "its worker was killed" in said
    assert f"{folder}/algo=a/log.txt" in said
    assert "algo=b/log.txt" not in said
