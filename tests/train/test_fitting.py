"""How many tasks at once fit into memory: the rule, what it reads, and what a run makes of it."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from children import kill, python
from tiny import tiny, tiny_config

from metarun.engine import fitting
from metarun.engine.batching import settle
from metarun.engine.fitting import PART, fit, free_memory, left_in_groups
from metarun.numerics.chunks import in_chunks
from metarun.numerics.trees import apart
from metarun.records import read
from metarun.run import run_job

pytestmark = pytest.mark.usefixtures("undrawn")

CPU = torch.device("cpu")
MIB = 2**20
MEASURED = """
import torch
from metarun.engine import fitting
cpu = torch.device("cpu")
meter = fitting._meter(cpu)
print(1024 * fitting._field(fitting.Path("/proc/self/status"), "VmRSS:"))
for size in (64, 256):
    print(meter(lambda: torch.ones(size * 2**18)))
print(meter(lambda: None), fitting.peak_memory_bytes(cpu))
"""


def pretended(monkeypatch: pytest.MonkeyPatch, free: int, base: int, a_task: int) -> list[int]:
    """Let so much memory be free and tasks need so much; return the list of sizes tried."""
    tried: list[int] = []

    def meter(device: torch.device):
        def measure(call):
            call()
            return base + a_task * tried[-1]

        return measure

    monkeypatch.setattr(fitting, "free_memory", lambda device: free)
    monkeypatch.setattr(fitting, "_meter", meter)
    return tried


def test_what_is_chosen_fits_and_nothing_is_tried_that_would_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    numbers = random.Random(0)
    halved = 0
    for _ in range(500):
        base, a_task = numbers.randrange(50), numbers.randrange(1, 100)
        chunk, workers = numbers.randrange(1, 130), numbers.randrange(1, 5)
        free = numbers.randrange(2 * (base + a_task), 20_000)
        tried = pretended(monkeypatch, free, base, a_task)
        found = fit(tried.append, chunk, workers, CPU)

        def needs(size: int, base: int = base, a_task: int = a_task) -> int:
            return base + size * a_task

        assert found.chunk <= chunk
        assert needs(found.chunk) * found.workers <= PART * free
        assert needs(tried[-1]) <= PART * free
        if needs(chunk) * workers <= PART * free:
            assert (found.chunk, found.workers) == (chunk, workers)
            assert len(tried) <= 2, "the usual case costs two attempts"
        else:
            halved += 1
            more = needs(min(2 * found.chunk, chunk)) * workers
            if len(tried) == 1:  # no base is known, so two may take twice what one took
                more = 2 * needs(1)
            assert more > PART * free
    assert 100 < halved < 400


def test_processes_share_the_memory_of_a_cpu_and_not_of_gpus(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for device, fitting_tasks in ((CPU, 8), (torch.device("cuda"), 32)):
        tried = pretended(monkeypatch, int(33 / PART), base=0, a_task=1)
        assert fit(tried.append, 32, 1, device, processes=4).chunk == fitting_tasks


def test_what_a_gpu_s_libraries_keep_is_not_taken_for_a_task_s(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It would make one task look dearer than two, and so a task more look free."""
    held, peak, calls = 0, 0, list[int]()

    def attempt(size: int) -> None:
        nonlocal held, peak
        held += 0 if calls else 64 * MIB
        calls.append(size)
        peak = max(peak, held + size * 40 * MIB)

    def forget(device: torch.device) -> None:
        nonlocal peak
        peak = held

    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: held)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: held)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: peak)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", forget)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000 * MIB, 2000 * MIB))
    found = fit(attempt, 32, 1, torch.device("cuda"))
    assert found.tried == {1: 40 * MIB, 2: 80 * MIB, 4: 160 * MIB, 8: 320 * MIB, 16: 640 * MIB}
    assert found.chunk == 16, "32 would take 1280 MiB of 800"


def test_what_a_call_needs_is_measured() -> None:
    """In a fresh process: what one has let go of and kept is taken again without a need."""
    process = python("-W", "ignore", "-c", MEASURED)
    try:
        out, err = process.communicate(timeout=100)
    finally:
        kill(process)
    assert process.returncode == 0, err
    begun, small, large, none, peak = (int(word) / MIB for word in out.split())
    assert 0.95 * 64 < small < 1.1 * 64 + 16
    assert 0.95 * 256 < large < 1.1 * 256 + 16
    assert none < 16, "what was let go of is not counted again"
    assert peak > begun + 0.95 * 256, "nor is it forgotten where a run's peak is told"


def test_a_job_has_what_its_control_groups_leave_it(tmp_path: Path) -> None:
    job = tmp_path / "slurm" / "job_7"
    job.mkdir(parents=True)

    def group(folder: Path, limit: str, used: int, cached: int) -> None:
        (folder / "memory.max").write_text(f"{limit}\n")
        (folder / "memory.current").write_text(f"{used}\n")
        (folder / "memory.stat").write_text(f"anon 5\ninactive_file {cached}\nslab 3\n")

    group(tmp_path, "max", 900, 0)
    group(tmp_path / "slurm", "1000", 700, 50)
    group(job, "600", 400, 20)
    places = {"": (str(tmp_path), "memory.max", "memory.current", "inactive_file")}
    mine = "4:memory:/elsewhere\n0::/slurm/job_7\n"
    assert sorted(left_in_groups(mine, places)) == [220, 350]
    assert 0 < (free_memory(CPU) or 0) < 2**50


def test_a_run_takes_fewer_tasks_at_once_and_goes_on_with_as_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("algo=maml", "outer.batch=16", "budget.total=4", "checkpoints.every=2")
    tried = pretended(monkeypatch, free=100 * MIB, base=0, a_task=15 * MIB)

    def noted(*given):
        tried.append(len(given[2]))
        return in_chunks(*given)

    monkeypatch.setattr("metarun.engine.batching.in_chunks", noted)
    assert run_job(tiny_config(*words), tmp_path / "run") == 0
    said = capsys.readouterr().err
    assert "hardware.chunk: 16 tasks at once in 1 thread(s) do not fit into memory" in said
    assert "running 4 in 1" in said
    assert tried[:3] == [1, 2, 4]
    (record,) = (r for r in read(tmp_path / "run") if r["kind"] == "batching")
    assert (record["chunk"], record["short"]) == (4, True)
    assert "4 at once 60 MiB, and 100 MiB are free" in record["memory"]

    tried.clear()
    monkeypatch.setattr(fitting, "free_memory", lambda device: 2**40)
    config = tiny_config(*words, "budget.total=4")
    (tmp_path / "run" / "outcome.json").unlink()
    assert run_job(config, tmp_path / "run") == 0
    assert tried[0] == 2, "only the check against the loop, with two tasks: nothing is tried"
    record = [r for r in read(tmp_path / "run") if r["kind"] == "batching"][-1]
    assert (record["chunk"], record["short"]) == (4, False)


def test_fewer_at_once_are_the_same_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("algo=maml", "outer.batch=16", "hardware.dtype=float64")
    experiment = tiny(*words)
    meta, tasks = experiment.initial(), experiment.batch(0)
    pretended(monkeypatch, free=100, base=0, a_task=15)
    monkeypatch.setattr(fitting, "_meter", lambda device: lambda call: 15 * (call() or 1))
    found = []
    monkeypatch.setattr(
        "metarun.engine.batching.fit", lambda attempt, *rest: fit(lambda n: attempt(n) or n, *rest)
    )
    for one in (experiment, settle(experiment, meta)[0]):
        assert one.algorithm.meta_grad is not None
        chunk = one.tasks_at_once()
        found.append((chunk, in_chunks(one.algorithm.meta_grad, meta, tasks, 0, chunk)[0]))
    (whole, plain), (few, chunked) = found
    assert whole >= 16 > few == 4
    assert apart(plain.gradient, chunked.gradient) < 1e-14


def test_settings_decide_where_they_are_given(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = pretended(monkeypatch, free=100, base=0, a_task=15)
    experiment = tiny("algo=maml", "outer.batch=16", "hardware.chunk=8")
    settled, choice = settle(experiment, experiment.initial())
    assert (settled.tasks_at_once(), choice.memory, tried) == (8, "", [])
