"""On a CPU, a meta-step that is one compiled graph is the meta-step that is called."""

from __future__ import annotations

import shutil
import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny import Log, tiny
from torch import Tensor
from torch._dynamo.utils import counters

from metarun.data.regression import RegressionSource
from metarun.engine import recorded
from metarun.engine.batching import settle
from metarun.engine.cost import Flops
from metarun.numerics import compiled
from metarun.numerics.chunks import map_meta
from metarun.numerics.compiled import NotCompiledError
from metarun.numerics.formulas import moved
from metarun.numerics.outer import OuterOptimizer
from metarun.settings.sections import Outer
from metarun.signals import Stop
from metarun.state import State
from metarun.tasks import Tasks
from metarun.train import train

COMPILER = any(map(shutil.which, ("c++", "g++", "clang++")))
COMPILED = pytest.mark.skipif(not COMPILER, reason="there is no C++ compiler")
PLAIN = Outer(
    optimizer="adam",
    lr=0.01,
    batch=4,
    schedule="cosine",
    lr_min=0.0,
    momentum=0.0,
    eps=1e-8,
    weight_decay=0.0,
    clip=None,
    on_divergence="raise",
    max_skips=10,
    diagnose=False,
)
OPTIMIZERS: list[dict[str, Any]] = [
    {"optimizer": "adam"},
    {"optimizer": "adam", "weight_decay": 0.1, "eps": 1e-3},
    {"optimizer": "adamw", "weight_decay": 0.1},
    {"optimizer": "sgd"},
    {"optimizer": "sgd", "momentum": 0.9, "weight_decay": 0.1},
    {"optimizer": "rmsprop"},
    {"optimizer": "rmsprop", "momentum": 0.9, "weight_decay": 0.1, "eps": 1e-3},
]


@pytest.mark.parametrize("settings", OPTIMIZERS, ids=str)
def test_formulas_are_torch_s(settings: dict[str, Any]) -> None:
    """Five steps at changing rates, values and moments; the first from moments of zeros."""
    outer = replace(PLAIN, **settings)
    generator = torch.Generator().manual_seed(0)
    value = torch.randn(7, dtype=torch.float64, generator=generator)
    optimizer = OuterOptimizer(outer, {"params": {"w": value.clone()}})
    gradients = torch.randn(5, 7, dtype=torch.float64, generator=generator)
    (moments,) = optimizer.moments_in_place({"params": {"w": gradients[0]}})
    assert torch.equal(optimizer.values[0], value)
    assert all(float(moment.abs().max()) == 0 for moment in moments.values())
    own: dict[str, Tensor] = {key: moment.clone() for key, moment in moments.items()}
    for step, gradient in enumerate(gradients):
        rate = 0.1 / (1 + step)
        optimizer.move({"params": {"w": gradient}}, rate)
        tensor = torch.tensor(rate, dtype=torch.float64)
        value, own = moved(outer, value, gradient, own, tensor)
        torch.testing.assert_close(value, optimizer.values[0], rtol=1e-13, atol=1e-15)
        there = optimizer.moments()
        assert {f"params/w/{key}" for key in own} == set(there)
        for key, moment in own.items():
            torch.testing.assert_close(moment, there[f"params/w/{key}"], rtol=1e-13, atol=1e-15)


def trained(*words: str) -> tuple[State, Log]:
    """Train in two parts, the second from what the first would have saved."""
    experiment, log, stop = tiny("budget.total=8", "hardware.dtype=float64", *words), Log(), Stop()
    state = State(experiment.initial())
    settled, _ = settle(experiment, state.meta)
    half = replace(settled, budget=replace(settled.budget, total=4))
    for part in (half, settled):
        state = train(part, replace(state), log, stop, Flops())
    return state, log


def said(log: Log) -> list[Any]:
    return [found["recorded"] for kind, _, found in log.records if kind == "recorded"]


def same(whole: State, called: State) -> None:
    """Check that two trainings ended alike, but for the last digits of float64."""
    counts = ("step", "clipped", "skipped", "dropped", "nonfinite")
    assert [getattr(whole, name) for name in counts] == [getattr(called, name) for name in counts]
    for group, params in called.meta.items():
        for name, value in params.items():
            torch.testing.assert_close(whole.meta[group][name], value, rtol=1e-8, atol=1e-10)
    assert set(whole.moments) == set(called.moments)
    for name, moment in called.moments.items():
        torch.testing.assert_close(whole.moments[name], moment, rtol=1e-7, atol=1e-10)


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run graphs operation by operation: what is traced is tested, not the compiler."""
    for module in (compiled, recorded):
        monkeypatch.setattr(module, "built", lambda graph, _: graph)


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize(
    "words",
    [
        ("algo=fomaml", "outer.optimizer=sgd", "outer.momentum=0.9", "outer.clip=0.5"),
        ("algo=metasgd",),
    ],
    ids=" ".join,
)
def test_whole_meta_steps_are_those_that_are_called(words: tuple[str, ...]) -> None:
    """In two parts, so that the second goes on from moments that were saved."""
    called, _ = trained(*words, "hardware.compile=false")
    whole, log = trained(*words, "hardware.compile=true")
    assert said(log) == ["yes", "yes"]
    same(whole, called)


@pytest.mark.usefixtures("uncompiled")
def test_a_batch_in_parts_calls_the_graph_without_a_word(
    capsys: pytest.CaptureFixture[str],
) -> None:
    called, _ = trained("algo=fomaml", "hardware.compile=false")
    parts, log = trained("algo=fomaml", "hardware.compile=true", "hardware.chunk=2")
    assert said(log) == ["a batch is more than the tasks at once"] * 2
    assert "hardware.compile" not in capsys.readouterr().err
    same(parts, called)


@COMPILED
@pytest.mark.slow
def test_compiled_meta_steps_are_those_that_are_called() -> None:
    """The second part's graph comes from the cache."""
    words = ("algo=clustered", "algo.warm_up=0", "outer.clip=0.5")
    before = counters["inductor"]["fxgraph_cache_hit"]
    called, _ = trained(*words, "hardware.compile=false")
    whole, log = trained(*words, "hardware.compile=true")
    assert said(log) == ["yes", "yes"]
    assert counters["inductor"]["fxgraph_cache_hit"] > before
    same(whole, called)


def poison(monkeypatch: pytest.MonkeyPatch, bad: int) -> None:
    """Make one training task not finite."""
    inner = RegressionSource.tasks

    def tasks(self: RegressionSource, split: Any, first: int, count: int, **shape: Any) -> Tasks:
        found = inner(self, split, first, count, **shape)
        if split == "train" and first <= bad < first + count:
            found.query_y[bad - first] = float("nan")
        return found

    monkeypatch.setattr(RegressionSource, "tasks", tasks)


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("policy", ["skip_step", "drop_tasks"])
def test_what_is_not_finite_moves_nothing_and_is_taken_again(
    policy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, 4 * 5 + 2)
    words = ("algo=maml", f"outer.on_divergence={policy}")
    called, _ = trained(*words, "hardware.compile=false")
    whole, log = trained(*words, "hardware.compile=true")
    assert said(log) == ["yes", "yes"]
    assert (called.skipped, called.dropped) == ((1, 0) if policy == "skip_step" else (0, 1))
    same(whole, called)


@pytest.mark.usefixtures("uncompiled")
def test_a_run_that_goes_on_decides_as_it_did_at_its_start() -> None:
    """It stands where no task is finite; and looking moves nothing, be it from elsewhere."""
    words = ("algo=maml", "hardware.compile=true", "outer.on_divergence=skip_step")
    experiment, log = tiny("budget.total=8", *words), Log()
    settled, _ = settle(experiment, experiment.initial())
    far = {"params": {n: v + 1e30 for n, v in experiment.initial()["params"].items()}}
    state = train(settled, State(map_meta(torch.clone, far)), log, Stop(), Flops())
    assert said(log) == ["yes"]
    assert state.skipped == 8
    assert all(torch.equal(value, far["params"][n]) for n, value in state.meta["params"].items())


@pytest.mark.parametrize("words", [(), ("outer.batch=1", "outer.on_divergence=drop_tasks")])
def test_without_a_compiler_it_runs_as_it_is(
    words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where the tasks of a batch that is not finite are looked at one by one."""

    def failing(*_: object) -> None:
        raise NotCompiledError("no C++ compiler")

    for module in (compiled, recorded):
        monkeypatch.setattr(module, "built", failing)
    if words:
        poison(monkeypatch, 5)
    called, _ = trained("algo=maml", *words, "hardware.compile=false")
    plain, log = trained("algo=maml", *words, "hardware.compile=true")
    assert said(log) == ["no C++ compiler"] * 2
    assert "hardware.compile: not recorded" in capsys.readouterr().err
    same(plain, called)


def test_torch_s_advice_on_tf32_is_not_passed_on(recwarn: pytest.WarningsRecorder) -> None:
    """`hardware.precision` decides it; on a GPU torch advises with every graph that it compiles."""
    with compiled.quiet():
        for text in ("TensorFloat32 tensor cores for float32 available but not enabled", "Other"):
            warnings.warn(text, UserWarning, stacklevel=1)
    assert [str(warning.message) for warning in recwarn] == ["Other"]


def off_by_a_thousandth(monkeypatch: pytest.MonkeyPatch, *steps: int) -> None:
    """Make the whole meta-step's gradient wrong at some meta-steps, or at all."""
    inner = recorded.on_cpu

    def off(step: Any, inputs: Any) -> Any:
        replay, index = inner(step, inputs), inputs[-3]

        def replayed() -> list[Tensor]:
            fine, norm, losses, *rest = replay()
            factor = 1.001 if not steps or int(index) in steps else 1.0
            return [fine, norm, losses, *(value * factor for value in rest)]

        return replayed

    monkeypatch.setitem(recorded.RECORDERS, "cpu", off)


@pytest.mark.usefixtures("uncompiled")
def test_a_step_that_is_wrong_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check against the meta-gradient that is called: a graph that is off by a thousandth."""
    off_by_a_thousandth(monkeypatch)
    _, log = trained("algo=maml", "hardware.compile=true")
    assert all("its meta-gradient is 1.0e-03 from the other's" in why for why in said(log))


@pytest.mark.usefixtures("uncompiled")
def test_a_kink_that_a_rounding_crosses_is_no_wrong_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """It turns a task's gradient by far more than roundings do, but not at every meta-step."""
    off_by_a_thousandth(monkeypatch, 1, 2)
    _, log = trained("algo=maml", "hardware.compile=true")
    assert said(log) == ["yes", "yes"]


@pytest.mark.usefixtures("uncompiled")
def test_what_is_rounded_need_not_be_rounded_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    off_by_a_thousandth(monkeypatch)
    rounded = "hardware.dtype=float32", "hardware.precision=bf16"
    _, log = trained("algo=maml", "hardware.compile=true", *rounded)
    assert said(log) == ["yes", "yes"]
