"""Memory that runs out between two phases, or while a divergence is looked into."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import Log, tiny, tiny_config

from metarun.assemble import Experiment
from metarun.engine.cost import Flops, flops_of_training
from metarun.gradients.metagradient import MetaGradient
from metarun.problem import Meta
from metarun.run import run_job
from metarun.signals import Stop
from metarun.state import State
from metarun.tasks import Tasks
from metarun.train import train

pytestmark = pytest.mark.usefixtures("undrawn")

NO_ROOM = "CUDA out of memory. Tried to allocate 2 GiB"
STEP, BAD = 3, 2  # the meta-step that diverges, and the task that makes it
TURNING = ("algo=tsamaml", "hardware.dtype=float64", "outer.batch=8", "algo.tasks=20")


def no_room(*_: object, **__: object) -> Any:
    raise torch.OutOfMemoryError(NO_ROOM)


def changed(experiment: Experiment, **parts: Any) -> Experiment:
    return replace(experiment, algorithm=experiment.algorithm._replace(**parts))


def turning(fits: int, sizes: list[int]) -> Experiment:
    """Return an experiment of two phases whose change has room for so many tasks at once."""
    experiment = tiny(*TURNING)
    turn = experiment.algorithm.turn
    assert turn is not None

    def change(meta: Meta, chunks: Iterable[Tasks]) -> Meta:
        def taken() -> Iterable[Tasks]:
            for some in chunks:
                sizes.append(len(some))
                yield some if len(some) <= fits else no_room()

        return turn.change(meta, taken())

    return changed(experiment, turn=turn._replace(change=change))


@pytest.mark.parametrize("fits", [1, 3, 8])
def test_a_change_of_phase_is_halved_until_it_fits_and_stays_the_same(fits: int) -> None:
    sizes = list[int]()
    experiment, plain = turning(fits, sizes), tiny(*TURNING)
    found = train(experiment, State(experiment.initial()), Log(), Stop(), Flops())
    tried = [size for size in sizes if size > fits]
    assert tried == [20, 10, 5, 3, 2][: len(tried)]
    assert fits / 2 < sizes[len(tried)] <= fits
    expected = train(plain, State(plain.initial()), Log(), Stop(), Flops())
    assert float(found.meta["clusters"]["formed"]) == 1
    for group, params in expected.meta.items():
        for name, value in params.items():
            torch.testing.assert_close(found.meta[group][name], value, rtol=1e-9, atol=1e-12)


def test_a_change_of_phase_begins_with_what_training_found_to_fit() -> None:
    sizes = list[int]()
    experiment = turning(99, sizes)
    train(experiment, State(experiment.initial(), chunk=3), Log(), Stop(), Flops())
    assert sizes == [3] * 6 + [2]


@pytest.mark.parametrize("fits", [1, 3])
def test_what_a_step_costs_is_counted_though_a_change_has_little_room(fits: int) -> None:
    sizes = list[int]()
    experiment, plain = turning(fits, sizes), tiny(*TURNING)
    found = flops_of_training(experiment, experiment.initial())
    assert found == flops_of_training(plain, plain.initial())
    assert sizes[0] == 8
    assert max(sizes[-3:]) <= fits


@pytest.mark.parametrize("before", [True, False])
def test_a_change_of_phase_without_room_for_one_task_ends_with_advice(
    before: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    """In training as when it is counted what a step will cost."""
    if not before:
        monkeypatch.setattr("metarun.run.flops_of_training", lambda *_: Flops())
    said = ended(tmp_path, monkeypatch, capsys, turning(0, []), *TURNING)
    assert said == (
        f"even one task at a time does not fit into the device's memory ({NO_ROOM}); use a "
        "smaller model or fewer algo.tasks"
    )


def ended(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys, experiment: Experiment, *words: str
) -> str:
    """Carry out a run that must end for want of memory; return its reason, on screen as on file."""
    monkeypatch.setattr("metarun.run.assemble", lambda *_: experiment)
    assert run_job(tiny_config(*words), folder) == 6
    found = json.loads((folder / "outcome.json").read_text())
    assert (found["status"], found["exit_code"]) == ("failed", 6)
    said = " ".join(capsys.readouterr().err.split())
    assert said.endswith(f"metarun: {found['reason']}")
    return found["reason"]


def diverging(*words: str, one: Callable[[], None] = lambda: None) -> Experiment:
    """Return an experiment in which a task diverges; `one` is called when it is taken alone."""
    experiment = tiny("hardware.dtype=float64", "outer.batch=8", *words)
    inner = experiment.algorithm.meta_grad
    bad = experiment.batch(STEP).query_y[BAD]
    assert inner is not None

    def meta_grad(meta: Meta, tasks: Tasks, step: int) -> MetaGradient:
        if len(tasks) == 1 and step == STEP:
            one()
        found = inner(meta, tasks, step)
        here = torch.tensor([torch.equal(y, bad) for y in tasks.query_y])
        return found._replace(losses=found.losses.masked_fill(here, float("nan")))

    return changed(experiment, meta_grad=meta_grad)


def test_a_diagnosis_without_room_ends_with_advice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setattr("metarun.engine.metastep.diagnose", no_room)
    said = ended(tmp_path, monkeypatch, capsys, diverging())
    assert said.startswith(f"what a run needs does not fit into the device's memory ({NO_ROOM});")
    assert "use a smaller model" in said


def test_looking_for_bad_tasks_without_room_ends_with_advice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    words = ("outer.on_divergence=drop_tasks",)
    said = ended(tmp_path, monkeypatch, capsys, diverging(*words, one=no_room), *words)
    assert said.startswith("even one task at a time does not fit into the device's memory")


def test_tasks_that_are_kept_are_not_more_at_once_than_fit() -> None:
    """They did not fit all together before a bad one was among them."""
    experiment, sizes = diverging("outer.on_divergence=drop_tasks"), list[int]()
    inner = experiment.algorithm.meta_grad
    assert inner is not None

    def short_of_memory(meta: Meta, tasks: Tasks, step: int) -> MetaGradient:
        sizes.append(len(tasks))
        return inner(meta, tasks, step) if len(tasks) <= 2 else no_room()

    short = changed(experiment, meta_grad=short_of_memory)
    state = train(short, State(short.initial()), Log(), Stop(), Flops())
    assert (state.dropped, state.chunk) == (1, 2)
    assert [size for size in sizes if size > 2] == [8, 4], "only to find out what fits"


@pytest.mark.parametrize(
    "place", ["metarun.run.assemble", "metarun.engine.metastep.OuterOptimizer"]
)
def test_wherever_else_memory_runs_out_it_is_one_line(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setattr(place, no_room)
    assert run_job(tiny_config(), tmp_path) == 6
    said = " ".join(capsys.readouterr().err.split())
    assert said.startswith("metarun: what a run needs does not fit into the device's memory")


def test_other_faults_stay_what_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fault(*_: object) -> Any:
        raise RuntimeError("CUDA error: out of memory")  # a context that is lost, not a shortage

    monkeypatch.setattr("metarun.engine.metastep.diagnose", fault)
    monkeypatch.setattr("metarun.run.assemble", lambda *_: diverging())
    with pytest.raises(RuntimeError, match="CUDA error"):
        run_job(tiny_config(), tmp_path)
