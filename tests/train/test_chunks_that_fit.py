"""Memory shortage halves the chunk and changes nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import Log, tiny, tiny_config

from metarun.engine.batching import settle
from metarun.engine.cost import Flops, flops_of_training
from metarun.errors import MemoryExhaustedError
from metarun.evaluate import score
from metarun.gradients.metagradient import MetaGradient
from metarun.numerics import chunks
from metarun.numerics.chunks import in_chunks, out_of_memory
from metarun.problem import Meta, Params, Problem
from metarun.run import run_job
from metarun.signals import Stop
from metarun.state import State
from metarun.tasks import Tasks
from metarun.train import train

pytestmark = pytest.mark.usefixtures("undrawn")


@pytest.mark.parametrize("fits", [1, 3, 8])
def test_memory_shortage_halves_the_chunk_and_changes_nothing(fits: int) -> None:
    experiment = tiny("hardware.dtype=float64", "outer.batch=16")
    inner = experiment.algorithm.meta_grad
    assert inner is not None
    tried: list[int] = []

    def short_of_memory(meta: Meta, tasks: Tasks, step: int) -> MetaGradient:
        tried.append(len(tasks))
        if len(tasks) > fits:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return inner(meta, tasks, step)

    meta, tasks = experiment.initial(), experiment.batch(0)
    found, chunk = in_chunks(short_of_memory, meta, tasks, 0, 16)
    assert fits / 2 < chunk <= fits
    assert len([size for size in tried if size > fits]) <= 4
    whole = inner(meta, tasks, 0)
    for name, value in whole.gradient["params"].items():
        torch.testing.assert_close(found.gradient["params"][name], value, rtol=1e-11, atol=1e-13)


def test_memory_that_one_task_does_not_fit_into_is_an_error_with_the_numbers() -> None:
    def never(meta: Meta, tasks: Tasks, step: int) -> MetaGradient:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    experiment = tiny()
    with pytest.raises(MemoryExhaustedError, match="Tried to allocate 2 GiB") as caught:
        in_chunks(never, experiment.initial(), experiment.batch(0), 0, 16)
    assert caught.value.exit_code == 6


def test_a_processor_s_memory_runs_out_under_another_name() -> None:
    """Asked for 4 PiB, torch raises what it raises in earnest: a plain RuntimeError."""
    experiment = tiny("outer.batch=16")
    inner = experiment.algorithm.meta_grad
    assert inner is not None

    def short_of_memory(meta: Meta, tasks: Tasks, step: int) -> MetaGradient:
        if len(tasks) > 5:
            torch.empty(2**50)
        return inner(meta, tasks, step)

    meta, tasks = experiment.initial(), experiment.batch(0)
    assert in_chunks(short_of_memory, meta, tasks, 0, 16)[1] == 4
    with pytest.raises(MemoryExhaustedError, match="you tried to allocate 4503599627370496 bytes"):
        in_chunks(lambda *_: torch.empty(2**50), meta, tasks, 0, 16)
    assert not out_of_memory(RuntimeError("CUDA error: out of memory"))
    assert not out_of_memory(ValueError("DefaultCPUAllocator: "))


@pytest.mark.parametrize(
    "short",
    [
        torch.AcceleratorError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("GET was unable to find an engine to execute this computation"),
    ],
    ids=["driver", "cublas", "cudnn", "convolution"],
)
def test_the_libraries_of_a_gpu_say_in_their_own_words_that_memory_is_short(
    short: RuntimeError,
) -> None:
    experiment = tiny("outer.batch=16")
    inner = experiment.algorithm.meta_grad
    assert inner is not None

    def short_of_memory(meta: Meta, tasks: Tasks, step: int) -> MetaGradient:
        if len(tasks) > 5:
            raise short
        return inner(meta, tasks, step)

    assert in_chunks(short_of_memory, experiment.initial(), experiment.batch(0), 0, 16)[1] == 4
    for other in ("CUDA error: an illegal memory access was encountered", "CUDA error: unknown"):
        assert not out_of_memory(torch.AcceleratorError(other))


@pytest.mark.parametrize("text", ["CUDA error: out of memory", "OutOfMemoryError", "boom"])
def test_other_errors_pass_through_untouched(text: str) -> None:
    def other(meta: Meta, tasks: Tasks, step: int) -> MetaGradient:
        raise RuntimeError(text)

    experiment = tiny()
    with pytest.raises(RuntimeError, match=text):
        in_chunks(other, experiment.initial(), experiment.batch(0), 0, 16)


def test_the_chunk_that_fits_is_found_once_and_kept() -> None:
    experiment = tiny("outer.batch=16")
    inner = experiment.algorithm.meta_grad
    assert inner is not None
    sizes: list[int] = []

    def short_of_memory(meta: Meta, tasks: Tasks, step: int) -> MetaGradient:
        sizes.append(len(tasks))
        if len(tasks) > 5:
            raise torch.OutOfMemoryError("no room")
        return inner(meta, tasks, step)

    algorithm = experiment.algorithm._replace(meta_grad=short_of_memory)
    changed = replace(experiment, algorithm=algorithm)
    state = train(changed, State(changed.initial()), Log(), Stop(), Flops())
    assert state.chunk == 4
    assert sizes.count(16) == 1


def scoring(sizes: list[int], fits: int) -> Callable[..., torch.Tensor]:
    """Return `score` on a device that holds so many tasks; it notes how many it is given."""

    def short_of_memory(problem: Problem, params: Params, tasks: Tasks) -> torch.Tensor:
        sizes.append(len(tasks))
        if len(tasks) > fits:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return score(problem, params, tasks)

    return short_of_memory


@pytest.mark.parametrize(("fits", "chunk"), [(1, 1), (4, 3), (8, 5)])
def test_memory_shortage_in_evaluation_changes_no_score(fits: int, chunk: int, monkeypatch) -> None:
    words = ("hardware.dtype=float64", "outer.batch=16")
    experiment, fewer = tiny(*words), tiny(*words, f"hardware.chunk={chunk}")
    meta, sizes = experiment.initial(), list[int]()
    whole = experiment.evaluate(meta, "test", 10, 3, Stop())
    expected = fewer.evaluate(meta, "test", 10, 3, Stop())
    monkeypatch.setattr("metarun.evaluate.score", scoring(sizes, fits))
    found = experiment.evaluate(meta, "test", 10, 3, Stop())
    assert torch.equal(found.values, expected.values)
    torch.testing.assert_close(found.values, whole.values)
    assert (whole.at_once, found.at_once, max(sizes)) == (10, chunk, 10)
    assert len([size for size in sizes if size > fits]) <= 4


def test_memory_that_runs_out_in_a_later_batch_begins_the_evaluation_again(monkeypatch) -> None:
    experiment = tiny("hardware.dtype=float64", "hardware.chunk=4")
    adapt, asked = experiment.algorithm.adapt, list[int]()

    def second_fails(meta: Meta, x: torch.Tensor, y: torch.Tensor, steps: int):
        asked.append(len(x))
        if len(asked) == 2:
            raise torch.OutOfMemoryError("no room")
        return adapt(meta, x, y, steps)

    changed = replace(experiment, algorithm=experiment.algorithm._replace(adapt=second_fails))
    meta = experiment.initial()
    found = changed.evaluate(meta, "validation", 6, 2, Stop())
    assert asked == [4, 2, 2, 2, 2]
    whole = experiment.evaluate(meta, "validation", 6, 2, Stop())
    torch.testing.assert_close(found.values, whole.values)


def test_a_run_whose_evaluation_does_not_fit_ends_with_advice(
    tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.setattr("metarun.evaluate.score", scoring([], 0))
    assert run_job(tiny_config(), tmp_path) == 6
    said = capsys.readouterr().err
    assert "Tried to allocate 2 GiB); use a smaller model" in " ".join(said.split())
    found = json.loads((tmp_path / "outcome.json").read_text())
    assert (found["status"], found["exit_code"]) == ("failed", 6)
    assert found["reason"].startswith("even one task at a time does not fit")


def test_evaluation_begins_with_what_training_found_to_fit(tmp_path: Path, monkeypatch) -> None:
    mean, sizes = chunks._mean, list[int]()

    def short_of_memory(meta_grad, meta, tasks, step, chunk, workers) -> MetaGradient:
        if chunk > 2:
            raise torch.OutOfMemoryError("no room")
        return mean(meta_grad, meta, tasks, step, chunk, workers)

    monkeypatch.setattr(chunks, "_mean", short_of_memory)
    monkeypatch.setattr("metarun.evaluate.score", scoring(sizes, 99))
    assert run_job(tiny_config(), tmp_path) == 0
    assert set(sizes) == {2}
    assert json.loads((tmp_path / "outcome.json").read_text())["hardware"]["chunk"] == 2


@pytest.mark.parametrize("prepare", [flops_of_training, settle])
def test_what_comes_before_training_has_advice_too(prepare: Callable[..., object]) -> None:
    def never(meta: Meta, tasks: Tasks, step: int) -> MetaGradient:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    experiment = tiny()
    short = replace(experiment, algorithm=experiment.algorithm._replace(meta_grad=never))
    with pytest.raises(MemoryExhaustedError, match="Tried to allocate 2 GiB"):
        prepare(short, experiment.initial())
