"""Reduced precision: in the query's products alone, and never silently."""

from __future__ import annotations

from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Literal

import pytest
import torch
from tiny import FEW, tiny

from metarun import precision
from metarun.assemble import Experiment, assemble
from metarun.config import check, compose_job
from metarun.engine.batching import settle
from metarun.errors import ConfigError
from metarun.numerics.trees import apart
from metarun.paths import conf_dir
from metarun.precision import products, tensor_float
from metarun.problem import Meta

IMAGES = ("dataset=glyphs", "outer.batch=2", "task.queries=15", "hardware=cpu")
ROUNDED = "hardware.precision=bf16"
WAYS = ["auto", "vmap", "loop"]  # the first by kernels, where there is a compiler
SMALL = ("model=mlp", "model.hidden=[16]", "task.shots=2")
PRESETS = sorted(path.stem for path in (conf_dir() / "algo").glob("*.yaml"))
REFUSING = ("reptile", "es_maml")  # nothing in them is of the query alone


def images(*words: str) -> Experiment:
    return assemble(check(compose_job([*IMAGES, *words])), Path("no-data-needed"))


def gradient(experiment: Experiment, meta: Meta) -> Meta:
    assert experiment.algorithm.meta_grad is not None
    return experiment.algorithm.meta_grad(meta, experiment.batch(0), 0).gradient


@pytest.mark.parametrize("batching", WAYS)
def test_bf16_rounds_the_meta_gradient_and_no_more(batching: str) -> None:
    way = f"hardware.batching={batching}"
    full, rounded = images(way, "hardware.threads=1"), images(way, ROUNDED, "hardware.threads=1")
    meta = full.initial()
    exact = gradient(full, meta)
    found = gradient(rounded, meta)
    assert 1e-4 < apart(found, exact) < 0.05
    assert all(v.dtype == torch.float32 for params in found.values() for v in params.values())


@pytest.mark.parametrize("algo", PRESETS)
def test_every_preset_rounds_or_refuses(algo: str) -> None:
    words = (f"algo={algo}", *SMALL, *FEW.get(f"algo={algo}", []))
    full = images(*words)
    if algo in REFUSING:
        with pytest.raises(ConfigError, match=r"hardware\.precision: .*has no pass.*bf16"):
            images(*words, ROUNDED)
        return
    if full.algorithm.meta_grad is None:
        assert algo == "scratch"
        return
    meta = full.initial()
    assert 0 < apart(gradient(images(*words, ROUNDED), meta), gradient(full, meta)) < 0.5


def test_adaptation_and_evaluation_stay_in_full_precision() -> None:
    full, rounded = images("algo=maml"), images("algo=maml", ROUNDED)
    meta, task = full.initial(), full.batch(0)
    support = (task.support_x, task.support_y)
    for a, b in zip(
        full.algorithm.adapt(meta, *support, 2),
        rounded.algorithm.adapt(meta, *support, 2),
        strict=True,
    ):
        assert all(torch.equal(a[name], b[name]) for name in a)
    assert torch.equal(
        full.problem.predict(full.problem.initial(), support[0][0], task.query_x[0]),
        rounded.problem.predict(full.problem.initial(), support[0][0], task.query_x[0]),
    )


def test_the_inner_gradients_stay_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left when the query is not rounded is nothing: a control of the two above."""
    full, rounded = images("algo=maml"), images("algo=maml", ROUNDED)
    meta = full.initial()
    assert apart(gradient(rounded, meta), gradient(full, meta)) > 0

    def unrounded(precision: str, device: str) -> AbstractContextManager[None]:
        return products("full", device)

    monkeypatch.setattr("metarun.gradients.metagradient.products", unrounded)
    assert apart(gradient(rounded, meta), gradient(full, meta)) == 0


def test_the_check_of_batching_is_of_float64_whatever_is_rounded() -> None:
    experiment = images("algo=maml", ROUNDED, "hardware.threads=1")
    _, choice = settle(experiment, experiment.initial())
    assert choice.way == experiment.hardware.way
    assert choice.difference < 1e-10
    assert experiment.hardware.describe()["precision"] == "bf16"


def test_a_run_that_trains_nothing_claims_no_rounding() -> None:
    scratch = images("algo=scratch", ROUNDED, "hardware.threads=1")
    assert scratch.hardware.describe()["precision"] == "full"


def test_tf32_is_switched_on_for_the_query_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def keep(to: str) -> None:
        seen.append(to)

    monkeypatch.setattr(precision, "tensor_float", keep)
    with suppress(ZeroDivisionError), products("tf32", "cuda"):
        seen.append("inside")
        raise ZeroDivisionError
    assert seen == ["tf32", "inside", "ieee"]


def test_a_run_turns_off_what_torch_rounds_by_itself() -> None:
    tensor_float("tf32")
    try:
        tiny()
        assert torch.backends.cudnn.conv.fp32_precision == "ieee"  # pyright: ignore
        assert torch.backends.cuda.matmul.fp32_precision == "ieee"
    finally:
        tensor_float("ieee")


@pytest.mark.parametrize("to", ["tf32", "ieee"])
def test_torch_finds_no_contradiction_in_what_it_is_told(to: Literal["tf32", "ieee"]) -> None:
    """It asks its older switches too, such as in linear layers on GPUs; both must say the same."""
    torch.backends.cuda.matmul.fp32_precision = "ieee"  # as by others in the same process
    tensor_float(to)
    try:
        assert torch.backends.cuda.matmul.allow_tf32 is (to == "tf32")
        assert torch.backends.cudnn.allow_tf32 is (to == "tf32")
        assert torch.get_float32_matmul_precision() == ("high" if to == "tf32" else "highest")
        with torch.backends.cudnn.flags(enabled=True):  # as others save and restore them
            pass
    finally:
        tensor_float("ieee")


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("hardware.precision=tf32",), r"hardware\.precision: tf32 .*device is cpu.*bf16 or full"),
        ((ROUNDED, "hardware.dtype=float64"), r"hardware\.precision: bf16 .*precision=full"),
        ((ROUNDED, "algo=reptile"), r"algo=reptile has no pass .* bf16 .*precision=full"),
        ((ROUNDED, "algo=es_maml"), r"evolution strategies.* has no pass .*precision=full"),
        ((ROUNDED, "algo=clustered", "algo.estimator=unrolled"), r"unrolled has no pass"),
    ],
)
def test_what_cannot_be_is_refused(words: tuple[str, ...], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        tiny(*words)
