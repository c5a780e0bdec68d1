"""Sinusoids and multi-modal curves: the published families, drawn fairly and without state."""

from __future__ import annotations

import hashlib
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from metarun.data.multimodal import multimodal
from metarun.data.regression import RegressionSource
from metarun.data.sinusoid import sinusoid
from metarun.data.source import Source
from metarun.errors import ConfigError, DataError
from metarun.tasks import Tasks

FAMILIES = ("mmaml2", "mmaml3", "mmaml5", "hsml4")
SHAPE = {"ways": 1, "shots": 10, "queries": 7, "seed": 0}


def source_of(family: str, noise: float = 0.0, **other: bool) -> RegressionSource:
    if family == "sinusoid":
        return sinusoid(Path(), test_grid=other.get("test_grid", False))
    keys = {"test_noise": False, "test_grid": False} | other
    return multimodal(Path(), family=family, noise=noise, **keys)


def equal(a: Tasks, b: Tasks) -> bool:
    return all(torch.equal(getattr(a, f), getattr(b, f)) for f in Tasks.__slots__)


@pytest.mark.parametrize("family", ["sinusoid", *FAMILIES])
def test_shapes_are_those_of_regression(family: str):
    source: Source = source_of(family)
    assert (source.kind, source.features, source.targets) == ("regression", (1,), 1)
    tasks = source.tasks("train", 3, 6, **SHAPE)
    assert tasks.support_x.shape == tasks.support_y.shape == (6, 10, 1)
    assert tasks.query_x.shape == tasks.query_y.shape == (6, 7, 1)
    assert tasks.support_x.dtype == tasks.query_y.dtype == torch.float32
    assert tasks.mode.tolist() == [i % len(source.modes) for i in range(3, 9)]
    x, y = source.examples(0, 9, seed=0)
    assert x.shape == y.shape == (9, 1)


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(["sinusoid", *FAMILIES]),
    st.sampled_from(["train", "validation", "test"]),
    st.integers(0, 10**9),
    st.integers(1, 9),
)
def test_chunks_are_parts_of_the_whole(family: str, split: str, first: int, size: int):
    source = source_of(family, noise=0.3, test_grid=True, test_noise=True)
    whole = source.tasks(split, first, 20, **SHAPE)
    for start in range(0, 20, size):
        count = min(size, 20 - start)
        part = source.tasks(split, first + start, count, **SHAPE)
        assert equal(part, whole[start : start + count])
    assert torch.equal(
        source.examples(first + 3, 4, seed=1)[1], source.examples(first, 7, seed=1)[1][3:]
    )


def by_integers(key: tuple[int | str, ...], task: int, place: int) -> float:
    """SplitMix64's output number `place` of the stream that its output number `task` seeds."""
    state = int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=8).digest(), "little")
    for coordinate in (task, place):
        word = (state + (coordinate + 1) * 0x9E3779B97F4A7C15) % 2**64
        word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        word = (word ^ (word >> 27)) * 0x94D049BB133111EB % 2**64
        state = word ^ (word >> 31)
    return (state >> 11) / 2**53


@pytest.mark.parametrize("first", [0, 10**12])
def test_what_seeds_give_is_what_they_gave(first: int):
    """Results on record name their tasks by seeds, so the numbers behind a seed are fixed."""
    tasks = source_of("sinusoid").tasks("train", first, 3, **SHAPE)
    for row, task in enumerate(range(first, first + 3)):
        low_high = ((0.1, 5.0), (0.0, math.pi))
        amplitude, phase = (
            low + (high - low) * by_integers((0, "train", "curve"), task, place)
            for place, (low, high) in enumerate(low_high)
        )
        for part, x, y in (
            ("support", tasks.support_x, tasks.support_y),
            ("query", tasks.query_x, tasks.query_y),
        ):
            key = (0, "train", part, "x")
            exact = [-5.0 + 10.0 * by_integers(key, task, place) for place in range(x.shape[1])]
            assert x[row, :, 0].tolist() == torch.tensor(exact).tolist()
            curve = [amplitude * math.sin(place - phase) for place in exact]
            assert y[row, :, 0].tolist() == pytest.approx(curve, abs=1e-6)


def test_more_queries_leave_the_support_alone():
    source = source_of("mmaml5", noise=0.3)
    few = source.tasks("train", 0, 5, **SHAPE)
    many = source.tasks("train", 0, 5, **(SHAPE | {"queries": 50, "shots": 10}))
    assert torch.equal(few.support_y, many.support_y)
    assert torch.equal(few.query_y, many.query_y[:, :7])


def test_splits_and_seeds_have_curves_of_their_own():
    source = source_of("sinusoid")
    seen = {
        tasks.support_y.numpy().tobytes()
        for split in ("train", "validation", "test")
        for seed in range(3)
        for tasks in source.tasks(split, 0, 20, **(SHAPE | {"seed": seed})).chunks(1)
    }
    assert len(seen) == 3 * 3 * 20
    slopes = [
        coefficients(source_of("mmaml2").tasks(split, 0, 20, **SHAPE), 1, 1)[:, 0]
        for split in ("train", "validation", "test")
    ]
    assert len(torch.cat(slopes).round(decimals=3).unique()) == 30


def test_support_and_query_lie_at_different_places():
    tasks = source_of("sinusoid").tasks("train", 0, 2000, **SHAPE)
    for x in (tasks.support_x, tasks.query_x):
        assert stats.kstest(x.flatten().numpy(), stats.uniform(-5, 10).cdf).pvalue > 1e-3
    assert stats.pearsonr(tasks.support_x[:, 0, 0], tasks.query_x[:, 0, 0]).pvalue > 1e-3
    assert not torch.isin(tasks.query_x[:50], tasks.support_x[:50]).any()


def test_sinusoids_have_the_published_amplitudes_and_phases():
    tasks = source_of("sinusoid").tasks("train", 0, 2000, **SHAPE)
    x, y = tasks.support_x[..., 0].double(), tasks.support_y[..., 0].double()
    basis = torch.stack([x.sin(), -x.cos()], -1)  # A cos p sin x - A sin p cos x
    (a, b) = torch.linalg.lstsq(basis, y[..., None]).solution[..., 0].T
    assert (basis @ torch.stack([a, b], 1)[..., None])[..., 0].sub(y).abs().max() < 1e-4
    amplitude, phase = torch.hypot(a, b), torch.atan2(b, a)
    assert stats.kstest(amplitude.numpy(), stats.uniform(0.1, 4.9).cdf).pvalue > 1e-3
    assert stats.kstest(phase.numpy(), stats.uniform(0, math.pi).cdf).pvalue > 1e-3


def coefficients(tasks: Tasks, mode: int, degree: int) -> torch.Tensor:
    """Fit polynomials to the tasks of a mode; highest power first, [tasks, degree + 1]."""
    mine = tasks[tasks.mode == mode]
    x, y = mine.support_x[..., 0].double(), mine.support_y.double()
    basis = torch.stack([x**power for power in range(degree, -1, -1)], -1)
    found = torch.linalg.lstsq(basis, y).solution
    assert (basis @ found - y).abs().max() < 1e-3
    return found[..., 0]


def test_multimodal_parameters_are_uniform_in_the_published_ranges():
    mmaml = source_of("mmaml3").tasks("train", 0, 6000, **SHAPE)
    hsml = source_of("hsml4").tasks("train", 0, 8000, **SHAPE)
    slope, offset = coefficients(mmaml, 1, 1).T
    square, tilt, height = coefficients(mmaml, 2, 2).T
    centre = -tilt / (2 * square)
    drawn = [
        (slope, -3, 3),
        (offset, -3, 3),
        (square.abs(), 0.02, 0.15),
        (centre, -3, 3),
        (height - square * centre**2, -3, 3),
        *zip(coefficients(hsml, 2, 2).T, (-0.2, -2, -3), (0.2, 2, 3), strict=True),
        *zip(coefficients(hsml, 3, 3).T, (-0.1, -0.2, -2, -3), (0.1, 0.2, 2, 3), strict=True),
    ]
    for values, low, high in drawn:
        assert stats.kstest(values.numpy(), stats.uniform(low, high - low).cdf).pvalue > 1e-3
    assert 0.4 < (square > 0).double().mean() < 0.6


def by_hand(family: str, mode: str, x: float, p: list[float]) -> float:
    """The formulas of both papers, once more."""
    if mode == "sinusoid":
        return p[0] * math.sin(p[1] * x) + p[2] if family == "hsml4" else p[0] * math.sin(x - p[1])
    if mode == "linear":
        return p[0] * x + p[1]
    if mode == "quadratic" and family == "hsml4":
        return p[0] * x**2 + p[1] * x + p[2]
    if mode == "quadratic":
        return math.copysign(p[0], p[1]) * (x - p[2]) ** 2 + p[3]
    if mode == "cubic":
        return p[0] * x**3 + p[1] * x**2 + p[2] * x + p[3]
    return p[0] * (math.tanh(x - p[1]) if mode == "tanh" else abs(x - p[1])) + p[2]


@pytest.mark.parametrize("family", FAMILIES)
def test_curves_are_the_published_ones(family: str):
    for form in source_of(family).families:
        p = [low + (high - low) * 0.37 for low, high in form.ranges]
        for x in (-4.5, -1.0, 0.0, 2.25):
            found = form.curve(torch.tensor([[x]]).double(), *(torch.tensor([[v]]) for v in p))
            assert float(found) == pytest.approx(by_hand(family, form.name, x, p), abs=1e-6)


def test_noise_is_where_it_should_be():
    shape = SHAPE | {"queries": 400}
    for split, test_noise in (("train", False), ("test", False), ("test", True)):
        clean = source_of("mmaml3").tasks(split, 0, 60, **shape)
        noisy = source_of("mmaml3", noise=0.3, test_noise=test_noise).tasks(split, 0, 60, **shape)
        assert torch.equal(clean.support_x, noisy.support_x)
        support = (noisy.support_y - clean.support_y).flatten() / 0.3
        query = (noisy.query_y - clean.query_y).flatten() / 0.3
        assert stats.kstest(support.numpy(), "norm").pvalue > 1e-3
        if split == "train" or test_noise:
            assert stats.kstest(query.numpy(), "norm").pvalue > 1e-3
        else:
            assert (query == 0).all()


def test_the_grid_is_even_and_for_test_alone():
    source = source_of("sinusoid", test_grid=True)
    test = source.tasks("test", 0, 3, **(SHAPE | {"queries": 101}))
    assert torch.allclose(test.query_x[1, :, 0], torch.linspace(-5, 5, 101), atol=1e-6)
    train = source.tasks("train", 0, 3, **(SHAPE | {"queries": 101}))
    assert not torch.equal(train.query_x[0], train.query_x[1])


def test_examples_pool_all_modes():
    x, y = source_of("mmaml5", noise=0.3).examples(0, 5000, seed=0)
    assert stats.kstest(x[:, 0].numpy(), stats.uniform(-5, 10).cdf).pvalue > 1e-3
    spread = [float(y[mode::5].std()) for mode in range(5)]
    assert min(spread) > 1
    assert not torch.equal(y, source_of("mmaml5", noise=0.3).examples(0, 5000, seed=1)[1])


def test_a_batch_says_which_of_its_tensors_has_other_tasks():
    tasks = source_of("sinusoid").tasks("train", 0, 3, **SHAPE)
    with pytest.raises(DataError, match=r"disagree.*'support_y': 3, 'query_x': 2, 'query_y': 3"):
        replace(tasks, query_x=tasks.query_x[:2])


def test_ways_are_refused():
    with pytest.raises(ConfigError, match=r"^task\.ways=5: .*set task\.ways=1"):
        source_of("sinusoid").check(ways=5, shots=1, queries=1)
    source_of("sinusoid").check(ways=1, shots=500, queries=1)
