"""The contract that every algorithm keeps; its table is in `cases.py`."""

from __future__ import annotations

import pytest
import torch
from cases import CASES, Case
from oracles import DOUBLE, MODELS, distance, finite_difference, image_tasks, norm, problem

from metarun.algorithms.base import MetaAlgorithm
from metarun.numerics.chunks import in_chunks, map_meta
from metarun.problem import Meta
from metarun.tasks import Tasks, examples_as_tasks

TRAINED = [case for case in CASES if case.name != "scratch"]
CLOSED_FORMS = ("protonet", "protonet-cosine", "r2d2", "logreg", "centroid")  # nothing moves
ON_ALL_MODELS = ("maml", "fomaml", "imaml", "clustered", "mmaml", "transfer-all")  # a family each


def marks(case: Case, model: str) -> list[pytest.MarkDecorator]:
    """All models with MAML and every family with one of each kind are fast; the rest is slow."""
    variant = "-" in case.name and case.name not in ON_ALL_MODELS
    heavy = case.name in ("clustered", "mmaml", "imaml") and model not in ("mlp", "conv4-none")
    many = heavy or (variant and model != "mlp") or case.name == "imaml-solved"
    return [pytest.mark.slow] if many else []


PAIRS = [
    pytest.param(case, model, id=f"{case.name}-{model}", marks=marks(case, model))
    for case in TRAINED
    for model in MODELS
    if case.name in ON_ALL_MODELS or model in ("mlp", "conv4-none")
]


def by_name(case: Case) -> str:
    return case.name


def built(case: Case, model: str) -> tuple[MetaAlgorithm, Meta]:
    on = problem(model)
    algorithm = case.build(on)
    initial = (algorithm.problem or on).initial()
    return algorithm, map_meta(lambda v: v.to(DOUBLE), algorithm.init(initial))


def batch_for(algorithm: MetaAlgorithm, model: str, count: int = 3) -> Tasks:
    tasks = image_tasks(model, count)
    if algorithm.batches == "tasks":
        return tasks
    x = tasks.query_x.flatten(0, 1)
    return examples_as_tasks(x[None], torch.arange(len(x))[None] % 7)


@pytest.mark.parametrize(("case", "model"), PAIRS)
def test_gradient(case: Case, model: str) -> None:
    """Exact as claimed, the same by loop and by vmap, in any order and in any chunks."""
    algorithm, meta = built(case, model)
    assert algorithm.meta_grad is not None
    tasks = batch_for(algorithm, model)
    before = map_meta(torch.clone, meta)
    whole = algorithm.meta_grad(meta, tasks, 0)

    for group, params in whole.gradient.items():
        for name, value in params.items():
            assert value.shape == meta[group][name].shape
            assert value.dtype == meta[group][name].dtype
            assert torch.equal(meta[group][name], before[group][name])
    assert whole.losses.shape == (len(tasks),)
    for chunk in (1, 2):
        parts, _ = in_chunks(algorithm.meta_grad, meta, tasks, 0, chunk)
        assert distance(parts.gradient, whole.gradient) < 1e-10
        torch.testing.assert_close(parts.losses, whole.losses)
        for group, params in whole.shift.items():
            torch.testing.assert_close(parts.shift[group], params)
    order = torch.arange(len(tasks)).flip(0)
    flipped = algorithm.meta_grad(meta, tasks[order], 0)
    assert distance(flipped.gradient, whole.gradient) < 1e-10
    again = algorithm.meta_grad(meta, tasks, 0)
    assert distance(again.gradient, whole.gradient) == 0.0

    objective = lambda there: algorithm.meta_grad(there, tasks, 0)  # noqa: E731
    error = finite_difference(objective, meta, whole.gradient)
    assert algorithm.exact <= case.exact  # iMAML's is exact only where its problem is solved
    if case.exact:
        assert error < 1e-7
    else:
        assert error > 1e-4, "claimed approximate, and is exact on this problem: a weak test"


@pytest.mark.parametrize("case", TRAINED, ids=by_name)
def test_a_bad_task_is_seen_and_does_not_touch_the_others(case: Case) -> None:
    algorithm, meta = built(case, "conv4-batch")
    assert algorithm.meta_grad is not None
    if algorithm.batches == "examples":
        return  # one pool of examples: there are no other tasks to protect
    tasks = image_tasks("conv4-batch")
    poisoned = tasks.support_x.clone()
    poisoned[1, 0, 0, 0, 0] = float("nan")
    found = algorithm.meta_grad(
        meta, Tasks(poisoned, tasks.support_y, tasks.query_x, tasks.query_y, tasks.mode), 0
    )
    assert found.losses.isnan().tolist() == [False, True, False]
    clean = algorithm.meta_grad(meta, tasks, 0)
    assert torch.equal(found.losses[::2], clean.losses[::2])


@pytest.mark.parametrize("case", CASES, ids=by_name)
def test_adaptation_uses_the_support_only_and_lowers_its_loss(case: Case) -> None:
    on = problem("conv4-held-norm")
    algorithm = case.build(on)
    judge = algorithm.problem or on
    meta = map_meta(lambda v: v.to(DOUBLE), algorithm.init(judge.initial()))
    tasks = image_tasks("conv4-held-norm")
    curve = list(algorithm.adapt(meta, tasks.support_x, tasks.support_y, 5))
    assert len(curve) == 6
    losses = [
        torch.stack(
            [
                judge.loss(
                    {n: v[t] for n, v in params.items()}, tasks.support_x[t], tasks.support_y[t]
                )
                for t in range(len(tasks))
            ]
        )
        for params in curve
    ]
    if case.name in CLOSED_FORMS:
        assert torch.equal(losses[-1], losses[0])
    else:
        assert (losses[-1] < losses[0]).all()
    alone = list(algorithm.adapt(meta, tasks.support_x[1:2], tasks.support_y[1:2], 5))
    for name, value in curve[-1].items():
        torch.testing.assert_close(value[1:2], alone[-1][name], rtol=1e-10, atol=case.noise)
    held = [n for n in curve[0] if n not in judge.model.adapted]
    assert all(torch.equal(curve[0][n], curve[-1][n]) for n in held)


@pytest.mark.parametrize(
    "case", [pytest.param(c, id=c.name, marks=marks(c, "mlp")) for c in TRAINED]
)
def test_training_loss_falls(case: Case) -> None:
    algorithm, meta = built(case, "mlp")
    assert algorithm.meta_grad is not None
    tasks = batch_for(algorithm, "mlp")
    first = algorithm.meta_grad(meta, tasks, 0)
    for step in range(20):
        found = algorithm.meta_grad(meta, tasks, step)
        meta = descended(meta, found.gradient, rate=0.2 / max(1.0, norm(found.gradient)))
    assert algorithm.meta_grad(meta, tasks, 20).losses.mean() < first.losses.mean()


def descended(meta: Meta, gradient: Meta, rate: float) -> Meta:
    return {
        group: {
            n: v - rate * gradient[group][n] if group in gradient else v for n, v in params.items()
        }
        for group, params in meta.items()
    }


@pytest.mark.parametrize("case", CASES, ids=by_name)
def test_whatever_is_drawn_is_drawn_by_the_seed_and_once(case: Case) -> None:
    """A draw in `init` would be another in every process: runs are built seeded, not stepped so."""
    on = problem("mlp")

    def begun(seed: int) -> Meta:
        torch.manual_seed(seed)
        algorithm = case.build(on)
        torch.seed()
        initial = (algorithm.problem or on).initial()
        once, again = (algorithm.init(initial) for _ in range(2))
        assert same(once, again)
        return once

    assert same(begun(0), begun(0))


def same(one: Meta, other: Meta) -> bool:
    return all(torch.equal(one[g][n], other[g][n]) for g in one for n in one[g])


@pytest.mark.parametrize("case", CASES, ids=by_name)
def test_a_start_is_called_after_what_trained_it(case: Case) -> None:
    others = {"scratch": "random"}
    others |= dict.fromkeys(("transfer", "baselinepp", "logreg", "centroid"), "pre-trained")
    family = case.name.partition("-")[0]
    assert case.build(problem("mlp")).start == others.get(family, "meta-learned")
