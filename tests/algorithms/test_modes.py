"""What all families of several starts keep: the support alone decides, and figures say how well."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from families import MANY, MIXTURE, PLAIN, begin, regression, turned, two_levels
from oracles import DOUBLE, distance, image_tasks, maml, problem

from metarun.algorithms.mixture import mixture
from metarun.algorithms.multi_maml import multi_maml
from metarun.algorithms.parts.starts import spread_starts
from metarun.errors import ConfigError
from metarun.evaluate import Scores, evaluate
from metarun.numerics.parallel import Workers
from metarun.report.clusters import families


@pytest.mark.parametrize("name", MANY)
def test_queries_and_modes_decide_nothing(name: str) -> None:
    on, tasks = problem("conv4-support"), image_tasks("conv4-support", 6)
    algorithm = MANY[name](on)
    meta = begin(algorithm, on)
    if algorithm.turn is not None:
        meta = turned(algorithm, meta, image_tasks("conv4-support", 12))
    other = replace(
        tasks, query_y=tasks.query_y.flip(1), query_x=tasks.query_x + 1, mode=1 - tasks.mode
    )
    found, changed = (algorithm.meta_grad(meta, t, 0) for t in (tasks, other))
    assert distance(changed.gradient, found.gradient) > 1e-3
    for group, params in found.shift.items():
        for key, value in params.items():
            assert torch.equal(value, changed.shift[group][key])
    scores = [
        evaluate(algorithm.problem or on, algorithm, meta, iter([t]), 2, lambda: None, Workers(1))
        for t in (tasks, replace(tasks, mode=1 - tasks.mode), replace(tasks, query_y=other.query_y))
    ]
    assert torch.equal(scores[0].values, scores[1].values)
    assert not torch.equal(scores[0].values, scores[2].values)
    if algorithm.assign is not None:
        assert torch.equal(scores[0].assignment, scores[1].assignment)
        assert torch.equal(scores[0].assignment, scores[2].assignment)


def test_starts_begin_so_many_of_a_tensor_s_own_deviations_apart() -> None:
    generator = torch.Generator().manual_seed(3)
    params = {
        name: size * torch.randn(60, 40, dtype=DOUBLE, generator=generator)
        for name, size in (("small", 0.01), ("large", 5.0))
    } | {"single": torch.tensor([3.0], dtype=DOUBLE)}
    starts = spread_starts(params, 400, 0.5)
    for name, value in params.items():
        away = starts[name] - value
        scale = value.std() if len(value) > 1 else value.abs().sum()
        assert float(away.std() / scale) == pytest.approx(0.5, rel=0.1)
        assert (away[0] != away[1]).all()
    for alike in (spread_starts(params, 3, 0.0), spread_starts(params, 1, 0.5)):
        for name, value in params.items():
            assert torch.equal(alike[name], value.expand_as(alike[name]))


def test_an_oracle_is_told_the_mode_and_each_mode_has_a_maml_of_its_own() -> None:
    on, tasks = regression(), two_levels(6)
    algorithm, parent = multi_maml(on, **PLAIN, starts=2), maml(on, **PLAIN)
    meta = begin(algorithm, on)
    meta["params"] = {
        n: v + torch.arange(2.0).view(-1, *[1] * (v.dim() - 1)) for n, v in meta["params"].items()
    }
    found = algorithm.meta_grad(meta, tasks, 0).gradient["params"]
    for mode in range(2):
        own = {"params": {n: v[mode] for n, v in meta["params"].items()}}
        alone = parent.meta_grad(own, tasks[tasks.mode == mode], 0).gradient
        assert distance({"params": {n: 2 * v[mode] for n, v in found.items()}}, alone) < 1e-12
    arguments = (2, lambda: None, Workers(1))
    right = evaluate(on, algorithm, meta, iter([tasks]), *arguments)
    wrong = evaluate(on, algorithm, meta, iter([replace(tasks, mode=1 - tasks.mode)]), *arguments)
    assert not torch.equal(right.values, wrong.values)
    assert right.assignment is None
    with pytest.raises(ConfigError, match=r"algo\.starts=2: a task is of mode 3"):
        algorithm.meta_grad(meta, replace(tasks, mode=tasks.mode + 1), 0)


def test_regret_and_confusion_are_counted() -> None:
    by_start = torch.tensor([[[9.0, 1.0], [9.0, 4.0]], [[9.0, 6.0], [9.0, 2.0]]])
    chosen = torch.tensor([0, 0])
    values = by_start[torch.arange(2), chosen].double()
    scores = Scores("mse", values, torch.tensor([0, 1]), chosen, by_start.double())
    found = families(scores, ("sinusoid", "line"), 1)
    assert found["regret"] == pytest.approx((0 + 4) / 2)
    assert found["best_start"] == pytest.approx(1.5)
    assert found["any_start"] == pytest.approx(13 / 4)
    assert found["confusion"] == [[1, 0], [1, 0]]
    assert found["per_mode"]["line"]["mean"] == 6.0
    assert math.isnan(found["per_mode"]["line"]["ci95"])  # of one task
    assert found["usage"] == [1.0, 0.0]
    assert found["effective"] == pytest.approx(1.0)
    right = replace(scores, metric="accuracy", values=1 - values / 10, by_start=1 - by_start / 10)
    assert families(right, ("a", "b"), 1)["regret"] == pytest.approx(0.2)
    lost = by_start.double()
    lost[0, 1, 1] = math.nan  # from the start that no task chose, one diverges
    found = families(replace(scores, by_start=lost), ("a", "b"), 1)
    assert (found["regret"], found["best_start"]) == (pytest.approx(2.0), pytest.approx(1.5))
    assert found["any_start"] == math.inf


def test_each_family_has_an_interval_of_its_own() -> None:
    values = torch.tensor([[1.0], [2.0], [4.0], [8.0], [9.0]]).double()
    found = families(Scores("mse", values, torch.tensor([0, 0, 0, 1, 1]), None), ("a", "b"), 0)
    assert found["per_mode"] == {
        "a": {
            "mean": pytest.approx(7 / 3),
            "ci95": pytest.approx(1.96 * (7 / 9) ** 0.5),
            "tasks": 3,
        },
        "b": {"mean": 8.5, "ci95": pytest.approx(0.98), "tasks": 2},
    }


@pytest.mark.parametrize("name", ["mixture-em", "mixture-em-start", "tsamaml"])
def test_the_chosen_start_is_one_of_each(name: str) -> None:
    """Regret is measured against the very adaptations that a choice picks from."""
    on, tasks = regression(), two_levels(6)
    algorithm = MANY[name](on)
    meta = begin(algorithm, on)
    if algorithm.turn is not None:
        meta = turned(algorithm, meta, two_levels())
    else:  # decided beyond doubt, so that the mixture is the start that it chooses
        meta["usage"]["share"] = torch.tensor([1e-6, 1.0, 1e-6], dtype=DOUBLE)
        algorithm = MANY_SURE[name](on)
    scores = evaluate(
        algorithm.problem or on, algorithm, meta, iter([tasks]), 2, lambda: None, Workers(1),
        each_start=True,
    )  # fmt: skip
    picked = scores.by_start[torch.arange(6), scores.assignment]
    torch.testing.assert_close(scores.values, picked, rtol=1e-9, atol=1e-12)


MANY_SURE = {
    "mixture-em": lambda on: mixture(on, **{**MIXTURE, "temperature": 1e-9}),
    "mixture-em-start": lambda on: mixture(
        on, **{**MIXTURE, "temperature": 1e-9, "combine": "parameters"}
    ),
}
