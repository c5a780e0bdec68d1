"""How a batch of tasks is run: every way gives the loop's gradient, and a wrong one is not used."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch._inductor
from tiny import tiny, tiny_config
from torch._inductor.runtime.cache_dir_utils import default_cache_dir

from metarun.assemble import Experiment, assemble
from metarun.config import check, compose_job
from metarun.engine import batching
from metarun.engine.batching import settle
from metarun.engine.cost import flops_of_training
from metarun.errors import ConfigError
from metarun.files import code_cache
from metarun.gradients.metagradient import MetaGrad, MetaGradient
from metarun.numerics.compiled import Graph, NotCompiledError
from metarun.numerics.trees import apart
from metarun.problem import Meta
from metarun.records import read
from metarun.run import run_job
from metarun.tasks import Tasks

COMPILER = any(map(shutil.which, ("cc", "gcc", "clang")))
SLOW_IMAML = pytest.param("imaml", marks=pytest.mark.slow)
KERNELS = pytest.mark.skipif(not COMPILER, reason="no C compiler")  # one that fails is no excuse
IMAGES = (
    "dataset=glyphs",
    "model.filters=16",
    "outer.batch=4",
    "task.queries=2",
    "hardware=cpu",
    "hardware.threads=1",
)


def images(*overrides: str) -> Experiment:
    return assemble(check(compose_job([*IMAGES, *overrides])), Path("no-data-needed"))


def gradient(experiment: Experiment, meta: Meta) -> Meta:
    assert experiment.algorithm.meta_grad is not None
    return experiment.algorithm.meta_grad(meta, experiment.batch(0), 0).gradient


@KERNELS
@pytest.mark.parametrize("algo", ["maml", "anil", "protomaml", SLOW_IMAML])
def test_auto_takes_the_kernels_and_agrees_with_the_loop(algo: str) -> None:
    fast, plain = images(f"algo={algo}"), images(f"algo={algo}", "hardware.batching=loop")
    meta = plain.initial()
    settled, choice = settle(fast, meta)
    assert (choice.way, settled.hardware.way) == ("batched", "batched")
    assert choice.difference <= choice.tolerance
    assert choice.difference > 0, "the kernels were not used: floats never agree to the last bit"
    assert choice.tolerance == 1e-6
    assert settle(plain, meta)[1].way == "loop"
    off = apart(gradient(settled, meta), gradient(plain, meta))
    assert off <= 1e-4


@KERNELS
def test_operations_are_counted_whoever_carries_them_out() -> None:
    fast, plain = images("algo=maml"), images("algo=maml", "hardware.batching=vmap")
    meta = plain.initial()
    found = flops_of_training(fast, meta)
    assert found == flops_of_training(plain, meta)
    assert found.until(1) > 1e6
    assert fast.hardware.way == "batched"
    assert apart(gradient(fast, meta), gradient(plain, meta)) > 0, "kernels are off"


def test_operations_are_counted_where_a_graph_is_of_one_task(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is compiled hides its products from the counter, and no operation would be no budget."""

    def never(*_: object) -> None:
        raise AssertionError("the graph was built")

    monkeypatch.setattr("metarun.numerics.compiled.built", never)
    plain = tiny("algo=maml")
    meta, meta_grad = plain.initial(), plain.algorithm.meta_grad
    assert meta_grad is not None
    graph = Graph(meta_grad, meta, plain.batch(0)[:1])
    compiled = replace(plain, algorithm=plain.algorithm._replace(meta_grad=graph))
    found = flops_of_training(compiled, meta)
    assert found == flops_of_training(plain, meta)
    assert found.until(1) > 0


def test_without_a_compiler_torch_does_the_work(monkeypatch) -> None:
    monkeypatch.setattr("metarun.hardware.why_not", lambda: "there is no C compiler")
    found = images("algo=maml")
    assert found.hardware.way == "vmap"
    assert found.hardware.reason == "there is no C compiler"
    with pytest.raises(ConfigError, match=r"hardware\.batching=batched: there is no C compiler"):
        images("algo=maml", "hardware.batching=batched")


def test_kernels_are_not_for_what_they_do_not_know() -> None:
    for words in (["model.norm=group"], ["model.activation=tanh"], ["algo=adapters"]):
        assert images(*words).hardware.way == "vmap", words
    assert images("hardware.compile=true").hardware.way == "vmap", "a tracer does not see them"
    for words in (["model.norm=layer"], ["hardware.compile=true"]):
        with pytest.raises(ConfigError, match=r"hardware\.batching=batched: .*use hardware"):
            images(*words, "hardware.batching=batched")


def wrong(meta_grad: MetaGrad) -> MetaGrad:
    """Return a meta-gradient that mixes the tasks of a batch up."""

    def mixing(meta: Meta, tasks: Tasks, step: int) -> MetaGradient:
        found = meta_grad(meta, tasks, step)
        by = 1.0001 if len(tasks) > 1 else 1.0
        grown = {g: {n: v * by for n, v in params.items()} for g, params in found.gradient.items()}
        return found._replace(gradient=grown)

    return mixing


@pytest.mark.parametrize("steps", [2, 40], ids=["short-loop", "long-loop"])
def test_a_way_that_is_not_the_loop_s_is_refused(steps: int, capsys) -> None:
    """Off by one in ten thousand, also where float32 turns roundings into larger differences."""
    experiment = tiny("algo=maml", "algo.inner_lr=0.1", f"algo.steps={steps}")
    algorithm = experiment.algorithm
    assert algorithm.meta_grad is not None
    broken = batching.replace(
        experiment, algorithm=algorithm._replace(meta_grad=wrong(algorithm.meta_grad))
    )
    settled, choice = settle(broken, experiment.initial())
    assert (choice.way, choice.chunk, settled.hardware.way) == ("loop", 1, "loop")
    assert "running the plain loop" in capsys.readouterr().err


def test_tuning_is_measured_once_and_remembered(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    experiment = tiny("algo=maml", "hardware.batching=tune")
    _, first = settle(experiment, experiment.initial())
    assert first.reason.endswith("measured")
    assert {name.split()[0] for name in first.seconds} == {"loop", "vmap"}
    assert f"{first.way} {first.chunk}" == min(first.seconds, key=lambda k: first.seconds[k])
    _, again = settle(experiment, experiment.initial())
    assert "earlier" in again.reason
    assert again.seconds == first.seconds
    (key,) = json.loads((tmp_path / "metarun" / "batching.json").read_text())
    assert torch.__version__ in key


def test_the_choice_is_on_record(tmp_path: Path) -> None:
    assert run_job(tiny_config("algo=maml"), tmp_path / "run") == 0
    (said,) = (record for record in read(tmp_path / "run") if record["kind"] == "batching")
    assert said["way"] == "vmap"
    assert "conv4" in said["reason"]
    assert said["difference"] <= said["tolerance"]
    assert said["compiled"] == "would not pay"
    assert said["compile_seconds"] == 0.0


@pytest.mark.parametrize(
    ("words", "graph"),
    [
        ((), True),
        (("budget.unit=seconds", "budget.total=300"), True),
        (("budget.total=19999",), False),
        (("budget.unit=seconds", "budget.total=299"), False),
        (("budget.unit=flops", "budget.total=1e15"), False),
        (("model.hidden=[400,400]",), False),
        (("outer.batch=10000",), False),
        (("hardware.batching=vmap",), False),
        (("hardware.compile=false",), False),
        (("hardware.compile=true", "budget.total=1"), True),
    ],
)
def test_a_graph_is_for_small_perceptrons_and_long_training(
    words: tuple[str, ...], graph: bool
) -> None:
    assert tiny("budget.total=20000", *words).hardware.graph is graph


def test_a_small_network_of_convolutions_is_no_perceptron() -> None:
    small = ("model.filters=1", "outer.batch=1", "budget.total=20000")
    assert not images(*small).hardware.graph
    assert images(*small, "hardware.compile=true").hardware.graph


def test_what_would_pay_and_cannot_be_runs_as_it_is_without_a_word(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment = tiny("algo=imaml", "algo.steps=1", "budget.total=20000")
    assert experiment.hardware.graph
    settled, choice = settle(experiment, experiment.initial())
    assert "it looks at numbers on the way" in choice.compiled
    assert settled.algorithm is experiment.algorithm
    assert not capsys.readouterr().err
    asked = tiny("algo=imaml", "algo.steps=1", "hardware.compile=true")
    settle(asked, asked.initial())
    assert "hardware.compile" in capsys.readouterr().err


def test_what_the_compiler_does_not_see_is_not_given_up_for_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """TF32 is switched on around a pass, and a graph has its operations alone."""
    plain = tiny("algo=maml", "hardware.compile=true", "hardware.chunk=2")
    rounded = replace(plain, hardware=replace(plain.hardware, precision="tf32"))
    settled, choice = settle(rounded, plain.initial())
    assert choice.compiled == "the compiler does not see tf32"
    assert settled.algorithm is rounded.algorithm
    assert "hardware.compile: the compiler does not see tf32" in capsys.readouterr().err


@pytest.mark.slow
def test_one_graph_gives_the_same_and_other_shapes_run_as_they_are() -> None:
    experiment = tiny("algo=fomaml", "hardware.compile=true", "hardware.chunk=2")
    meta = experiment.initial()
    settled, choice = settle(experiment, meta)
    assert choice.compiled == "yes"
    assert choice.compile_seconds > 0.1
    assert 0 <= choice.difference <= choice.tolerance
    plain, fast = experiment.algorithm.meta_grad, settled.algorithm.meta_grad
    assert plain is not None
    assert fast is not None
    for tasks in (experiment.batch(3)[:2], experiment.batch(3)[:3]):
        found, wanted = fast(meta, tasks, 3), plain(meta, tasks, 3)
        assert apart(found.gradient, wanted.gradient) < 1e-5
        torch.testing.assert_close(found.losses, wanted.losses)
        torch.testing.assert_close(found.shift, wanted.shift)


def test_what_depends_on_the_meta_step_or_on_numbers_is_not_compiled() -> None:
    experiment = tiny("algo=maml")
    meta, tasks = experiment.initial(), experiment.batch(0)
    plain = experiment.algorithm.meta_grad
    assert plain is not None

    def aging(meta: Meta, tasks: Tasks, step: int) -> MetaGradient:
        found = plain(meta, tasks, step)
        return found._replace(losses=found.losses / (1 + step))

    def annealed(meta: Meta, tasks: Tasks, step: int) -> MetaGradient:
        found = plain(meta, tasks, step)
        return found._replace(losses=found.losses * torch.tensor([1.0 if step < 100 else 0.5]))

    def looking(meta: Meta, tasks: Tasks, step: int) -> MetaGradient:
        found = plain(meta, tasks, step)
        return found if bool(found.losses.mean() > 0) else found._replace(losses=-found.losses)

    for function in (aging, annealed):
        with pytest.raises(NotCompiledError, match="it depends on the meta-step"):
            Graph(function, meta, tasks)
    with pytest.raises(NotCompiledError, match="it looks at numbers on the way"):
        Graph(looking, meta, tasks)


@pytest.mark.parametrize("named", [False, True])
def test_what_is_built_is_kept_where_nobody_else_can_put_anything(
    named: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Torch's own folder is below /tmp, and it names that one as soon as it is imported."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    there = str(tmp_path / "named") if named else default_cache_dir()
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", there)
    monkeypatch.setattr(torch._inductor, "compile", lambda graph, inputs: graph)
    experiment = tiny("algo=maml")
    meta, tasks, plain = experiment.initial(), experiment.batch(0), experiment.algorithm.meta_grad
    assert plain is not None
    Graph(plain, meta, tasks)(meta, tasks, 0)
    wanted = there if named else str(code_cache() / "inductor")
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == wanted


@KERNELS
def test_many_queries_leave_a_chunk_for_every_core() -> None:
    """They are taken task by task: supports alone decide how many tasks run together."""
    few = images("algo=maml", "outer.batch=32", "task.queries=1", "hardware.threads=2")
    many = images("algo=maml", "outer.batch=32", "task.queries=15", "hardware.threads=2")
    assert few.tasks_at_once() == many.tasks_at_once() == 16
    assert images("outer.batch=32", "task.queries=15", "hardware.batching=vmap").tasks_at_once() < 8
