"""Several modes: the choices' algebra against closed forms, and that the support alone decides."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from oracles import DOUBLE, Quadratic, distance, image_tasks, maml, norm, problem, quadratic_tasks
from torch import Tensor
from torch.func import functional_call

from metarun.algorithms.base import MetaAlgorithm
from metarun.algorithms.clustered import clustered
from metarun.algorithms.mixture import mixture, restarted
from metarun.algorithms.mmaml import FILM, channels, folded, mmaml
from metarun.algorithms.multi_maml import multi_maml
from metarun.algorithms.tsamaml import tsamaml
from metarun.chunks import map_meta
from metarun.clusters import families
from metarun.encoder import set_encoder
from metarun.errors import ConfigError
from metarun.evaluate import Scores, evaluate
from metarun.kmeans import kmeans
from metarun.models.mlp import mlp
from metarun.parallel import Workers
from metarun.problem import Meta, Params, Problem
from metarun.statistics import ari
from metarun.tasks import Tasks

PLAIN: dict[str, Any] = dict(inner_lr=0.3, steps=2, estimator="adjoint")
MIXTURE: dict[str, Any] = dict(
    **PLAIN,
    starts=3,
    weights="em",
    combine="predictions",
    score="after",
    temperature=1.0,
    width=5,
    share_rate=0.1,
    restart=0.0,
    spread=0.4,
    balance=0.0,
)
TSA: dict[str, Any] = dict(
    **PLAIN, starts=2, warm_up=3, tasks=12, cluster_on="body", cluster_steps=5
)
MANY = {
    "mixture-em": lambda on: mixture(on, **MIXTURE),
    "mixture-em-start": lambda on: mixture(on, **{**MIXTURE, "combine": "parameters"}),
    "mixture-gate": lambda on: mixture(on, **{**MIXTURE, "weights": "gate"}),
    "mmaml": lambda on: mmaml(on, **PLAIN, width=5, inner_clip=None),
    "tsamaml": lambda on: tsamaml(on, **TSA),
    "tsamaml-features": lambda on: tsamaml(on, **{**TSA, "cluster_on": "features"}),
}


def regression() -> Problem:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        small = dict(hidden=[6, 5], norm="none", bn_mode="transductive", adapt_norm=True)
        net = mlp((1,), 1, **small, activation="tanh", init="default")
    return Problem(net.double(), "regression")


def two_levels(count: int = 12) -> Tasks:
    """Return regression tasks whose targets lie around 2 or, every other one, around -2."""
    generator = torch.Generator().manual_seed(1)
    mode = torch.arange(count) % 2
    x = torch.randn(count, 8, 1, dtype=DOUBLE, generator=generator)
    noise = 0.2 * torch.randn(count, 8, 1, dtype=DOUBLE, generator=generator)
    y = 2.0 - 4.0 * mode.double().view(-1, 1, 1) + noise
    return Tasks(x[:, :5], y[:, :5], x[:, 5:], y[:, 5:], mode)


def begin(algorithm: MetaAlgorithm, on: Any) -> Meta:
    return map_meta(lambda v: v.to(DOUBLE), algorithm.init(on.initial()))


def turned(algorithm: MetaAlgorithm, meta: Meta, tasks: Tasks, size: int = 5) -> Meta:
    assert algorithm.turn is not None
    return meta | algorithm.turn.change(meta, tasks.chunks(size))


def last(algorithm: MetaAlgorithm, meta: Meta, tasks: Tasks, steps: int = 2) -> Params:
    return list(algorithm.adapt(meta, tasks.support_x, tasks.support_y, steps))[-1]


# One start, equal starts


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
    meta["mixture"]["share"] = torch.tensor([0.5, 0.3, 0.2], dtype=DOUBLE)
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
            logs[t, m] = meta["mixture"]["share"][m].log() - summed / temperature
            losses[t, m] = 0.5 * (phi - b) @ tasks.query_x[t] @ (phi - b)
            pulls[t, m] = shrink.T @ tasks.query_x[t] @ (phi - b)
    r = torch.exp(logs - logs.logsumexp(1, keepdim=True))
    if temperature == 1e-6:
        assert torch.equal(r.amax(1), torch.ones(count, dtype=DOUBLE))  # hard assignment
    torch.testing.assert_close(found.losses, (r * losses).sum(1), rtol=1e-12, atol=1e-14)
    expected = torch.einsum("tm,tmd->md", r, pulls) / count
    torch.testing.assert_close(found.gradient["params"]["phi"], expected, rtol=1e-12, atol=1e-14)
    moved = 0.1 * (r.mean(0) - meta["mixture"]["share"])
    torch.testing.assert_close(found.shift["mixture"]["share"], moved, rtol=1e-12, atol=1e-14)
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


def test_a_dead_start_begins_again_beside_the_most_used() -> None:
    start = torch.tensor([[1.0, 2.0], [5.0, 9.0], [-3.0, 0.0]], dtype=DOUBLE)
    share = torch.tensor([0.3, 0.68, 0.02], dtype=DOUBLE)
    meta = {"params": {"phi": start}, "mixture": {"share": share, "bias": torch.zeros(3)}}
    still = {"mixture": {"share": torch.zeros(3, dtype=DOUBLE), "bias": torch.zeros(3)}}
    assert restarted(meta, still, 0.05, 0.0, 7) is still  # 0.02 is above 5 % of a third
    moved = restarted(meta, still, 0.1, 0.0, 7)
    assert (start + moved["params"]["phi"]).tolist() == [[1.0, 2.0], [5.0, 9.0], [5.0, 9.0]]
    after = share + moved["mixture"]["share"]
    assert after.tolist() == pytest.approx([0.3, 0.35, 0.35])
    near = restarted(meta, still, 0.1, 0.5, 7)["params"]["phi"]
    assert (start + near)[2].tolist() != [5.0, 9.0]
    assert torch.equal(near, restarted(meta, still, 0.1, 0.5, 7)["params"]["phi"])


def test_balance_works_against_starts_that_take_more_than_their_share() -> None:
    on, tasks = Quadratic(4), quadratic_tasks(5, 4)
    algorithm = mixture(on, **{**MIXTURE, "balance": 0.1})
    meta = begin(algorithm, on)
    meta["mixture"]["bias"] = torch.tensor([1e6, 0.0, 1e6], dtype=DOUBLE)
    found = algorithm.meta_grad(meta, tasks, 0)
    assert found.gradient["params"]["phi"][[0, 2]].abs().max() == 0
    third = pytest.approx(0.1 / 3)
    assert (-found.shift["mixture"]["bias"]).tolist() == [third, pytest.approx(-0.2 / 3), third]
    assert algorithm.assign(meta, tasks.support_x, tasks.support_y).tolist() == [1] * 5


# The support alone decides


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
    assert found["usage"] == [1.0, 0.0]
    assert found["effective"] == pytest.approx(1.0)
    right = replace(scores, metric="accuracy", values=1 - values / 10, by_start=1 - by_start / 10)
    assert families(right, ("a", "b"), 1)["regret"] == pytest.approx(0.2)


@pytest.mark.parametrize("name", ["mixture-em", "mixture-em-start", "tsamaml"])
def test_the_chosen_start_is_one_of_each(name: str) -> None:
    """Regret is measured against the very adaptations that a choice picks from."""
    on, tasks = regression(), two_levels(6)
    algorithm = MANY[name](on)
    meta = begin(algorithm, on)
    if algorithm.turn is not None:
        meta = turned(algorithm, meta, two_levels())
    else:  # decided beyond doubt, so that the mixture is the start that it chooses
        meta["mixture"]["share"] = torch.tensor([1e-6, 1.0, 1e-6], dtype=DOUBLE)
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


# Encoder and modulation


@pytest.mark.parametrize("model", ["mlp", "conv4-none"])
def test_the_encoder_sees_a_set_without_numbers_for_classes(model: str) -> None:
    on, tasks = problem(model), image_tasks(model, 1)
    encoder = set_encoder(on, 6, 4)
    params = {n: v.double() for n, v in encoder.init().items()}
    x, y = tasks.support_x[0], tasks.support_y[0]
    code = encoder.encode(params, x, y)
    torch.testing.assert_close(encoder.encode(params, x.flip(0), 2 - y), code)
    assert not torch.allclose(encoder.encode(params, 1 - x, y), code, rtol=1e-3)


def test_the_encoder_of_curves_sees_their_targets() -> None:
    on, tasks = regression(), two_levels(2)
    encoder = set_encoder(on, 6, 4)
    params = {n: v.double() for n, v in encoder.init().items()}
    x, y = tasks.support_x[0], tasks.support_y[0]
    code = encoder.encode(params, x, y)
    torch.testing.assert_close(encoder.encode(params, x.flip(0), y.flip(0)), code)
    assert not torch.allclose(encoder.encode(params, x, y.flip(0)), code, rtol=1e-6)


@pytest.mark.parametrize(
    "model", ["mlp", "mlp-batch", "conv4-batch", "conv4-group", "conv4-none", "resnet12"]
)
def test_folding_is_scaling_and_shifting_hidden_channels(model: str) -> None:
    on, tasks = problem(model), image_tasks(model, 1)
    units = channels(on.model)
    total = sum(count for _, count in units)
    film = torch.randn(2 * total, dtype=DOUBLE, generator=torch.Generator().manual_seed(2))
    x, first, hooks = tasks.query_x[0], 0, []
    modules = dict(on.model.named_modules())
    for name, count in units:
        scale, shift = film[first : first + count], film[total + first : total + first + count]
        first += count

        def modulate(_: Any, __: Any, out: Tensor, scale: Tensor = scale, shift: Tensor = shift):
            wide = (1, -1) + (1,) * (out.dim() - 2)
            return out * (1 + scale.view(wide)) + shift.view(wide)

        hooks.append(modules[name].register_forward_hook(modulate))
    expected = on.model(x)
    for hook in hooks:
        hook.remove()
    params = folded(on.initial() | {FILM: film}, units)
    torch.testing.assert_close(functional_call(on.model, params, (x,)), expected)
    assert not torch.allclose(on.model(x), expected)


def test_without_modulation_mmaml_is_maml() -> None:
    on, tasks = problem("conv4-batch"), image_tasks("conv4-batch")
    algorithm, parent = mmaml(on, **PLAIN, width=5, inner_clip=None), maml(on, **PLAIN)
    meta = begin(algorithm, on)
    meta["encoder"] |= {
        n: torch.zeros_like(meta["encoder"][n]) for n in ("code.weight", "code.bias")
    }
    found, expected = (
        a.meta_grad(m, tasks, 0) for a, m in ((algorithm, meta), (parent, begin(parent, on)))
    )
    assert torch.equal(found.losses, expected.losses)
    assert distance({"params": found.gradient["params"]}, expected.gradient) < 1e-13
    assert norm({"code": {"bias": found.gradient["encoder"]["code.bias"]}}) > 1e-4


# k-means and clusters of adapted weights


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


def test_fewer_tasks_than_starts_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"algo\.tasks: 1 tasks cannot fill algo\.starts=2"):
        tsamaml(regression(), **{**TSA, "tasks": 1})


def test_a_cold_mixture_is_hard_clustering() -> None:
    on, tasks = regression(), two_levels()
    cold = mixture(on, **{**MIXTURE, "temperature": 1e-9})
    apart = dict(starts=3, spread=0.4, balance=0.0, folds=2, graded_by="support", warm_up=0)
    hard = clustered(on, **PLAIN, assign="after", **apart)
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
    for folds, parts in ((2, 2), (None, 4)):
        settings = dict(starts=3, spread=0.4, balance=0.0, graded_by="support", warm_up=0)
        algorithm = clustered(on, **PLAIN, **settings, assign="holdout", folds=folds)
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
                totals.append(total)
            assert int(chosen[t]) == min(range(3), key=totals.__getitem__)


def test_starts_warm_up_together_and_queries_grade_in_training_only() -> None:
    on, tasks = regression(), two_levels()
    settings = dict(starts=3, spread=0.4, balance=0.0, folds=2, assign="after")
    warm = clustered(on, **PLAIN, **settings, graded_by="support", warm_up=10)
    cold = clustered(on, **PLAIN, **settings, graded_by="support", warm_up=0)
    graded = clustered(on, **PLAIN, **settings, graded_by="query", warm_up=0)
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


def judged(on: Problem, meta: Meta, start: int, tasks: Tasks) -> torch.Tensor:
    """Return the query losses of all tasks, adapted from one start."""
    single = maml(on, **PLAIN)
    own = {"params": {n: v[start] for n, v in meta["params"].items()}}
    return single.meta_grad(own, tasks, 0).losses
