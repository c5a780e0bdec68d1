"""Sweeps on a Slurm cluster: what Slurm refuses or ends, and how the jobs of others are stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import cluster
import pytest
from sweeps import TINY, only, results, since_start

from metarun import manifest
from metarun.errors import ConfigError
from metarun.sweeps.job import _waited
from metarun.sweeps.slurm import on_slurm, refuse_without_slurm

ROOT = Path(__file__).parents[2]


class LostError(RuntimeError):
    """What submitit calls UncompletedJobError."""


class Job:
    """A job of submitit's that gives a result, or raises it."""

    job_id, state, paths = "7_0", "NODE_FAIL", SimpleNamespace(folder="there")

    def __init__(self, result: Any) -> None:
        self.result = result

    def results(self) -> list[Any]:
        if isinstance(self.result, Exception):
            raise self.result
        return [SimpleNamespace(return_value=self.result, _return_value=self.result)]


@pytest.fixture
def submitit(monkeypatch: pytest.MonkeyPatch) -> None:
    """A submitit with as much in it as is touched."""
    core, utils = ModuleType("submitit.core.core"), ModuleType("submitit.core.utils")
    vars(core)["Job"], vars(utils)["UncompletedJobError"] = Job, LostError
    for module in (core, utils):
        monkeypatch.setitem(sys.modules, module.__name__, module)


@pytest.mark.usefixtures("submitit")
def test_a_job_without_a_result_costs_only_itself(capsys: pytest.CaptureFixture[str]) -> None:
    before = Job.results
    jobs = [Job(LostError("no output")), Job(0.5)]
    with on_slurm("submitit_slurm"):
        assert [job.results()[0].return_value for job in jobs] == [None, 0.5]
    assert Job.results is before
    said = " ".join(capsys.readouterr().err.split())
    assert said == (
        "metarun: warning: Slurm job 7_0 gave no result: its state is NODE_FAIL; see there"
    )


@pytest.mark.usefixtures("submitit")
def test_a_job_whose_time_is_up_for_good_does_too(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Submitit raises it inside the job, and Hydra hands it on as the job's own fault."""
    fault = SimpleNamespace(
        _return_value=LostError("Job not requeued because: timed-out too often")
    )
    monkeypatch.setattr(Job, "results", lambda _: [fault])
    with on_slurm("submitit_slurm"):
        assert Job(None).results()[0].return_value is None
    assert "no result: Job not requeued because: timed-out" in capsys.readouterr().err


@pytest.mark.usefixtures("submitit")
def test_what_slurm_refuses_is_a_line() -> None:
    said = "launch=slurm: sbatch: error: nosuch"
    with pytest.raises(ConfigError, match=said), on_slurm("submitit_slurm"):
        raise LostError("sbatch: error: nosuch")
    with pytest.raises(ZeroDivisionError), on_slurm("submitit_slurm"):
        raise ZeroDivisionError
    with pytest.raises(LostError), on_slurm("basic"):
        raise LostError


def test_a_machine_without_slurm_is_said_before_anything_is_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="launch=slurm: there is no srun or sbatch here"):
        refuse_without_slurm("submitit_slurm")
    refuse_without_slurm("joblib")
    monkeypatch.setenv("PATH", cluster.install(tmp_path)["PATH"])
    refuse_without_slurm("submitit_slurm")


def test_a_job_on_another_machine_hears_that_its_sweep_is_stopped() -> None:
    """Nobody there can signal it; one that can be signalled is asked only as it begins."""
    looks = iter([False, False, True])
    with subprocess.Popen(["sleep", "60"]) as child:
        assert _waited(child, lambda: next(looks), every=0.05) == -signal.SIGTERM
    looks = iter([False, True])
    with subprocess.Popen(["sleep", "0.3"]) as child:
        assert _waited(child, lambda: next(looks), every=None) == 0


def gone() -> bool:
    raise FileNotFoundError


def test_a_folder_that_is_gone_is_left_to_the_job_to_say() -> None:
    with subprocess.Popen(["sleep", "0.3"]) as child:
        assert _waited(child, gone, every=0.05) == 0


def start(tmp_path: Path, *words: str) -> subprocess.Popen[str]:
    """Give a sweep to a cluster."""
    environment = os.environ | cluster.install(tmp_path / "slurm") | {"PYTHONPATH": str(ROOT)}
    command = ["-m", "metarun", "-m", "launch=slurm", *TINY, *words]
    return subprocess.Popen(
        [sys.executable, *command],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def is_missing(process: subprocess.Popen[str]) -> bool:
    """Tell whether the launcher's plug-in is not installed, which must be said."""
    if find_spec("hydra_plugins.hydra_submitit_launcher") is not None:
        return False
    said = process.communicate()[1]
    assert said.endswith("its plug-in is not installed; pip install 'metarun[slurm]'\n")
    return True


def running(outputs: Path) -> dict[str, Any]:
    """Wait until a job runs; return its entry."""
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline:
        for path in outputs.glob("*/*/checkpoints/step-*"):
            return manifest.jobs(since_start(only(outputs)))[path.parents[1].name]
        time.sleep(0.1)
    raise AssertionError("nothing runs")


@pytest.mark.faults
def test_a_job_that_slurm_kills_costs_only_itself(tmp_path: Path, outputs: Path) -> None:
    process = start(tmp_path, "seed=0,1", "budget.unit=seconds", "budget.total=5")
    if is_missing(process):
        return
    job = running(outputs)
    worker = int(Path(f"/proc/{job['pid']}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(worker, signal.SIGKILL)  # submitit's process, and the job dies with it
    said, complaint = process.communicate(timeout=200)
    assert process.returncode == 8, complaint
    assert f"the jobs go to submitit_slurm; how far each is: {only(outputs)}/*/log.txt" in said
    assert "Slurm job 7_0 gave no result: its state is FAILED" in complaint
    assert "1 of 2 jobs are done" in complaint
    assert sorted(results(only(outputs))) == ["seed=1"]
    assert (only(outputs) / "comparison.json").is_file()


@pytest.mark.faults
def test_a_stopped_sweep_stops_its_jobs_on_slurm(tmp_path: Path, outputs: Path) -> None:
    process = start(tmp_path, "seed=0,1", "budget.total=1000000")
    if is_missing(process):
        return
    running(outputs)
    process.send_signal(signal.SIGINT)
    complaint = process.communicate(timeout=200)[1]
    assert process.returncode == 130, complaint
    assert "the sweep was stopped; 0 of 2 jobs are done" in complaint
    states = [e["state"] for e in manifest.jobs(since_start(only(outputs))).values()]
    assert states == ["preempted", "pending"]


@pytest.mark.faults
def test_a_partition_that_is_not_there_leaves_nothing(tmp_path: Path, outputs: Path) -> None:
    process = start(tmp_path, "seed=0,1", "launch.partition=nosuch")
    if is_missing(process):
        return
    complaint = process.communicate(timeout=200)[1]
    assert process.returncode == 2, complaint
    last = complaint.splitlines()[-1]
    assert last == "metarun: launch=slurm: sbatch: error: invalid partition specified: nosuch"
    assert not outputs.exists()
