"""A run on several processes: what one process finds, whoever fails, and nobody left behind.

Where nothing depends on their being processes, helpers are threads here, told as ever.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_elsewhere import losses, stopped_at
from tiny import FEW, TINY, Log, tiny_config

from metarun.assemble import Experiment, assemble
from metarun.config import check, compose_job
from metarun.data.fetch import data_root
from metarun.engine import crew as crews
from metarun.engine import helper
from metarun.engine.batching import settle
from metarun.engine.board import as_groups
from metarun.engine.cost import Flops
from metarun.engine.crew import crew
from metarun.errors import LostError, MemoryExhaustedError
from metarun.gradients.metagradient import MetaGradient
from metarun.numerics.chunks import in_chunks
from metarun.numerics.trees import apart
from metarun.problem import Meta
from metarun.run import run_job
from metarun.signals import Stop
from metarun.state import State
from metarun.tasks import Tasks
from metarun.train import train

ON_TASKS = (
    *("maml", "fomaml", "truncated", "reptile", "signmaml", "es_maml", "imaml", "anil", "boil"),
    *("cavia", "metasgd", "mamlpp", "alfa", "metacurvature", "adapters", "clustered", "mixture"),
    *("mmaml", "tsamaml", "multi_maml", "r2d2"),
)
FAST = ("maml", "reptile", "clustered", "tsamaml")
SGD = ("outer.optimizer=sgd", "outer.lr=0.01")  # Adam makes full steps of roundings of zero
EXACT = ("hardware.dtype=float64", *SGD)
SHORT = ("budget.total=8", "validation.every=8", "validation.tasks=2")
IMAGES = (
    *("dataset=glyphs", "model.filters=4", "task.queries=3", "validation.steps=1", "test.steps=1"),
    *("hardware=cpu", "hardware.threads=1"),
)
NO_ROOM = "CUDA out of memory. Tried to allocate 2 GiB"


class Thread:
    """Stands in for a helper's process."""

    def __init__(self, words: list[str], **_: Any) -> None:
        self.descriptors = [os.dup(int(word)) for word in words[-3:]]
        threading.Thread(target=self.run, daemon=True).start()

    def run(self) -> None:
        helper.main(*self.descriptors)
        for descriptor in self.descriptors:
            with suppress(OSError):  # it has closed its link itself
                os.close(descriptor)

    def __enter__(self) -> Thread:
        return self

    def __exit__(self, *_: object) -> None: ...

    def kill(self) -> None: ...


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crews, "subprocess", SimpleNamespace(Popen=Thread, DEVNULL=None))


def settled(*words: str) -> tuple[Experiment, dict[str, Any]]:
    config = compose_job(list(words))
    experiment = assemble(check(config), data_root())
    return settle(experiment, experiment.initial())[0], config


def trained(*words: str) -> tuple[State, Log]:
    experiment, config = settled(*words)
    log = Log()
    with crew(experiment, config) as helpers:
        assert (helpers is None) == (experiment.hardware.processes == 1)
        return train(experiment, State(experiment.initial()), log, Stop(), Flops(), helpers), log


def without_clock(log: Log) -> list[tuple[str, int, dict[str, Any]]]:
    clock = {"seconds", "tasks_per_second"}
    return [
        (kind, step, {k: v for k, v in figures.items() if k not in clock})
        for kind, step, figures in log.records
    ]


@pytest.mark.parametrize(
    "algo",
    [one if one in FAST else pytest.param(one, marks=pytest.mark.slow) for one in ON_TASKS],
)
def test_training_is_that_of_one_process(algo: str, threads: None) -> None:
    words = (*TINY, f"algo={algo}", *FEW.get(f"algo={algo}", ()), *EXACT, *SHORT)
    plain, log = trained(*words)
    shared, shared_log = trained(*words, "hardware.processes=3")
    assert apart(shared.meta, plain.meta) <= 1e-10
    for (kind, step, found), (*where, expected) in zip(
        without_clock(shared_log), without_clock(log), strict=True
    ):
        assert [kind, step] == where
        assert flat(found) == pytest.approx(flat(expected), rel=1e-8, abs=1e-8, nan_ok=True)


def flat(figures: Any) -> list[float]:
    if isinstance(figures, dict):
        return [number for key in sorted(figures) for number in flat(figures[key])]
    if isinstance(figures, list | tuple):
        return [number for one in figures for number in flat(one)]
    return [float(figures)]


@pytest.mark.parametrize(("dtype", "chunk", "bound"), [("float32", 1, 1e-6), ("float64", 4, 1e-12)])
@pytest.mark.parametrize(
    "words",
    [
        (*TINY, "algo=maml"),
        (*TINY, "algo=clustered", "algo.starts=2"),
        (*IMAGES, "algo=protonet"),
        (*IMAGES, "algo=maml", "hardware.threads=2"),
    ],
)
def test_a_meta_gradient_is_that_of_one_process(
    words: tuple[str, ...], dtype: str, chunk: int, bound: float, threads: None
) -> None:
    """Tasks at once change a float32 gradient by some 3e-6 in one process as well: one by one."""
    for processes in (2, 3, 4, 5):
        more = (f"hardware.dtype={dtype}", f"hardware.processes={processes}", "outer.batch=5")
        experiment, config = settled(*words, *more)
        meta_grad, meta = experiment.algorithm.meta_grad, experiment.initial()
        assert meta_grad is not None
        with crew(experiment, config) as helpers:
            assert helpers is not None
            for step in (0, 7):
                tasks = experiment.batch(step)
                shared, fitted = helpers.meta_gradient(meta, tasks, step, chunk)
                whole, _ = in_chunks(meta_grad, meta, tasks, step, chunk)
                assert fitted == chunk
                found, expected = as_groups(shared), as_groups(whole)
                assert found.keys() == expected.keys()
                for group in filter(expected.get, expected):
                    assert apart({"": found[group]}, {"": expected[group]}) <= bound, group


def poisoned(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Make one training task diverge, whoever draws it."""
    draw = Experiment.tasks

    def tasks(self: Experiment, split: Any, first: int, count: int) -> Tasks:
        found = draw(self, split, first, count)
        if split == "train" and first <= number < first + count:
            found.query_y[number - first] = float("nan")
        return found

    monkeypatch.setattr(Experiment, "tasks", tasks)


@pytest.mark.parametrize("policy", ["skip_step", "drop_tasks"])
@pytest.mark.parametrize("bad", [8, 11])
def test_a_task_that_diverges_is_found_wherever_it_was(
    policy: str, bad: int, threads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the third of meta-steps of four tasks: the run's own share, or the last helper's."""
    poisoned(monkeypatch, bad)
    words = (*TINY, "algo=maml", *EXACT, *SHORT, f"outer.on_divergence={policy}")
    plain, log = trained(*words)
    shared, shared_log = trained(*words, "hardware.processes=3")
    assert apart(shared.meta, plain.meta) <= 1e-10
    assert (shared.skipped, shared.dropped) == (plain.skipped, plain.dropped)
    assert shared.skipped + shared.dropped == 1
    told = [[r for r in one.records if r[0] == "diverged"] for one in (shared_log, log)]
    assert told[0] == told[1]
    assert told[0][0][2]["tasks"] == [bad - 8]


def short_of_memory(fits: int) -> Callable[..., Experiment]:
    """Return what assembles an experiment with room for so many tasks at once."""

    def cramped(*settings: Any) -> Experiment:
        experiment = assemble(*settings)
        inner = experiment.algorithm.meta_grad
        assert inner is not None

        def meta_grad(meta: Meta, tasks: Tasks, step: int) -> MetaGradient:
            if len(tasks) > fits:
                raise torch.OutOfMemoryError(NO_ROOM)
            return inner(meta, tasks, step)

        algorithm = experiment.algorithm._replace(meta_grad=meta_grad)
        return replace(experiment, algorithm=algorithm)

    return cramped


@pytest.mark.parametrize("fits", [0, 1, 2])
def test_a_helper_short_of_memory_halves_for_all_or_says_so(
    fits: int, threads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(helper, "assemble", short_of_memory(fits))
    words = (*TINY, "algo=maml", *EXACT, *SHORT, "outer.batch=6", "hardware.chunk=3")
    if fits:
        assert trained(*words, "hardware.processes=2")[0].chunk == fits
        return
    said = r"in process 2 of 2 \(cpu\): even one task .* fit into the device's memory \(CUDA out"
    with pytest.raises(MemoryExhaustedError, match=said):
        trained(*words, "hardware.processes=2")


def test_a_helper_without_room_to_start_says_so(
    threads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(*_: object) -> None:
        raise torch.OutOfMemoryError(NO_ROOM)

    monkeypatch.setattr(helper, "assemble", no_room)
    with pytest.raises(MemoryExhaustedError, match=r"in process 2 of 2 \(cpu\): what a run needs"):
        trained(*TINY, *SHORT, "hardware.processes=2")


def test_a_fault_in_a_helper_is_one_of_the_run_with_its_traceback(
    threads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise KeyError("no such thing")

    monkeypatch.setattr(helper, "in_chunks", broken)
    with pytest.raises(RuntimeError, match=r"in process 2 of 2 .*\nTraceback(?s:.*)no such thing"):
        trained(*TINY, *SHORT, "hardware.processes=2")


@pytest.mark.slow
def test_a_run_of_two_processes_goes_on_with_three(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Real processes; their number is told, and is no other run."""
    words = ("algo=maml", "hardware.dtype=float64", "checkpoints.keep=9")
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    assert run_job(tiny_config(*words), alone) == 0
    assert run_job(tiny_config(*words, "hardware.processes=2"), shared) == 0
    assert {path.name for path in shared.iterdir()} == {path.name for path in alone.iterdir()}
    assert outcome(shared)["hardware"]["processes"] == 2
    stopped_at(shared, 4)
    capsys.readouterr()
    assert run_job(tiny_config(*words, "hardware.processes=3"), shared) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert said.count("warning:") == 1
    assert "going on with processes 2 before, 3 now: the last bits may differ" in said
    assert losses(shared) == pytest.approx(losses(alone), rel=1e-9)
    mse = [outcome(folder)["test"]["mse"]["mean"] for folder in (shared, alone)]
    assert mse[0] == pytest.approx(mse[1], rel=1e-9)


def outcome(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "outcome.json").read_text())


def test_a_helper_that_cannot_start_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crews, "LAUNCH", "raise SystemExit('no torch here')")
    said = r"^hardware\.processes: process 2 of 2 \(cpu\) ended with exit code 1 \(no torch here\);"
    with pytest.raises(LostError, match=said):
        trained(*TINY, "hardware.processes=2")
