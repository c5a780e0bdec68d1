"""k-means finds what is apart, and the starts that it gives are gone on from."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from families import PLAIN, TSA, begin, last, regression, turned, two_levels
from oracles import DOUBLE, distance, maml
from torch import Tensor

from metarun.algorithms.parts.kmeans import _begin, kmeans
from metarun.algorithms.tsamaml import tsamaml
from metarun.config import check, compose_job
from metarun.errors import ConfigError
from metarun.report.statistics import ari


def blobs(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    truth = torch.arange(90) % 6
    corners = 8 * torch.eye(6, 10, dtype=DOUBLE)
    return corners[truth] + 0.5 * torch.randn(90, 10, dtype=DOUBLE, generator=generator), truth


@pytest.mark.parametrize("seed", range(5))
def test_kmeans_finds_separated_blobs(seed: int) -> None:
    rows, truth = blobs(seed)
    found = kmeans(rows, 6, seed)
    assert ari(truth.numpy(), found.labels.numpy()) == 1.0
    again = kmeans(rows, 6, seed)
    assert torch.equal(found.centres, again.centres)
    for m in range(6):
        torch.testing.assert_close(found.centres[m], rows[found.labels == m].mean(0))
    apart = (rows - found.centres[found.labels]).square().sum()
    assert found.spread == pytest.approx(float(apart))


def test_kmeans_never_begins_twice_at_one_place() -> None:
    """A row's chance is its distance from the nearest beginning, not from the last one drawn."""
    corners = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [9.0, 9.0]], dtype=DOUBLE)
    for seed in range(20):
        begun = _begin(corners.repeat(5, 1), 4, torch.Generator().manual_seed(seed))
        assert len(begun.unique(dim=0)) == 4


def test_kmeans_fills_every_cluster_even_of_equal_rows() -> None:
    rows = torch.cat([torch.zeros(5, 2), torch.ones(2, 2)]).double()
    found = kmeans(rows, 4)
    assert found.labels.bincount(minlength=4).min() >= 1
    assert found.spread == pytest.approx(0.0)


@pytest.mark.parametrize("on_what", ["body", "features"])
def test_tsamaml_begins_as_maml_and_then_parts_the_families(on_what: str) -> None:
    on, tasks = regression(), two_levels()
    if on_what == "features":  # of inputs alone: let these tell the families apart
        side = 2 - 4 * tasks.mode.double().view(-1, 1, 1)
        tasks = replace(tasks, support_x=0.2 * tasks.support_x + side)
    algorithm, parent = tsamaml(on, **{**TSA, "cluster_on": on_what}), maml(on, **PLAIN)
    meta = begin(algorithm, on)
    before = algorithm.meta_grad(meta, tasks, 0)
    assert set(before.gradient) == {"params"}
    assert distance(before.gradient, parent.meta_grad(begin(parent, on), tasks, 0).gradient) == 0
    assert algorithm.assign(meta, tasks.support_x, tasks.support_y).tolist() == [0] * 12

    formed = turned(algorithm, meta, tasks)
    again = turned(algorithm, meta, tasks, size=12)
    assert distance(again, formed) < 1e-12  # whatever the chunks
    chosen = algorithm.assign(formed, tasks.support_x, tasks.support_y)
    assert ari(tasks.mode.numpy(), chosen.numpy()) == 1.0
    fitted = last(parent, {"params": meta["params"]}, tasks, 5)
    for m in range(2):
        for name, value in formed["starts"].items():
            torch.testing.assert_close(value[m], fitted[name][chosen == m].mean(0))
    found = algorithm.meta_grad(formed, tasks, 0)
    assert set(found.gradient) == {"starts"}
    for m in range(2):
        own = {"params": {n: v[m] for n, v in formed["starts"].items()}}
        alone = parent.meta_grad(own, tasks[chosen == m], 0).gradient
        shared = {n: 2 * v[m] for n, v in found.gradient["starts"].items()}
        assert distance({"params": shared}, alone) < 1e-12


@pytest.mark.parametrize("on_what", ["body", "features"])
def test_new_starts_are_of_the_weights_after_all_cluster_steps(on_what: str) -> None:
    """Whatever the tasks are clustered by; so both are composed with any number of them."""
    on, tasks = regression(), two_levels()
    for steps in (1, 9):
        words = ["algo=tsamaml", f"algo.cluster_on={on_what}", f"algo.cluster_steps={steps}"]
        part = check(compose_job(["dataset=sinusoid", *words])).parts["algo"]
        chosen = {name: part.values[name] for name in ("cluster_on", "cluster_steps")}
        algorithm = tsamaml(on, **{**TSA, **chosen, "starts": 1})
        meta = begin(algorithm, on)
        found = turned(algorithm, meta, tasks)["starts"]
        ends = last(maml(on, **PLAIN), {"params": meta["params"]}, tasks, steps)
        for name, value in found.items():
            torch.testing.assert_close(value[0], ends[name].mean(0))


@pytest.mark.parametrize("on_what", ["body", "features"])
def test_a_task_that_diverges_is_not_clustered(on_what: str) -> None:
    on, tasks = regression(), two_levels()
    steep = tasks.support_y.clone()
    steep[3] = 1e200
    algorithm = tsamaml(on, **{**TSA, "cluster_on": on_what})
    meta = begin(algorithm, on)
    others = torch.arange(12) != 3
    expected = turned(algorithm, meta, tasks[others])
    found = turned(algorithm, meta, replace(tasks, support_y=steep))
    assert distance(found, expected) < 1e-12
    hopeless = replace(tasks, support_y=torch.full_like(steep, 1e200))
    starts = turned(algorithm, meta, hopeless)["starts"]
    assert all(value.isnan().any() for value in starts.values())


def test_fewer_tasks_than_starts_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"algo\.tasks: 1 tasks cannot fill algo\.starts=2"):
        tsamaml(regression(), **{**TSA, "tasks": 1})
