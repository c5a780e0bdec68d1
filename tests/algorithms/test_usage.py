"""Starts that nobody chooses begin again: by hand, in training, in chunks, and after a stop."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from families import CLUSTERED, MIXTURE, begin, regression, two_levels
from oracles import DOUBLE, distance
from safetensors.torch import load_file

from metarun.algorithms.base import MetaAlgorithm
from metarun.algorithms.clustered import clustered
from metarun.algorithms.mixture import mixture
from metarun.algorithms.parts.usage import USAGE, Upkeep, initial_usage, kept_in_use
from metarun.assemble import Experiment, assemble
from metarun.config import Checked, compose_job
from metarun.errors import PreemptedError
from metarun.gradients.metagradient import MetaGradient
from metarun.numerics.chunks import in_chunks
from metarun.numerics.compiled import Graph
from metarun.problem import Meta, Params, Problem
from metarun.records import merged, read
from metarun.run import run_job
from metarun.signals import Stop

pytestmark = pytest.mark.usefixtures("undrawn")

LOST = 2  # the start that no task chooses
KEPT = dict(share_rate=0.1, restart=0.1)
FAMILIES = {
    "clustered": lambda on, **kept: clustered(on, **{**CLUSTERED, **kept}),
    "graded": lambda on, **kept: clustered(on, **{**CLUSTERED, "graded_by": "query", **kept}),
    "mixture": lambda on, **kept: mixture(on, **{**MIXTURE, **kept}),
}


def test_a_dead_start_begins_again_beside_the_most_used() -> None:
    start = torch.tensor([[1.0, 2.0], [5.0, 9.0], [-3.0, 0.0]], dtype=DOUBLE)
    share = torch.tensor([0.3, 0.68, 0.02], dtype=DOUBLE)
    state = {"share": share, "bias": torch.tensor([0.1, 0.7, -0.8], dtype=DOUBLE)}
    meta: Meta = {"params": {"phi": start}, USAGE: state | {"restarts": torch.tensor(3.9999998)}}
    found = MetaGradient({}, torch.zeros(5))

    def kept(**changed: float) -> MetaGradient:
        upkeep = Upkeep(balance=0.0, share_rate=1e-12, restart=0.1, spread=0.0)
        return kept_in_use(found, meta, share, upkeep._replace(**changed))

    for still in (kept(restart=0.05), kept(restart=0.0), kept(share_rate=0.0)):  # 0.02 > 0.05 / 3
        assert not any(v.any() for params in still.shift.values() for v in params.values())
        assert still.figures["restarts"].tolist() == [4.0] * 5
    moved = kept()
    assert (start + moved.shift["params"]["phi"]).tolist() == [[1.0, 2.0], [5.0, 9.0], [5.0, 9.0]]
    after = {name: value + moved.shift[USAGE][name] for name, value in meta[USAGE].items()}
    assert after["share"].tolist() == pytest.approx([0.3, 0.35, 0.35])
    assert after["bias"].tolist() == pytest.approx([0.1, 0.7, 0.7])
    assert float(after["restarts"]) == pytest.approx(5)
    assert moved.figures["restarts"].tolist() == [5.0] * 5
    near = kept(spread=0.5).shift["params"]["phi"]
    assert (start + near)[2].tolist() != [5.0, 9.0]
    assert torch.equal(near, kept(spread=0.5).shift["params"]["phi"])
    assert not (start + near)[:2].sub(start[:2]).any()


def test_every_new_beginning_lies_elsewhere_and_each_of_its_tensors_too() -> None:
    start = torch.arange(24.0, dtype=DOUBLE).view(3, 8)
    share = torch.tensor([0.3, 0.69, 0.01], dtype=DOUBLE)
    upkeep = Upkeep(balance=0.0, share_rate=1e-12, restart=0.1, spread=0.5)

    def noise(name: str, restarts: float) -> torch.Tensor:
        state = {"share": share, "bias": 0 * share, "restarts": torch.tensor(restarts)}
        meta: Meta = {"params": {"a": start, "b": start}, USAGE: state}
        found = kept_in_use(MetaGradient({}, torch.zeros(5)), meta, share, upkeep)
        return (start + found.shift["params"][name])[LOST] - start[1]

    first, other, again = noise("a", 0.0), noise("b", 0.0), noise("a", 1.0)
    assert torch.equal(first, noise("a", 0.0))
    scale = 0.5 * start[1].std()
    for one in (first, other, again):
        assert 0.3 * scale < one.std() < 3 * scale
    assert (first - other).abs().min() > 1e-3 * scale
    assert (first - again).abs().min() > 1e-3 * scale


def test_one_start_has_nobody_to_begin_beside() -> None:
    state = {name: value.to(DOUBLE) for name, value in initial_usage(1).items()}
    state["share"] -= 1e-9  # as rounding leaves it
    meta: Meta = {"params": {"phi": torch.ones(1, 2, dtype=DOUBLE)}, USAGE: state}
    upkeep = Upkeep(balance=0.1, share_rate=0.1, restart=1.0, spread=0.1)
    found = kept_in_use(MetaGradient({}, torch.zeros(2)), meta, state["share"], upkeep)
    assert "params" not in found.shift


def lost(algorithm: MetaAlgorithm, on: Problem) -> Meta:
    """Return meta-parameters one of whose starts is too far away for any task."""
    meta = begin(algorithm, on)
    for value in meta["params"].values():
        value[LOST] += 30.0
    return meta


def trained(algorithm: MetaAlgorithm, meta: Meta, steps: int) -> list[MetaGradient]:
    """Train by plain descent, in place; return what each meta-step found."""
    found: list[MetaGradient] = []
    for step in range(steps):
        found.append(algorithm.meta_grad(meta, two_levels(), step))
        for by, tree in ((-0.05, found[-1].gradient), (1.0, found[-1].shift)):
            for group, params in tree.items():
                for name, value in params.items():
                    meta[group][name] += by * value
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_a_start_that_nobody_chooses_is_brought_back(family: str) -> None:
    """The control, which differs in `restart` alone, never looks at it again."""
    on = regression()
    for restart in (0.0, 0.1):
        algorithm = FAMILIES[family](on, **{**KEPT, "restart": restart})
        meta = lost(algorithm, on)
        begun = {name: value.clone() for name, value in meta["params"].items()}
        found = trained(algorithm, meta, 60)
        pulled = [any(v[LOST].any() for v in each.gradient["params"].values()) for each in found]
        assert not any(pulled[:20])
        assert any(pulled[-20:]) is (restart > 0)
        assert (float(meta[USAGE]["share"][LOST]) > 0.1) is (restart > 0)
        counts = [float(each.figures["restarts"].mean()) for each in found]
        assert counts == sorted(counts)
        assert (counts[-1] >= 1) is (restart > 0)
        assert float(meta[USAGE]["restarts"]) == counts[-1]
        if not restart:
            assert all(torch.equal(v[LOST], begun[n][LOST]) for n, v in meta["params"].items())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("chunk", [1, 5])
def test_chunks_of_a_batch_agree_on_a_new_beginning(family: str, chunk: int) -> None:
    on, tasks = regression(), two_levels()
    algorithm = FAMILIES[family](on, **KEPT)
    meta = lost(algorithm, on)
    meta[USAGE]["share"] = torch.tensor([0.7, 0.29, 0.01], dtype=DOUBLE)
    whole = algorithm.meta_grad(meta, tasks, 3)
    parts, _ = in_chunks(algorithm.meta_grad, meta, tasks, 3, chunk)
    assert any(value[LOST].any() for value in whole.shift["params"].values())
    assert distance(parts.shift, whole.shift) < 1e-12
    assert torch.equal(parts.figures["restarts"], whole.figures["restarts"])
    assert whole.figures["restarts"].tolist() == [1.0] * 12


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_one_graph_holds_a_new_beginning_for_every_meta_step(family: str) -> None:
    """As it is traced: that is what can fail."""
    on, tasks = regression(), two_levels()
    algorithm = FAMILIES[family](on, **KEPT)
    meta = lost(algorithm, on)
    graph = Graph(algorithm.meta_grad, meta, tasks).traced
    for least, begins in ((0.3, False), (0.01, True)):
        meta[USAGE]["share"] = torch.tensor([0.7 - least, 0.3, least], dtype=DOUBLE)
        ours, expected = graph(meta, tasks, 5), algorithm.meta_grad(meta, tasks, 5)
        assert bool(ours.figures["restarts"].any()) is begins
        assert any(value[LOST].any() for value in ours.shift["params"].values()) is begins
        for group, params in expected.shift.items():
            for name, value in params.items():
                assert torch.equal(ours.shift[group][name], value), name


SMALL = (
    *("dataset=sinusoid", "model.hidden=[8]", "outer.batch=4", "task.test_queries=10"),
    *("budget.total=12", "validation.every=6", "validation.tasks=6", "validation.steps=2"),
    *("test.tasks=8", "test.steps=3", "checkpoints.every=4", "hardware=cpu", "hardware.threads=1"),
    *("algo.starts=2", "algo.balance=0", "algo.share_rate=0.4"),
)


@pytest.mark.parametrize("algo", ["clustered", "mixture"])
def test_a_run_cut_before_a_new_beginning_makes_the_same_one(
    algo: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shares, biases and the count are in its checkpoints, and the noise is of the meta-step."""
    monkeypatch.setattr("metarun.run.assemble", with_a_lost_start)
    words = [f"algo={algo}", *SMALL, *(["algo.warm_up=0"] if algo == "clustered" else [])]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert run_job(compose_job(words), whole) == 0
    counts = restarts(whole)
    assert min(step for step, count in counts.items() if count) > 4, "after the first checkpoint"
    with monkeypatch.context() as stopped:
        stopped.setattr(Stop, "check", lambda stop: stop_at(4, cut))
        assert run_job(compose_job(words), cut) == PreemptedError.exit_code
    assert restarts(cut) == {step: count for step, count in counts.items() if step <= 4}
    assert run_job(compose_job(words), cut) == 0
    assert restarts(cut) == counts
    last = [load(folder / "checkpoints" / "step-000000012.safetensors") for folder in (whole, cut)]
    assert all(torch.equal(value, last[1][name]) for name, value in last[0].items())
    assert last[0].keys() == last[1].keys()


def with_a_lost_start(checked: Checked, data_root: Path) -> Experiment:
    """Assemble an experiment in which one start answers far from any task."""
    experiment = assemble(checked, data_root)
    init = experiment.algorithm.init

    def apart(params: Params) -> Meta:
        meta = init(params)
        meta["params"]["head.bias"][1] += 20.0
        return meta

    return replace(experiment, algorithm=experiment.algorithm._replace(init=apart))


def stop_at(step: int, folder: Path) -> None:
    """Do as a request to stop does, once that meta-step is on record."""
    if restarts(folder).keys() >= {step}:
        raise PreemptedError("asked to stop")


def restarts(folder: Path) -> dict[int, float]:
    found = merged(read(folder)) if folder.exists() else []
    return {record["step"]: record["restarts"] for record in found if record["kind"] == "train"}


def load(path: Path) -> dict[str, torch.Tensor]:
    return {n: v for n, v in load_file(path).items() if n.startswith(("meta/", "moments/"))}
