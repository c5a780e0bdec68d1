"""Hard assignment: what decides, in training and at test, and how starts warm up."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path

import pytest
import torch
from families import CLUSTERED, MIXTURE, PLAIN, begin, regression, two_levels
from oracles import distance, image_tasks, maml, problem

from metarun.algorithms.clustered import clustered
from metarun.algorithms.mixture import mixture
from metarun.algorithms.parts.fitness import fit, support_score
from metarun.assemble import assemble
from metarun.config import check, compose_job
from metarun.errors import ConfigError
from metarun.inner import gradient_descent
from metarun.problem import Meta, Problem
from metarun.tasks import Tasks


def test_a_cold_mixture_is_hard_clustering() -> None:
    on, tasks = regression(), two_levels()
    cold = mixture(on, **{**MIXTURE, "temperature": 1e-9})
    hard = clustered(on, **CLUSTERED)
    meta = begin(cold, on)
    found = cold.meta_grad(meta, tasks, 0)
    state = begin(hard, on) | {"params": meta["params"]}
    expected = hard.meta_grad(state, tasks, 0)
    assert distance(found.gradient, expected.gradient) < 1e-12
    torch.testing.assert_close(found.losses, expected.losses)


def test_cross_validation_holds_out_each_class_s_examples_in_turn() -> None:
    """The scores are those of a plain loop over the parts; no number of folds means one out."""
    on = problem("mlp")
    tasks = image_tasks("mlp", 3, shots=4)
    settings = gradient_descent(PLAIN["inner_lr"]), PLAIN["steps"], PLAIN["proximal"]
    for folds, parts in ((2, 2), (None, 4)):
        score = support_score(on, "holdout", folds, *settings)
        algorithm = clustered(on, **{**CLUSTERED, "assign": "holdout", "folds": folds})
        meta = begin(algorithm, on)
        chosen = algorithm.assign(meta, tasks.support_x, tasks.support_y)
        for t in range(3):
            x, y = tasks.support_x[t], tasks.support_y[t]
            place = torch.stack([(y[:i] == y[i]).sum() for i in range(len(y))])  # within its class
            totals = []
            for start in range(3):
                total = 0.0
                for part in range(parts):
                    held = place % parts == part
                    assert held.sum() == len(y) / parts
                    params = {n: v[start] for n, v in meta["params"].items()}
                    for _ in range(PLAIN["steps"]):
                        leaf = {n: v.detach().requires_grad_() for n, v in params.items()}
                        loss = on.loss(leaf, x[~held], y[~held])
                        grads = torch.autograd.grad(loss, list(leaf.values()))
                        params = {
                            n: v - PLAIN["inner_lr"] * g
                            for (n, v), g in zip(leaf.items(), grads, strict=True)
                        }
                    total += float(on.loss(params, x[held], y[held]).detach())
                begun = {n: v[start] for n, v in meta["params"].items()}
                assert float(score(begun, x, y)) == pytest.approx(total / parts, rel=1e-10)
                totals.append(total)
            assert int(chosen[t]) == min(range(3), key=totals.__getitem__)


@pytest.mark.parametrize("shots", [2, 3])
@pytest.mark.parametrize("family", ["clustered", "mixture"])
def test_a_held_out_choice_does_not_depend_on_the_names_of_classes(family: str, shots: int) -> None:
    """Labels renamed together with the head's rows are the same task."""
    on = problem("mlp")
    tasks = image_tasks("mlp", 12, shots=shots)
    if family == "clustered":
        algorithm = clustered(on, **{**CLUSTERED, "assign": "holdout"})
    else:
        algorithm = mixture(on, **{**MIXTURE, "score": "holdout", "temperature": 1e-9})
    meta = begin(algorithm, on)
    chosen = algorithm.assign(meta, tasks.support_x, tasks.support_y)
    assert len(chosen.unique()) > 1
    for names in permutations(range(3)):
        new = torch.tensor(names)
        params = {
            n: v[:, new.argsort()] if n.startswith("head.") else v
            for n, v in meta["params"].items()
        }
        found = algorithm.assign(meta | {"params": params}, tasks.support_x, new[tasks.support_y])
        assert torch.equal(found, chosen), names


@pytest.mark.parametrize(
    ("words", "least"),
    [
        (["algo=clustered", "algo.assign=holdout"], 2),
        (["algo=clustered", "algo.assign=holdout", "algo.folds=null"], 2),
        (["algo=clustered", "algo.assign=holdout", "algo.folds=3"], 3),
        (["algo=mixture", "algo.score=holdout"], 2),
        (["algo=mixture", "algo.score=holdout", "algo.starts=1"], 1),
        (["algo=clustered"], 1),
    ],
)
@pytest.mark.parametrize("dataset", ["sinusoid", "glyphs"])
def test_shots_too_few_to_hold_any_out_are_refused_in_one_line(
    dataset: str, words: list[str], least: int
) -> None:
    def refused(shots: int) -> str:
        small = ["hardware=cpu", f"dataset={dataset}", f"task.shots={shots}", *words]
        try:
            assemble(check(compose_job(small)), Path("no-data-needed"))
        except ConfigError as error:
            return str(error)
        return ""

    assert not refused(least)
    if least > 1:
        said = refused(least - 1)
        assert said.startswith(f"task.shots: {least - 1} is too few: {words[0]} ")
        assert said.endswith(f"use task.shots={least} or more")
        assert "\n" not in said


def test_starts_warm_up_together_and_queries_grade_in_training_only() -> None:
    on, tasks = regression(), two_levels()
    warm = clustered(on, **{**CLUSTERED, "warm_up": 10})
    cold = clustered(on, **CLUSTERED)
    graded = clustered(on, **{**CLUSTERED, "graded_by": "query"})
    meta = begin(warm, on)
    own = cold.meta_grad(meta, tasks, 0).gradient["params"]
    for step, share in ((0, 1.0), (5, 0.5), (10, 0.0), (99, 0.0)):
        for name, found in warm.meta_grad(meta, tasks, step).gradient["params"].items():
            mean = own[name].mean(0, keepdim=True)
            torch.testing.assert_close(found, (1 - share) * own[name] + share * mean)
    support = (tasks.support_x, tasks.support_y)
    assert torch.equal(graded.assign(meta, *support), cold.assign(meta, *support))
    losses = torch.stack([judged(on, meta, start, tasks) for start in range(3)])
    torch.testing.assert_close(graded.meta_grad(meta, tasks, 0).losses, losses.min(0).values)


def test_the_bias_that_keeps_starts_in_use_counts_in_training_only() -> None:
    on, tasks = regression(), two_levels()
    algorithm = clustered(on, **CLUSTERED)
    meta = begin(algorithm, on)
    support = (tasks.support_x, tasks.support_y)
    chosen = algorithm.assign(meta, *support)
    curve = list(algorithm.adapt(meta, *support, 2))
    for start in range(3):
        meta["usage"]["bias"] = 1e6 * (torch.arange(3) != start).double()
        found = algorithm.meta_grad(meta, tasks, 0)
        torch.testing.assert_close(found.losses, judged(on, meta, start, tasks))
        assert torch.equal(algorithm.assign(meta, *support), chosen)
        for ours, theirs in zip(algorithm.adapt(meta, *support, 2), curve, strict=True):
            assert all(torch.equal(ours[name], value) for name, value in theirs.items())


@pytest.mark.parametrize("proximal", [0.0, 3.0])
def test_a_start_is_scored_after_the_adaptation_that_a_task_would_have(proximal: float) -> None:
    on, tasks = regression(), two_levels(1)
    *_, last = maml(on, **{**PLAIN, "proximal": proximal}).adapt(
        {"params": on.initial()}, tasks.support_x, tasks.support_y, PLAIN["steps"]
    )
    update, support = gradient_descent(PLAIN["inner_lr"]), (tasks.support_x[0], tasks.support_y[0])
    found = fit(on, update, PLAIN["steps"], proximal, on.initial(), *support)
    for name, value in found.items():
        torch.testing.assert_close(value, last[name][0], rtol=1e-12, atol=1e-14)


def test_starts_that_learn_from_all_tasks_at_first_are_not_called_exact() -> None:
    said = [
        clustered(regression(), **{**CLUSTERED, "starts": starts, "warm_up": warm_up}).exact
        for starts, warm_up in ((3, 0), (3, 10), (1, 10))
    ]
    assert said == [True, False, True]


def judged(on: Problem, meta: Meta, start: int, tasks: Tasks) -> torch.Tensor:
    """Return the query losses of all tasks, adapted from one start."""
    single = maml(on, **PLAIN)
    own = {"params": {n: v[start] for n, v in meta["params"].items()}}
    return single.meta_grad(own, tasks, 0).losses


@pytest.mark.parametrize("graded_by", ["support", "query"])
def test_a_start_from_which_adaptation_diverges_is_chosen_last(graded_by: str) -> None:
    """Of numbers and none, torch takes the one that is none for the least."""
    on, tasks = regression(), two_levels()
    algorithm = clustered(on, **{**CLUSTERED, "graded_by": graded_by})
    meta = begin(algorithm, on)
    for value in meta["params"].values():
        value[0] = float("nan")
    assert 0 not in algorithm.assign(meta, tasks.support_x, tasks.support_y)
    found = algorithm.meta_grad(meta, tasks, 0)
    assert found.losses.isfinite().all()
    assert all(value.isfinite().all() for value in found.gradient["params"].values())
    for value in meta["params"].values():
        value[:] = float("nan")
    assert not algorithm.meta_grad(meta, tasks, 0).losses.isfinite().any(), "where all do, it shows"
