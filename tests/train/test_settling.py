"""What is settled before training: by whom it is computed, and what is remembered of it."""

from __future__ import annotations

import json
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from children import kill, python
from test_batching import KERNELS, images
from tiny import TINY, tiny, tiny_config

from metarun.assemble import Experiment
from metarun.engine.batching import settle
from metarun.kernels import conv, norm
from metarun.numerics.chunks import in_chunks
from metarun.records import read
from metarun.run import run_job

TWO = ("hardware.threads=2", "outer.batch=8")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the threads that call a kernel."""
    found: list[str] = []
    for module in (conv, norm):
        inner = module.call

        def counted(*given: Any, inner: Any = inner) -> None:
            found.append(threading.current_thread().name)
            inner(*given)

        monkeypatch.setattr(module, "call", counted)
    return found


def step(experiment: Experiment, chunk: int) -> None:
    meta_grad = experiment.algorithm.meta_grad
    assert meta_grad is not None
    tasks = experiment.batch(0)
    in_chunks(meta_grad, experiment.initial(), tasks, 0, chunk, experiment.workers)


@KERNELS
def test_threads_obey_the_switch_however_often_it_is_turned(calls: list[str]) -> None:
    """A thread has a copy of the model, which it made when the switch stood elsewhere."""
    experiment = images("algo=maml", *TWO, "hardware.batching=vmap")
    step(experiment, 2)
    assert not calls
    fast = images("algo=maml", *TWO)
    step(fast, 2)
    used = set(calls)
    assert len(used) == 2
    assert threading.main_thread().name not in used
    _, choice = settle(fast, fast.initial())
    assert choice.way == "batched"
    calls.clear()
    step(fast, 2)
    assert set(calls) <= used
    assert calls


@KERNELS
def test_tuning_times_the_kernels_in_the_threads_that_train(
    calls: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    experiment = images("algo=maml", *TWO, "hardware.batching=tune")
    _, choice = settle(experiment, experiment.initial())
    assert {name.split()[0] for name in choice.seconds} == {"loop", "vmap", "batched"}
    assert set(calls) - {threading.main_thread().name}


def test_what_was_tuned_for_other_work_is_not_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def reason(*words: str) -> str:
        experiment = tiny("hardware.batching=tune", *words)
        return settle(experiment, experiment.initial())[1].reason.rpartition(", ")[2]

    earlier = "measured earlier for this work on this machine"
    others = [(), ("algo=fomaml",), ("algo.steps=2",), ("model.activation=tanh",)]
    assert [reason(*words) for words in others] == ["measured"] * len(others)
    assert [reason(*words) for words in others] == [earlier] * len(others)
    monkeypatch.setattr("metarun.engine.tuning.processor", lambda: "another")
    assert reason() == "measured"
    for damaged in ("{", "[]"):
        (tmp_path / "metarun" / "batching.json").write_text(damaged)
        assert reason() == "measured"
        assert len(json.loads((tmp_path / "metarun" / "batching.json").read_text())) == 1
    for nowhere in ("/proc/none", str(tmp_path / "metarun" / "batching.json")):
        monkeypatch.setenv("XDG_CACHE_HOME", nowhere)
        assert [reason(), reason()] == ["measured", "measured"]


@KERNELS
@pytest.mark.parametrize("algo", ["transfer", "scratch"])
def test_kernels_are_checked_where_no_tasks_are_trained_on(
    algo: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment = images(f"algo={algo}")
    settled, choice = settle(experiment, experiment.initial())
    assert (choice.way, settled.hardware.way) == ("batched", "batched")
    assert 0 < choice.difference <= choice.tolerance
    inner = norm.call

    def wrong(name: str, tensors: list[torch.Tensor], *rest: Any) -> None:
        inner(name, tensors, *rest)
        tensors[-1].mul_(1.001)

    monkeypatch.setattr(norm, "call", wrong)
    broken = images(f"algo={algo}")
    settled, choice = settle(broken, broken.initial())
    assert settled.hardware.way == "loop"
    assert "running the plain loop" in capsys.readouterr().err


def test_every_run_has_it_on_record(tmp_path: Path) -> None:
    for algo in ("scratch", "transfer"):
        assert run_job(tiny_config(f"algo={algo}"), tmp_path / algo) == 0
        assert [r["way"] for r in read(tmp_path / algo) if r["kind"] == "batching"] == ["vmap"]


@KERNELS
@pytest.mark.parametrize("algo", ["transfer", "scratch"])
def test_what_cannot_be_a_graph_says_so_and_keeps_its_kernels(
    algo: str, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment = images(f"algo={algo}", "hardware.compile=true")
    settled, choice = settle(experiment, experiment.initial())
    assert settled.hardware.way == "batched"
    assert "no inner loop" in choice.compiled
    assert "hardware.compile: there is no inner loop in this training" in capsys.readouterr().err


def test_noise_that_a_graph_would_freeze_is_seen() -> None:
    experiment = tiny("algo=es_maml", "algo.estimator.pairs=1", "hardware.compile=true")
    settled, choice = settle(experiment, experiment.initial())
    assert "random numbers" in choice.compiled
    assert settled.algorithm is experiment.algorithm


@KERNELS
@pytest.mark.parametrize("filters", [8, 24, 32])
@pytest.mark.parametrize("channels", [1, 3])
def test_float64_goes_the_ways_of_float32(filters: int, channels: int, monkeypatch) -> None:
    """Or else a check in float64 would be of other code than runs."""
    names: dict[torch.dtype, list[str]] = {torch.float32: [], torch.float64: []}
    inner = conv.call

    def noted(name: str, tensors: list[torch.Tensor], *rest: Any) -> None:
        names[tensors[0].dtype].append(name)
        inner(name, tensors, *rest)

    monkeypatch.setattr(conv, "call", noted)
    for dtype in names:
        x, bias = torch.randn(4, channels, 12, 12, dtype=dtype), torch.zeros(filters, dtype=dtype)
        w = torch.randn(filters, channels, 3, 3, dtype=dtype, requires_grad=True)
        v = torch.randn(filters, filters, 3, 3, dtype=dtype, requires_grad=True)
        h = conv.conv2d(x, w, bias, stride=2, padding=1)
        conv.conv2d(h, v, bias, stride=2, padding=1).square().sum().backward()
    assert names[torch.float32] == names[torch.float64]


@pytest.mark.slow
@pytest.mark.parametrize("kinds", [["start"], ["start", "batching"]], ids=str)
def test_a_run_that_compiles_ends_when_it_is_asked_to(kinds: list[str], tmp_path: Path) -> None:
    """Building a graph takes a minute, and a cluster waits half a minute before it kills."""
    new = {"METARUN_OUTPUTS": str(tmp_path), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    words = ["algo=maml", "algo.steps=8", *TINY, "hardware.compile=true"]
    process = python("-m", "metarun", "name=run", *words, env=new)
    try:
        records = tmp_path / "run" / "records.jsonl"
        while not records.exists() or records.read_text().count("\n") < len(kinds):
            assert process.poll() is None
            time.sleep(0.05)
        time.sleep(1)  # into the tracer, or the compiler
        process.send_signal(signal.SIGTERM)
        begun = time.monotonic()
        assert process.wait(60) == 75
        assert time.monotonic() - begun < 2
    finally:
        kill(process)
    assert [record["kind"] for record in read(tmp_path / "run")] == kinds
