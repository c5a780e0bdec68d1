"""A change between two phases of training: when it happens, with which tasks, at what price."""

from __future__ import annotations

import pytest
import torch
from tiny import Log, tiny

from metarun.cost import flops_per_meta_step
from metarun.signals import Stop
from metarun.state import State
from metarun.tasks import Tasks
from metarun.train import train


@pytest.mark.parametrize(("steps", "formed"), [(5, 0), (6, 0), (7, 1), (12, 1)])
def test_the_turn_comes_before_its_meta_step_and_once(steps: int, formed: int) -> None:
    experiment = tiny("algo=tsamaml", f"budget.total={steps}")  # algo.warm_up=6
    turn, seen = experiment.algorithm.turn, []
    assert turn is not None

    def change(meta, chunks):
        chunks = list(chunks)
        seen.append(chunks)
        return turn.change(meta, chunks)

    algorithm = experiment.algorithm._replace(turn=turn._replace(change=change))
    object.__setattr__(experiment, "algorithm", algorithm)
    state = train(experiment, State(experiment.initial()), Log(), Stop(), 0.0)
    assert float(state.meta["clusters"]["formed"]) == formed
    assert len(seen) == formed
    for chunks in seen:
        assert sum(map(len, chunks)) == turn.tasks
        assert torch.equal(together(chunks), experiment.tasks("train", 6 * 4, 10).query_y)


def together(chunks: list[Tasks]) -> torch.Tensor:
    return torch.cat([chunk.query_y for chunk in chunks])


def test_the_dearer_phase_is_what_a_step_costs() -> None:
    plain, turned = tiny("algo=maml"), tiny("algo=tsamaml")
    before = flops_per_meta_step(plain, plain.initial())
    assert flops_per_meta_step(turned, turned.initial()) > before
