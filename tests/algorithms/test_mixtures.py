"""Mixtures of starts against closed forms, against MAML, and their guards against collapse."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from families import MIXTURE, PLAIN, begin, last
from oracles import DOUBLE, Quadratic, distance, image_tasks, maml, problem, quadratic_tasks
from torch import Tensor

from metarun.algorithms.base import MetaAlgorithm
from metarun.algorithms.mixture import mixture
from metarun.evaluate import evaluate
from metarun.gradients.metagradient import query_losses
from metarun.numerics.parallel import Workers
from metarun.problem import Meta
from metarun.tasks import Tasks
from metarun.verbs.checks import EXACT_WAYS


@pytest.mark.parametrize("combine", ["predictions", "parameters"])
@pytest.mark.parametrize("weights", ["em", "gate"])
@pytest.mark.parametrize("model", ["mlp", "conv4-batch"])
def test_a_mixture_of_one_is_maml_bit_for_bit(model: str, weights: str, combine: str) -> None:
    on, tasks = problem(model), image_tasks(model)
    one = {**MIXTURE, "starts": 1, "weights": weights, "combine": combine}
    single, parent = mixture(on, **one), maml(on, **PLAIN)
    meta, plain = begin(single, on), begin(parent, on)
    found, expected = single.meta_grad(meta, tasks, 0), parent.meta_grad(plain, tasks, 0)
    assert torch.equal(found.losses, expected.losses)
    for name, value in expected.gradient["params"].items():
        assert torch.equal(found.gradient["params"][name][0], value), name
    ours, theirs = last(single, meta, tasks), last(parent, plain, tasks)
    for name, value in theirs.items():
        assert torch.equal(ours[name].view_as(value), value)


@pytest.mark.parametrize("combine", ["predictions", "parameters"])
@pytest.mark.parametrize("weights", ["em", "gate"])
def test_equal_starts_are_maml_shared_out(weights: str, combine: str) -> None:
    on, tasks = problem("conv4-none"), image_tasks("conv4-none")
    alike = {**MIXTURE, "spread": 0.0, "weights": weights, "combine": combine}
    several, parent = mixture(on, **alike), maml(on, **PLAIN)
    found = several.meta_grad(begin(several, on), tasks, 0)
    expected = parent.meta_grad(begin(parent, on), tasks, 0)
    torch.testing.assert_close(found.losses, expected.losses, rtol=1e-12, atol=0)
    total = {n: v.sum(0) for n, v in found.gradient["params"].items()}
    assert distance({"params": total}, expected.gradient) < 1e-12
    if weights == "em":  # an untrained gate is nearly, not quite, even
        assert found.figures["starts_a_task"].tolist() == pytest.approx([3.0] * 3)
    scores = [
        evaluate(a.problem or on, a, begin(a, on), iter([tasks]), 2, lambda: None, Workers(1))
        for a in (several, parent)
    ]
    assert torch.equal(scores[0].values, scores[1].values)


# Expectation and maximisation in closed form


@pytest.mark.parametrize("temperature", [1.0, 20.0, 1e-6])
def test_em_on_quadratic_tasks(temperature: float) -> None:
    size, count = 4, 5
    on, tasks = Quadratic(size), quadratic_tasks(count, size)
    algorithm = mixture(on, **{**MIXTURE, "temperature": temperature})
    meta = begin(algorithm, on)
    meta["usage"]["share"] = torch.tensor([0.5, 0.3, 0.2], dtype=DOUBLE)
    found = algorithm.meta_grad(meta, tasks, 0)
    starts = meta["params"]["phi"]
    logs, pulls = torch.empty(count, 3, dtype=DOUBLE), torch.empty(count, 3, size, dtype=DOUBLE)
    losses = torch.empty(count, 3, dtype=DOUBLE)
    for t in range(count):
        a, b = tasks.support_y[t], tasks.query_y[t]
        shrink = torch.linalg.matrix_power(
            torch.eye(size, dtype=DOUBLE) - 0.3 * tasks.support_x[t], 2
        )
        for m in range(3):
            phi = a + shrink @ (starts[m] - a)
            summed = size * 0.5 * (phi - a) @ tasks.support_x[t] @ (phi - a)
            logs[t, m] = meta["usage"]["share"][m].log() - summed / temperature
            losses[t, m] = 0.5 * (phi - b) @ tasks.query_x[t] @ (phi - b)
            pulls[t, m] = shrink.T @ tasks.query_x[t] @ (phi - b)
    r = torch.exp(logs - logs.logsumexp(1, keepdim=True))
    if temperature == 1e-6:
        assert torch.equal(r.amax(1), torch.ones(count, dtype=DOUBLE))  # hard assignment
    torch.testing.assert_close(found.losses, (r * losses).sum(1), rtol=1e-12, atol=1e-14)
    expected = torch.einsum("tm,tmd->md", r, pulls) / count
    torch.testing.assert_close(found.gradient["params"]["phi"], expected, rtol=1e-12, atol=1e-14)
    moved = 0.1 * (r.mean(0) - meta["usage"]["share"])
    torch.testing.assert_close(found.shift["usage"]["share"], moved, rtol=1e-12, atol=1e-14)
    assert torch.equal(algorithm.assign(meta, tasks.support_x, tasks.support_y), r.argmax(1))


def test_an_average_start_is_adapted_from_the_weighted_mean() -> None:
    on, tasks = Quadratic(4), quadratic_tasks(5, 4)
    algorithm = mixture(on, **{**MIXTURE, "combine": "parameters", "weights": "em"})
    meta = begin(algorithm, on)
    alone = [next(run)["phi"] for run in algorithm.each(meta, tasks.support_x, tasks.support_y, 0)]
    logs = torch.empty(5, 3, dtype=DOUBLE)
    for m, run in enumerate(algorithm.each(meta, tasks.support_x, tasks.support_y, 2)):
        phi = list(run)[-1]["phi"]
        logs[:, m] = -4 * on_each(on, phi, tasks)
    r = logs.softmax(1)
    expected = sum(r[:, m, None] * alone[m] for m in range(3))
    torch.testing.assert_close(last(algorithm, meta, tasks, 0)["phi"], expected)


def on_each(on: Quadratic, phi: Tensor, tasks: Tasks) -> Tensor:
    return torch.stack(
        [
            on.loss({"phi": phi[t]}, tasks.support_x[t], tasks.support_y[t])
            for t in range(len(tasks))
        ]
    )


def test_predictions_are_averaged_as_probabilities() -> None:
    on, tasks = problem("conv4-support"), image_tasks("conv4-support", 1)
    algorithm = mixture(on, **MIXTURE)
    meta = begin(algorithm, on)
    params = {n: v[0] for n, v in last(algorithm, meta, tasks).items()}
    found = algorithm.problem.predict(params, tasks.support_x[0], tasks.query_x[0]).exp()
    expected = sum(
        params["mixture"][m]
        * on.predict(
            {n: v[m] for n, v in params.items() if n != "mixture"},
            tasks.support_x[0],
            tasks.query_x[0],
        ).softmax(1)
        for m in range(3)
    )
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(found.sum(1), torch.ones(6, dtype=DOUBLE))


def test_balance_works_against_starts_that_take_more_than_their_share() -> None:
    on, tasks = Quadratic(4), quadratic_tasks(5, 4)
    algorithm = mixture(on, **{**MIXTURE, "balance": 0.1})
    meta = begin(algorithm, on)
    meta["usage"]["bias"] = torch.tensor([1e6, 0.0, 1e6], dtype=DOUBLE)
    found = algorithm.meta_grad(meta, tasks, 0)
    assert found.gradient["params"]["phi"][[0, 2]].abs().max() == 0
    third = pytest.approx(0.1 / 3)
    assert (-found.shift["usage"]["bias"]).tolist() == [third, pytest.approx(-0.2 / 3), third]
    assert algorithm.assign(meta, tasks.support_x, tasks.support_y).tolist() == [1] * 5


@pytest.mark.parametrize("share", [0.0, -1e-12], ids=["none", "rounded below none"])
def test_a_start_whose_share_ran_out_still_takes_the_tasks_that_it_alone_fits(share: float) -> None:
    on, tasks = Quadratic(4), quadratic_tasks(5, 4)
    algorithm = mixture(on, **MIXTURE)
    meta = begin(algorithm, on)
    meta["params"]["phi"][1:] += 50.0
    meta["usage"]["share"] = torch.tensor([share, 0.5, 0.5], dtype=DOUBLE)
    assert algorithm.assign(meta, tasks.support_x, tasks.support_y).tolist() == [0] * 5
    found = algorithm.meta_grad(meta, tasks, 0)
    assert found.losses.isfinite().all()
    assert (found.shift["usage"]["share"][0] > 0.09).all()


def test_a_gate_s_code_is_divided_by_the_temperature() -> None:
    on, tasks = problem("mlp"), image_tasks("mlp")
    warm, cold = (
        mixture(on, **{**MIXTURE, "weights": "gate", "temperature": at}) for at in (1.0, 0.25)
    )
    meta = begin(warm, on)
    meta["encoder"]["code.weight"] *= 100
    plain, sharp = (last(a, meta, tasks, 0)["mixture"] for a in (warm, cold))
    assert plain.std(1).min() > 0.05
    torch.testing.assert_close(sharp, (4 * plain.log()).softmax(1))


# Starts that diverge


@pytest.mark.parametrize("there", [1e200, float("nan")], ids=["overflows", "no number"])
def test_a_start_that_diverges_leaves_a_mixture_of_the_others(there: float) -> None:
    on, tasks = Quadratic(4), quadratic_tasks(5, 4)
    three, two = (mixture(on, **{**MIXTURE, "starts": starts}) for starts in (3, 2))
    meta, fewer = begin(three, on), begin(two, on)
    fewer["params"]["phi"] = meta["params"]["phi"][[0, 2]].clone()
    meta["params"]["phi"][1] = there
    found, expected = three.meta_grad(meta, tasks, 0), two.meta_grad(fewer, tasks, 0)
    torch.testing.assert_close(found.losses, expected.losses, rtol=1e-12, atol=0)
    pull = found.gradient["params"]["phi"]
    torch.testing.assert_close(pull[[0, 2]], expected.gradient["params"]["phi"])
    assert pull[1].tolist() == [0.0] * 4
    torch.testing.assert_close(found.figures["starts_a_task"], expected.figures["starts_a_task"])
    assert found.shift["usage"]["share"].isfinite().all()
    support = (tasks.support_x, tasks.support_y)
    assert 1 not in three.assign(meta, *support)
    for ours, theirs in zip(
        three.adapt(meta, *support, 3), two.adapt(fewer, *support, 3), strict=True
    ):
        answers = [
            query_losses(a.problem, params, tasks) for a, params in ((three, ours), (two, theirs))
        ]
        torch.testing.assert_close(*answers, rtol=1e-12, atol=0)


BLIND = {  # weights that do not see what becomes of a start, and one from where it diverges
    "gate": ({"weights": "gate"}, 1.7e308),
    "before": ({"weights": "em", "score": "before", "temperature": 1e301, "inner_lr": 1e4}, 1e150),
}


def blind(weights: str, **more: Any) -> tuple[MetaAlgorithm, Meta, Tasks]:
    """Return a mixture of three starts by such weights; the second diverges on every task."""
    settings, far = BLIND[weights]
    on, tasks = (Quadratic(4), quadratic_tasks(5, 4))
    if weights == "gate":  # which takes a model whose first layer it can copy
        on, tasks = problem("mlp"), image_tasks("mlp", 5)
    algorithm = mixture(on, **{**MIXTURE, **settings, **more})
    meta = begin(algorithm, on)
    for value in meta["params"].values():
        value[1] = far * value[1].sign()
    return algorithm, meta, tasks


@pytest.mark.parametrize("estimator", EXACT_WAYS)
@pytest.mark.parametrize("weights", BLIND)
def test_a_start_that_adaptation_drives_away_has_no_part(weights: str, estimator: str) -> None:
    """Value and gradient of the others, by central differences; and nothing from that one."""
    algorithm, meta, tasks = blind(weights, estimator=estimator)
    found = algorithm.meta_grad(meta, tasks, 0)
    assert found.losses.isfinite().all()
    assert all(not value[1].any() for value in found.gradient["params"].values())
    learned = {group: params for group, params in meta.items() if group != "usage"}
    way = {group: {n: torch.randn_like(v) for n, v in p.items()} for group, p in learned.items()}
    for value in way["params"].values():
        value[1] = 0

    def loss(size: float) -> Tensor:
        moved = {g: {n: v + size * way[g][n] for n, v in p.items()} for g, p in learned.items()}
        return algorithm.meta_grad(meta | moved, tasks, 0).losses.mean()

    slope = sum((found.gradient[g][n] * way[g][n]).sum() for g in learned for n in learned[g])
    torch.testing.assert_close((loss(1e-6) - loss(-1e-6)) / 2e-6, slope, rtol=1e-6, atol=0)
    support = (tasks.support_x, tasks.support_y)
    assert 1 not in algorithm.assign(meta, *support)
    (*_, params) = algorithm.adapt(meta, *support, 2)
    assert query_losses(algorithm.problem, params, tasks).isfinite().all()


@pytest.mark.parametrize("weights", BLIND)
def test_where_adaptation_drives_all_starts_away_it_shows(weights: str) -> None:
    algorithm, meta, tasks = blind(weights)
    for value in meta["params"].values():
        value[:] = value[1]
    found = algorithm.meta_grad(meta, tasks, 0)
    assert not found.losses.isfinite().any()
    assert not all(v.isfinite().all() for v in found.gradient["params"].values())


def test_where_all_starts_diverge_it_shows_in_that_task_alone() -> None:
    on, tasks = Quadratic(4), quadratic_tasks(3, 4)
    tasks.support_x[1] *= 1e200
    algorithm = mixture(on, **MIXTURE)
    found = algorithm.meta_grad(begin(algorithm, on), tasks, 0)
    assert found.losses.isfinite().tolist() == [True, False, True]
    assert not found.gradient["params"]["phi"].isfinite().all()


@pytest.mark.parametrize("model", ["mlp", "conv4-batch"])
@pytest.mark.parametrize("combine", ["predictions", "parameters"])
def test_a_start_too_large_to_adapt_pulls_at_nothing(model: str, combine: str) -> None:
    on, tasks = problem(model), image_tasks(model)
    algorithm = mixture(on, **{**MIXTURE, "combine": combine})
    meta = begin(algorithm, on)
    for value in meta["params"].values():
        value[0] = value[0].sign() * 1.7e308
    found = algorithm.meta_grad(meta, tasks, 0)
    assert found.losses.isfinite().all()
    for name, value in found.gradient["params"].items():
        assert value.isfinite().all(), name
        assert value[0].abs().max() == 0, name
    (*_, params) = algorithm.adapt(meta, tasks.support_x, tasks.support_y, 2)
    judge = algorithm.problem or on
    assert query_losses(judge, params, tasks).isfinite().all()
    outputs = judge.predict(
        {n: v[0] for n, v in params.items()}, tasks.support_x[0], tasks.query_x[0]
    )
    assert outputs.isfinite().all()
