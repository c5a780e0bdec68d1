"""Two phases of training, and what runs say of several modes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import TINY, Log, tiny, tiny_config

from metarun.compare import compare
from metarun.engine.cost import Flops, flops_of_training
from metarun.errors import ConfigError
from metarun.records import read
from metarun.report.runs import load
from metarun.report.tables import clusters, of_run
from metarun.run import run_job
from metarun.signals import Stop
from metarun.state import State
from metarun.tasks import Tasks
from metarun.train import train

pytestmark = pytest.mark.usefixtures("undrawn")


@pytest.mark.parametrize(("steps", "formed"), [(5, 0), (6, 0), (7, 1), (12, 1)])
def test_the_turn_comes_before_its_meta_step_and_once(steps: int, formed: int) -> None:
    experiment = tiny("algo=tsamaml")  # algo.warm_up=6
    object.__setattr__(experiment, "budget", replace(experiment.budget, total=float(steps)))
    turn, seen = experiment.algorithm.turn, []
    assert turn is not None

    def change(meta, chunks):
        chunks = list(chunks)
        seen.append(chunks)
        return turn.change(meta, chunks)

    algorithm = experiment.algorithm._replace(turn=turn._replace(change=change))
    object.__setattr__(experiment, "algorithm", algorithm)
    state = train(experiment, State(experiment.initial()), Log(), Stop(), Flops())
    assert float(state.meta["clusters"]["formed"]) == formed
    assert len(seen) == formed
    for chunks in seen:
        assert sum(map(len, chunks)) == turn.tasks
        assert torch.equal(together(chunks), experiment.tasks("train", 6 * 4, 10).query_y)


def test_a_budget_that_ends_before_the_turn_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"algo\.warm_up: 6 .* ends before .*budget\.total"):
        tiny("algo=tsamaml", "budget.total=6")
    assert tiny("algo=tsamaml", "budget.total=7").algorithm.turn is not None


def together(chunks: list[Tasks]) -> torch.Tensor:
    return torch.cat([chunk.query_y for chunk in chunks])


def test_a_step_after_the_turn_costs_more() -> None:
    plain, turned = tiny("algo=maml"), tiny("algo=tsamaml")
    before = flops_of_training(plain, plain.initial()).each
    found = flops_of_training(turned, turned.initial()).each
    assert found[:1] == before
    assert found[1] > found[0]


def test_one_family_has_nothing_to_agree_with(tmp_path: Path) -> None:
    assert run_job(tiny_config("algo=mixture"), tmp_path) == 0
    outcome = json.loads((tmp_path / "outcome.json").read_text())
    validated = [r for r in read(tmp_path) if r["kind"] == "validate"]
    for found in (outcome["clusters"], *validated):
        assert not {"purity", "nmi", "ari"} & set(found)
        assert 1 <= found["effective"] <= 2
    assert sum(outcome["clusters"]["usage"]) == pytest.approx(1)
    assert dict(of_run(outcome).rows)["clusters"].endswith(" in use")
    (section,) = compare(load([tmp_path])).sections
    table = clusters(section)
    assert table.head[:3] == ("Method", "Clusters in use", "Regret")
    assert table.caption == "Clusters"
    assert len(table.rows) == 1


def test_records_and_outcome_hold_the_choice_against_the_families(tmp_path: Path) -> None:
    several = ("dataset=multimodal", "dataset.family=mmaml2", "model.hidden=[8]")
    assert run_job(tiny_config("algo=mixture", *several, *TINY[2:]), tmp_path) == 0
    validated = [r for r in read(tmp_path) if r["kind"] == "validate"]
    assert all(0 <= r["nmi"] <= 1 and 1 <= r["effective"] <= 2 for r in validated)
    trained = [r for r in read(tmp_path) if r["kind"] == "train"]
    assert all(1 <= r["starts_a_task"] <= 2 for r in trained)
    outcome = json.loads((tmp_path / "outcome.json").read_text())
    assert outcome["oracle"] is False
    found = outcome["clusters"]
    assert np.sum(found["confusion"], 1).tolist() == [4, 4]
    arrays = np.load(tmp_path / "scores.npz")
    by_start = arrays["by_start"][:, :, outcome["chosen"]["steps"]]
    own = by_start[np.arange(8), arrays["assignment"]]
    assert found["regret"] == pytest.approx((own - by_start.min(1)).mean())
