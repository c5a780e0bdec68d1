"""What every few-shot sampler must promise, on images that say which they are."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import pytest
import torch
from coded import coded_pictures, coded_source, read, sampled
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch.utils._python_dispatch import TorchDispatchMode

from metarun.data.images import ImageSource, image_source
from metarun.data.source import Source, Split
from metarun.errors import ConfigError
from metarun.tasks import Tasks

ROTATIONS = ("per_task", "as_classes", "none")
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
COUNTS = [7, 9, 8, 12, 7, 30, 7, 8, 11, 20]


def five_way(source: ImageSource, count: int, split: Split = "train", **other: int) -> Tasks:
    shape = {"ways": 5, "shots": 2, "queries": 3, "seed": 0} | other
    return source.tasks(split, 0, count, **shape)


def equal(a: Tasks, b: Tasks) -> bool:
    return all(torch.equal(getattr(a, f), getattr(b, f)) for f in Tasks.__slots__)


def test_it_is_a_source():
    source: Source = coded_source(COUNTS)
    assert (source.kind, source.targets, source.modes) == ("classification", 0, ("all",))
    assert source.features == (1, 2, 2)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(4, 40), min_size=3, max_size=12),
    st.sampled_from(ROTATIONS),
    st.integers(2, 3),
    st.integers(1, 3),
    st.data(),
)
def test_a_task_is_what_it_claims(
    counts: list[int], rotations: str, ways: int, shots: int, data: st.DataObject
):
    queries = data.draw(st.integers(1, min(4, min(counts) - shots)))
    source = coded_source(counts, rotations=rotations)
    source.check(ways=ways, shots=shots, queries=queries)
    first = data.draw(st.integers(0, 2**40))
    tasks = source.tasks("test", first, 3, ways=ways, shots=shots, queries=queries, seed=1)
    assert tasks.support_x.shape == (3, ways * shots, 1, 2, 2)
    assert tasks.query_x.shape == (3, ways * queries, 1, 2, 2)
    assert tasks.support_x.dtype == tasks.query_x.dtype == torch.float32
    assert tasks.support_y.dtype == tasks.query_y.dtype == torch.int64
    support, query = read(tasks.support_x), read(tasks.query_x)
    for task in range(3):
        images: list[tuple[int, ...]] = []
        homes: dict[int, set[tuple[int, int]]] = {}
        for known, y in ((support, tasks.support_y), (query, tasks.query_y)):
            for place, label in enumerate(y[task].tolist()):
                character, drawing, turn = (int(part[task, place]) for part in known)
                assert drawing < counts[character]
                images.append((character, drawing, turn))
                homes.setdefault(label, set()).add((character, turn))
        assert len(set(images)) == ways * (shots + queries)  # none twice, in support or query
        assert sorted(homes) == list(range(ways))
        assert all(len(of) == 1 for of in homes.values())  # one class, turned one way
        classes = [next(iter(of)) for of in homes.values()]
        distinct = {c if rotations == "as_classes" else c[:1] for c in classes}
        assert len(distinct) == ways
        assert tasks.support_y[task].bincount().tolist() == [shots] * ways
        assert tasks.query_y[task].bincount().tolist() == [queries] * ways


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(ROTATIONS), st.integers(0, 10**9), st.integers(1, 9), st.booleans())
def test_chunks_are_parts_of_the_whole(rotations: str, first: int, size: int, grouped: bool):
    source = coded_source(COUNTS * 2, rotations=rotations, groups=[0, 1] * 10 if grouped else ())
    shape = {"ways": 4, "shots": 2, "queries": 3, "seed": 5}
    whole = source.tasks("train", first, 20, **shape)
    for start in range(0, 20, size):
        count = min(size, 20 - start)
        part = source.tasks("train", first + start, count, **shape)
        assert equal(part, whole[start : start + count])
    x, y = source.examples(first, 20, seed=5)
    part_x, part_y = source.examples(first + size, 20 - size, seed=5)
    assert torch.equal(part_x, x[size:])
    assert torch.equal(part_y, y[size:])


def test_more_queries_leave_the_support_and_the_first_queries_alone():
    source = coded_source(COUNTS, rotations="per_task")
    few, many = five_way(source, 10, queries=1), five_way(source, 10, queries=5)
    assert torch.equal(few.support_x, many.support_x)
    assert torch.equal(few.query_x, many.query_x[:, ::5])


def test_each_seed_and_split_has_tasks_of_its_own():
    source = coded_source([20] * 40, rotations="per_task")  # every split holds the same classes
    seen: set[bytes] = set()
    for split, seed in product(SPLITS, range(4)):
        tasks = five_way(source, 50, split, seed=seed)
        seen |= {t.numpy().tobytes() for t in torch.cat([tasks.support_x, tasks.query_x], 1)}
    assert len(seen) == 3 * 4 * 50


@pytest.mark.parametrize("drawn", ["label", "drawing", "turn"])
def test_each_choice_differs_between_seeds_and_splits(drawn: str):
    source = coded_source([20] * 40, rotations="per_task")
    seen = {
        getattr(read(five_way(source, 50, split, seed=seed).support_x), drawn).numpy().tobytes()
        for split, seed in product(SPLITS, range(4))
    }
    assert len(seen) == 3 * 4


def test_splits_never_share_a_class():
    parts = {"train": [0, 3, 5, 7, 9], "validation": [1, 2, 4], "test": [6, 8]}
    for rotations in ROTATIONS:
        source = coded_source(COUNTS, parts, rotations)
        for split, classes in parts.items():
            tasks = source.tasks(split, 0, 60, ways=2, shots=1, queries=1, seed=0)
            assert set(read(tasks.support_x).label.unique().tolist()) == set(classes)
            assert set(read(tasks.query_x).label.unique().tolist()) == set(classes)
        assert set(read(source.examples(0, 400, seed=0)[0]).label.tolist()) == set(parts["train"])


def test_classes_drawings_turns_and_labels_are_drawn_fairly():
    tasks = five_way(coded_source([12] * 10, rotations="per_task"), 4000, shots=1, queries=1)
    known = read(tasks.support_x)
    for drawn, values in ((known.label, 10), (known.drawing, 12), (known.turn, 4)):
        assert stats.chisquare(drawn.flatten().bincount(minlength=values).numpy()).pvalue > 1e-3
    places = known.label.argsort(1)  # which label the smallest, second, ... class of a task bears
    for rank in range(5):
        assert stats.chisquare(places[:, rank].bincount(minlength=5).numpy()).pvalue > 1e-3
    first_two = known.label[:, 0] * 10 + known.label[:, 1]
    counts = first_two.bincount(minlength=100).view(10, 10)
    assert counts.diagonal().sum() == 0
    off = counts[~torch.eye(10, dtype=torch.bool)]
    assert stats.chisquare(off.numpy()).pvalue > 1e-3


def test_classes_of_a_task_are_turned_apart_from_each_other():
    turns = read(five_way(coded_source([12] * 10, rotations="per_task"), 4000, shots=1).support_x)
    pairs = (turns.turn[:, 0] * 4 + turns.turn[:, 1]).bincount(minlength=16)
    assert stats.chisquare(pairs.numpy()).pvalue > 1e-3


def test_turned_copies_are_classes_where_rotations_are():
    source = coded_source([12] * 3, rotations="as_classes")
    assert source.train_classes == 12
    tasks = source.tasks("train", 0, 20, ways=12, shots=1, queries=1, seed=0)
    known = read(tasks.support_x)
    pairs = known.label * 4 + known.turn
    assert torch.equal(pairs.sort(1).values, torch.arange(12).expand(20, 12))
    assert coded_source([12] * 3, rotations="per_task").train_classes == 3


@pytest.mark.parametrize("rotations", ROTATIONS)
def test_examples_are_balanced_and_rightly_named(rotations: str):
    source = coded_source(COUNTS, {"train": [1, 4, 5], "validation": [0], "test": [2]}, rotations)
    x, y = source.examples(7, 6000, seed=3)
    known = read(x)
    assert x.dtype == torch.float32
    assert stats.chisquare(y.bincount(minlength=source.train_classes).numpy()).pvalue > 1e-3
    names = {
        (label, *((turn,) if rotations == "as_classes" else ()), int(number))
        for label, turn, number in zip(known.label.tolist(), known.turn.tolist(), y, strict=True)
    }
    assert len(names) == len({name[-1] for name in names}) == source.train_classes
    thirty = known.drawing[known.label == 5]
    assert stats.chisquare(thirty.bincount(minlength=30).numpy()).pvalue > 1e-3
    assert len(known.turn.unique()) == (1 if rotations == "none" else 4)


def test_a_task_stays_within_a_group_that_is_large_enough():
    groups = [0] * 2 + [1] * 4 + [2] * 5
    source = coded_source([9] * 11, rotations="per_task", groups=groups)
    labels = read(source.tasks("test", 0, 600, ways=4, shots=1, queries=1, seed=0).support_x).label
    drawn = torch.tensor(groups)[labels]
    assert (drawn == drawn[:, :1]).all()
    counts = drawn[:, 0].bincount(minlength=3)
    assert counts[0] == 0
    assert stats.chisquare(counts[1:].numpy()).pvalue > 1e-3


@pytest.mark.parametrize(
    ("shape", "groups", "numbers"),
    [
        ({"ways": 11}, (), ("task.ways=11", "10 classes", "use 10 ways or fewer")),
        ({"ways": 1}, (), ("task.ways=1", "set task.ways to 2 or more")),
        ({"ways": 2}, range(10), ("task.ways=2", "1 class; give the split more")),
        ({"ways": 5}, (0, 0, 0, 0, 1, 1, 1, 2, 2, 2), ("task.ways=5", "4 classes", "largest")),
        ({"shots": 5}, (), ("task.shots=5", "3 queries", "8 images", "'class0'", "has 7")),
        ({"queries": 6}, (), ("task.shots=2", "6 queries", "has 7")),
    ],
)
def test_impossible_tasks_are_refused_in_one_line(
    shape: dict[str, int], groups: Sequence[int], numbers: tuple[str, ...]
):
    source = coded_source(COUNTS, groups=groups)
    with pytest.raises(ConfigError) as caught:
        source.check(**({"ways": 3, "shots": 2, "queries": 3} | shape))
    text = str(caught.value)
    assert "\n" not in text
    assert all(number in text for number in numbers), text


def test_a_fingerprint_is_of_one_splits_images_counts_numbers_and_groups():
    splits = {"train": [0, 1], "validation": [2, 3], "test": [4, 5]}
    pictures = coded_pictures([3] * 6)
    first = image_source(pictures, splits, "none").fingerprint
    assert len(set(first.values())) == 3
    renamed = pictures._replace(names=tuple("abcdef"))
    assert image_source(renamed, splits, "per_task").fingerprint == first
    repainted = pictures._replace(pixels=pictures.pixels.clone())
    repainted.pixels[-1, 0, 1, 1] += 1
    moved = splits | {"test": [5]}
    for other in (
        image_source(repainted, splits, "none"),
        image_source(pictures._replace(counts=(3, 3, 3, 3, 2, 4)), splits, "none"),
        image_source(pictures, moved, "none"),
    ):
        assert other.fingerprint["test"] != first["test"]
        assert other.fingerprint["train"] == first["train"]
    grouped = image_source(pictures, splits, "none", [0, 0, 1, 1, 2, 2]).fingerprint
    assert grouped["test"] != first["test"]


def test_sampling_touches_neither_the_images_nor_the_global_generator():
    source = coded_source(COUNTS, rotations="per_task")
    bank, state = source.bank.clone(), torch.get_rng_state()
    first = five_way(source, 8)
    first.support_x.zero_()
    assert equal(five_way(source, 8), five_way(source, 8))
    assert torch.equal(source.bank, bank)
    assert torch.equal(torch.get_rng_state(), state)


class _Counting(TorchDispatchMode):
    calls = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # pyright: ignore
        self.calls += 1
        return func(*args, **(kwargs or {}))


def test_a_large_batch_takes_no_more_calls_than_a_small_one():
    source = coded_source(COUNTS, rotations="per_task", groups=[0] * 10)
    calls = []
    for count in (2, 64):
        with _Counting() as counting:
            five_way(source, count)
        calls.append(counting.calls)
    assert calls[1] <= calls[0] < 250


def test_another_process_draws_the_same():
    program = "import coded; print(coded.sampled())"
    environment = {
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path]),
        "PYTHONHASHSEED": "77",
        "OMP_NUM_THREADS": "2",
    }
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True
    )
    assert result.stdout.strip() == sampled()
