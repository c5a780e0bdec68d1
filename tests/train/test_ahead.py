"""Batches drawn ahead are the batches that meta-steps ask for, and cost few draws."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import tiny
from torch import Tensor

from metarun.assemble import Experiment, assemble
from metarun.config import check, compose_job
from metarun.engine.ahead import STEPS, Ahead
from metarun.tasks import Tasks

IN_ANY_ORDER = (0, 1, 2, STEPS - 1, STEPS, STEPS + 1, 3 * STEPS + 8, 3, STEPS // 2, 2 * STEPS)


class Counting:
    """A source that counts how often it is asked for training tasks or examples."""

    def __init__(self, source: Any) -> None:
        self.source, self.draws = source, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.source, name)

    def tasks(self, *args: Any, **shape: Any) -> Tasks:
        self.draws += 1
        return self.source.tasks(*args, **shape)

    def examples(self, *args: Any, **shape: Any) -> tuple[Tensor, Tensor]:
        self.draws += 1
        return self.source.examples(*args, **shape)


def counted(experiment: Experiment) -> tuple[Experiment, Counting]:
    source = Counting(experiment.source)
    return replace(experiment, source=source), source


def same(a: Tasks, b: Tasks) -> bool:
    return all(torch.equal(getattr(a, f.name), getattr(b, f.name)) for f in fields(Tasks))


@pytest.mark.parametrize("dataset", ["sinusoid", "multimodal"])
@pytest.mark.parametrize("algo", ["maml", "transfer"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_batches_are_bit_for_bit_those_drawn_alone(dataset: str, algo: str, dtype: str) -> None:
    words = (f"dataset={dataset}", f"algo={algo}", f"hardware.dtype={dtype}", "outer.batch=5")
    experiment = tiny(*words)
    ahead = Ahead(experiment)
    assert ahead.steps == STEPS
    for step in IN_ANY_ORDER:
        assert same(ahead.batch(step), experiment.batch(step)), step
    assert not same(ahead.batch(1), experiment.batch(0))


@pytest.mark.parametrize("algo", ["maml", "transfer"])
def test_many_meta_steps_are_one_draw(algo: str) -> None:
    experiment, source = counted(tiny(f"algo={algo}"))
    ahead = Ahead(experiment)
    for step in range(2 * STEPS):
        ahead.batch(step)
    assert source.draws == 2


@pytest.mark.parametrize("algo", ["maml", "transfer"])
def test_images_are_drawn_when_they_are_needed(algo: str) -> None:
    words = ["dataset=glyphs", f"algo={algo}"]
    experiment, source = counted(assemble(check(compose_job(words)), Path("no-data-needed")))
    ahead = Ahead(experiment)
    for step in range(3):
        ahead.batch(step)
    assert source.draws == 3
