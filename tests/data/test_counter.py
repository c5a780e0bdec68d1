"""The counter-based generator: a published reference, statistics, and a control that fails them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from metarun.data.counter import GOLDEN, bits, integers, normal, smallest, uniform

N = 40_000
WORD = 2**64
Draw = Callable[[int, Tensor, Tensor], Tensor]  # seed, task, position -> 64 bits


def ours(seed: int, task: Tensor, position: Tensor) -> Tensor:
    return bits((seed, "train", "class"), task, position)


def weak(seed: int, task: Tensor, position: Tensor) -> Tensor:
    """The control: a stride for each coordinate, and no mixing."""
    return (seed + task * GOLDEN + position * 6364136223846793005) * 2862933555777941757


def splitmix64(seed: int) -> Iterator[int]:
    """Steele et al., 2014, in plain integers."""
    while True:
        seed = (seed + 0x9E3779B97F4A7C15) % WORD
        word = ((seed ^ (seed >> 30)) * 0xBF58476D1CE4E5B9) % WORD
        word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) % WORD
        yield word ^ (word >> 31)


def test_one_coordinate_walks_the_published_stream():
    reference = splitmix64(0)
    assert next(reference) == 0xE220A8397B1DCDAF  # as published for seed 0
    assert next(reference) == 0x6E789E6AA1B965F4
    digest = hashlib.blake2b(repr((7, "train")).encode(), digest_size=8).digest()
    expected = splitmix64(int.from_bytes(digest, "little"))
    for value in bits((7, "train"), torch.arange(1000)).tolist():
        assert value % WORD == next(expected)


@given(
    st.lists(st.integers(0, 2**40), min_size=1, max_size=30),
    st.lists(st.integers(0, 2**40), min_size=1, max_size=30),
    st.integers(0, 2**63),
)
def test_a_draw_does_not_depend_on_its_company(rows: list[int], columns: list[int], seed: int):
    table = bits((seed, "a"), torch.tensor(rows)[:, None], torch.tensor(columns))
    row, column = len(rows) // 2, len(columns) - 1
    alone = bits((seed, "a"), torch.tensor(rows[row]), torch.tensor([columns[column]]))
    assert table[row, column] == alone


def test_keys_and_coordinates_are_told_apart():
    keys = [(0,), (1,), ("0",), (0, "train"), ("train", 0), (0, "test"), (0, 1), (1, 0)]
    found = {
        int(bits(key, torch.tensor(i), torch.tensor(j)))
        for key in keys
        for i in range(9)
        for j in range(9)
    }
    assert len(found) == len(keys) * 81


def p_values(draw: Draw) -> dict[str, float]:
    """The chance that a perfect generator does worse, by test."""
    counter, zero = torch.arange(N), torch.zeros(1, dtype=torch.long)
    base = draw(0, counter, zero)
    return {
        "high bits": chi_square(base, 56, 256),
        "low bits": chi_square(base, 0, 256),
        "next task": joint(base[:-1], base[1:]),
        "next position": joint(base, draw(0, counter, zero + 1)),
        "next seed": joint(base, draw(1, counter, zero)),
        "swapped": joint(draw(0, counter, zero + 3), draw(0, zero + 3, counter)),
        "avalanche": avalanche(draw),
    }


def chi_square(words: Tensor, shift: int, bins: int) -> float:
    counts = ((words >> shift) & (bins - 1)).bincount(minlength=bins)
    return float(stats.chisquare(counts.numpy()).pvalue)


def joint(a: Tensor, b: Tensor) -> float:
    """Are the top four bits of two streams independent, and uniform together?"""
    return chi_square(((a >> 60) & 15) * 16 + ((b >> 60) & 15), 0, 256)


def avalanche(draw: Draw) -> float:
    """Does each of a task's low bits flip each bit of the word half of the time?"""
    task, zero = torch.arange(4000), torch.zeros(1, dtype=torch.long)
    worst = 1.0
    for place in range(12):
        changed = draw(0, task, zero) ^ draw(0, task ^ (1 << place), zero)
        flips = torch.stack([(changed >> bit) & 1 for bit in range(64)]).sum(1).double()
        z = (flips - len(task) / 2).abs().max() / (len(task) / 4) ** 0.5
        worst = min(worst, float(stats.norm.sf(z)) * 2 * 64 * 12)
    return worst


def test_words_are_uniform_and_independent():
    found = p_values(ours)
    assert min(found.values()) > 1e-3, found


def test_the_control_is_caught():
    found = p_values(weak)
    caught = {name for name, p in found.items() if p < 1e-12}
    assert {"next task", "next position", "next seed", "avalanche"} <= caught, found


def test_uniforms_fill_the_unit_interval():
    found = uniform((3,), torch.arange(N))
    assert found.dtype == torch.float64
    assert found.min() >= 0
    assert found.max() < 1
    assert stats.kstest(found.numpy(), "uniform").pvalue > 1e-3


def test_normals_are_normal_and_independent():
    found = normal((4,), torch.arange(N)[:, None], torch.arange(2))
    assert stats.kstest(found.flatten().numpy(), "norm").pvalue > 1e-3
    assert stats.pearsonr(*found.T.numpy()).pvalue > 1e-3
    assert stats.pearsonr(*found.abs().T.numpy()).pvalue > 1e-3
    assert found.isfinite().all()


@pytest.mark.parametrize("bound", [1, 2, 3, 1623, 2**40])
def test_integers_stay_below_their_bound(bound: int):
    found = integers(bound, (5,), torch.arange(N))
    assert found.min() >= 0
    assert found.max() < bound
    if 1 < bound < 2000:
        assert stats.chisquare(found.bincount(minlength=bound).numpy()).pvalue > 1e-3


def test_draws_without_repetition_are_fair():
    chosen = smallest(3, bits((6,), torch.arange(N)[:, None], torch.arange(6)))
    ordered = (chosen * torch.tensor([36, 6, 1])).sum(1)
    values, counts = ordered.unique(return_counts=True)
    assert len(values) == 6 * 5 * 4
    assert stats.chisquare(counts.numpy()).pvalue > 1e-3


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no second device")
def test_words_are_the_same_on_every_device():
    index = torch.arange(N)
    for draw in (bits, uniform):
        assert torch.equal(draw((8,), index, index), draw((8,), index.cuda(), index.cuda()).cpu())
