"""Threads side by side: the same gradient as a loop, the same bits every time, errors intact."""

from __future__ import annotations

import threading
import time

import pytest
import torch
from oracles import distance, image_tasks, maml, problem
from tiny import tiny

from metarun.numerics.chunks import in_chunks
from metarun.numerics.parallel import Workers


@pytest.mark.parametrize("model", ["mlp", "conv4-batch", "conv4-one_by_one", "resnet12"])
@pytest.mark.parametrize("estimator", ["adjoint", "unrolled", "first_order"])
def test_workers_give_the_loop_s_gradient_and_the_same_bits(model: str, estimator: str) -> None:
    on = problem(model)
    algorithm = maml(on, inner_lr=0.1, steps=2, estimator=estimator)
    assert algorithm.meta_grad is not None
    meta, tasks = algorithm.init(on.initial()), image_tasks(model, 8)
    alone, _ = in_chunks(algorithm.meta_grad, meta, tasks, 0, 2)
    for workers in map(Workers, (1, 2, 4, 4, 4, 4, 4)):
        together, _ = in_chunks(algorithm.meta_grad, meta, tasks, 0, 2, workers)
        assert distance(together.gradient, alone.gradient) == 0.0
        assert torch.equal(together.losses, alone.losses)


def test_a_model_shared_by_threads_would_be_caught() -> None:
    """The control: with one module for all threads, parameters leak between chunks."""
    on = problem("conv4-batch")
    object.__setattr__(on, "_copies", type("Shared", (), {"net": on.model})())
    algorithm = maml(on, inner_lr=0.1, steps=2, estimator="adjoint")
    assert algorithm.meta_grad is not None
    meta, tasks = algorithm.init(on.initial()), image_tasks("conv4-batch", 16)
    alone, _ = in_chunks(algorithm.meta_grad, meta, tasks, 0, 1)
    workers = Workers(8)
    for _ in range(50):
        try:
            together, _ = in_chunks(algorithm.meta_grad, meta, tasks, 0, 1, workers)
        except Exception:
            return
        if distance(together.gradient, alone.gradient) > 0:
            return
    pytest.fail("sharing a module between threads did no harm in 50 trials")


def test_results_come_in_order_and_few_items_are_drawn_ahead() -> None:
    drawn: list[int] = []

    def items():
        for item in range(20):
            drawn.append(item)
            yield item

    def slow_first(item: int) -> int:
        time.sleep(0.02 if item % 3 == 0 else 0.0)
        return item

    for expected, found in enumerate(Workers(3).map(slow_first, items())):
        assert found == expected
        assert len(drawn) <= found + 5


def test_an_error_in_a_thread_reaches_the_caller() -> None:
    def fail(item: int) -> int:
        if item == 2:
            raise torch.OutOfMemoryError("no room")
        return item

    with pytest.raises(torch.OutOfMemoryError, match="no room"):
        list(Workers(2).map(fail, range(5)))


def test_one_worker_starts_no_thread() -> None:
    before = threading.active_count()
    assert list(Workers(1).map(lambda item: threading.current_thread(), range(2)))
    assert threading.active_count() == before


def test_more_threads_than_cores_are_told_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1})
    for threads, said in ((2, 0), (99, 1), (99, 0)):
        tiny(f"hardware.threads={threads}")
        assert capsys.readouterr().err.count(f"hardware.threads: {threads} on 2 cores") == said
