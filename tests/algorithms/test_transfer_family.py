"""What follows pre-training: each head against its definition, and the choice on validation."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from oracles import DOUBLE, image_tasks, problem
from torch.func import functional_call
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from metarun import checkpoint
from metarun.algorithms.baselinepp import baselinepp
from metarun.algorithms.centroid import centroid
from metarun.algorithms.logreg import logistic_regression, logreg
from metarun.algorithms.parts.heads import Cosine, unit
from metarun.algorithms.parts.lbfgs import minimise
from metarun.algorithms.parts.masks import matched
from metarun.algorithms.transfer import transfer
from metarun.config import compose_job
from metarun.errors import ConfigError
from metarun.evaluate import choose, evaluate
from metarun.numerics.chunks import map_meta
from metarun.numerics.parallel import Workers
from metarun.problem import Problem
from metarun.run import run_job
from metarun.tasks import examples_as_tasks

ON = problem("mlp")
TASKS = image_tasks("mlp", shots=3)
SIMPLE = dict(centre_grid=[0.0, 1.0], unit_grid=[0.0, 1.0], mean_rate=0.25)
REGRESSED = dict(penalty_grid=[1.0, 0.01], iterations=500, tolerance=1e-9)
BEST = "checkpoints/best.safetensors"
COSINES = dict(finetune="head", scale=2.0, many_scale=10.0, lr_grid=[0.1])


def started(algorithm):
    return map_meta(lambda v: v.to(DOUBLE), algorithm.init(algorithm.problem.initial()))


def logits(algorithm, meta, task: int):
    params = next(algorithm.adapt(meta, TASKS.support_x, TASKS.support_y, 0))
    own = {name: value[task] for name, value in params.items()}
    return algorithm.problem.predict(own, TASKS.support_x[task], TASKS.query_x[task])


def features(task: int):
    return [ON.features(ON.initial(), x[task]) for x in (TASKS.support_x, TASKS.query_x)]


def with_rates(meta, **rates: float):
    found = {name: torch.tensor(value, dtype=DOUBLE) for name, value in rates.items()}
    return {**meta, "rates": found}


def test_minimise_finds_the_minima_of_quadratics() -> None:
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(4, 12, 12, dtype=DOUBLE, generator=generator)
    curved = root @ root.mT + 0.01 * torch.eye(12, dtype=DOUBLE)
    target = torch.randn(4, 12, dtype=DOUBLE, generator=generator)
    calls = []

    def objective(x, rows):
        calls.append(1)
        slope = (curved[rows] @ (x - target[rows])[:, :, None])[:, :, 0]
        return 0.5 * ((x - target[rows]) * slope).sum(1), slope

    found = minimise(objective, torch.zeros_like(target), 1000, 1e-10)
    torch.testing.assert_close(found, target, rtol=0, atol=1e-7)
    assert len(calls) < 300


@pytest.mark.parametrize("penalty", [10.0, 1.0, 0.001])
def test_logistic_regression_is_at_its_optimum(penalty: float) -> None:
    """The slope of scikit-learn's objective vanishes, for a task alone as among others."""
    generator = torch.Generator().manual_seed(1)
    z = unit(torch.randn(5, 12, 20, dtype=DOUBLE, generator=generator).abs())
    y = torch.arange(4).repeat(5, 3)
    strength = torch.tensor(penalty, dtype=DOUBLE)
    weight, bias = logistic_regression(z, y, 4, strength, 1000, 1e-10)
    for t in range(5):
        w, b = weight[t].clone().requires_grad_(), bias[t].clone().requires_grad_()
        value = F.cross_entropy(z[t] @ w.T + b, y[t], reduction="sum")
        slopes = torch.autograd.grad(value + 0.5 * penalty * w.square().sum(), (w, b))
        assert max(float(slope.abs().max()) for slope in slopes) < 1e-8
    alone = logistic_regression(z[2:3], y[2:3], 4, strength, 1000, 1e-10)
    torch.testing.assert_close(alone[0][0], weight[2], rtol=0, atol=1e-12)
    torch.testing.assert_close(alone[1][0], bias[2], rtol=0, atol=1e-12)


def test_logreg_answers_from_features_of_unit_length() -> None:
    algorithm = logreg(ON, **REGRESSED)
    meta = with_rates(started(algorithm), penalty=0.5)
    support, query = (F.normalize(f) for f in features(1))
    weight, bias = logistic_regression(
        support[None], TASKS.support_y[1:2], 3, torch.tensor(0.5), 500, 1e-9
    )
    expected = query @ weight[0].T + bias[0]
    torch.testing.assert_close(logits(algorithm, meta, 1), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("centre", "power"), [(0.0, 0.0), (0.0, 1.0), (1.0, 1.0)])
def test_centroid_is_un_l2n_and_cl2n(centre: float, power: float) -> None:
    algorithm = centroid(ON, **SIMPLE)
    meta = with_rates(started(algorithm), centre=centre, unit=power)
    mean = torch.linspace(-1, 1, ON.model.width, dtype=DOUBLE)
    meta["mean"] = {"features": mean}
    support, query = (f - centre * mean for f in features(2))
    if power:
        support, query = F.normalize(support), F.normalize(query)
    means = torch.stack([support[TASKS.support_y[2] == way].mean(0) for way in range(3)])
    expected = (-torch.cdist(query, means).square()).softmax(1)
    found = logits(algorithm, meta, 2).softmax(1)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)


def test_the_mean_of_the_training_features_is_followed() -> None:
    algorithm = centroid(ON, **SIMPLE)
    meta = started(algorithm)
    x = TASKS.query_x.flatten(0, 1)
    found = algorithm.meta_grad(meta, examples_as_tasks(x[None], torch.arange(len(x))[None] % 7), 0)
    expected = 0.25 * ON.features(ON.initial(), x).mean(0)
    torch.testing.assert_close(found.shift["mean"]["features"], expected)
    assert "mean" not in found.gradient


def test_baselinepp_compares_directions() -> None:
    algorithm = baselinepp(ON, head="imprinted", **COSINES)
    meta = started(algorithm)
    support, query = features(0)
    unit_rows = F.normalize(support)
    means = torch.stack([unit_rows[TASKS.support_y[0] == way].mean(0) for way in range(3)])
    expected = 2 * F.cosine_similarity(query[:, None], means[None], dim=2)
    torch.testing.assert_close(logits(algorithm, meta, 0), expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(("classes", "scale"), [(200, 2.0), (201, 10.0)])
def test_baselinepp_pre_trains_under_cosines_scaled_by_the_number_of_classes(
    classes: int, scale: float
) -> None:
    algorithm = baselinepp(Problem(ON.model, ON.kind, classes), head="random", **COSINES)
    meta = started(algorithm)
    x, y = TASKS.query_x.flatten(0, 1), torch.arange(18) * 11
    found = algorithm.meta_grad(meta, examples_as_tasks(x[None], y[None]), 0)
    head = Cosine(ON.model.width, classes, scale).double()
    outputs = functional_call(head, meta["base"], (ON.features(ON.initial(), x),))
    torch.testing.assert_close(found.losses[0], F.cross_entropy(outputs, y))
    assert float(found.gradient["params"]["head.weight"].abs().max()) == 0  # drawn once, for tasks


HEADS = {
    "transfer-zeros": lambda on: transfer(on, finetune="head", head="zeros", lr_grid=[0.1]),
    "transfer": lambda on: transfer(on, finetune="head", head="imprinted", lr_grid=[0.1]),
    "baselinepp": lambda on: baselinepp(on, head="random", **COSINES),
    "baselinepp-imprinted": lambda on: baselinepp(on, head="imprinted", **COSINES),
}


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("model", ["mlp-batch", "conv4-support", "conv4-none"])
def test_a_head_on_kept_features_is_a_head_on_a_body_run_at_every_step(
    model: str, name: str
) -> None:
    algorithm, tasks = HEADS[name](problem(model)), image_tasks(model)
    on, meta = algorithm.problem, started(algorithm)
    adapted = list(algorithm.adapt(meta, tasks.support_x, tasks.support_y, 4))
    head = [name for name in adapted[0] if name.startswith("head.")]
    for t in range(len(tasks)):
        params = {n: v[t] for n, v in adapted[0].items() if n in meta["params"]}
        for after in adapted[1:]:
            leaf = {n: params[n].detach().requires_grad_() for n in head}
            loss = on.loss(params | leaf, tasks.support_x[t], tasks.support_y[t])
            slopes = torch.autograd.grad(loss, list(leaf.values()))
            moved = zip(leaf.items(), slopes, strict=True)
            params |= {n: (v - meta["rates"]["inner_lr"] * g).detach() for (n, v), g in moved}
            for key, value in params.items():
                torch.testing.assert_close(after[key][t], value, rtol=1e-11, atol=1e-13)
        assert max(float((params[n] - adapted[0][n][t]).abs().max()) for n in head) > 1e-4


@pytest.mark.parametrize("name", HEADS)
def test_more_steps_of_a_head_cost_no_more_passes_of_the_body(name: str) -> None:
    algorithm, tasks = HEADS[name](problem("conv4-batch")), image_tasks("conv4-batch")
    meta = started(algorithm)

    def flops(steps: int) -> int:
        with FlopCounterMode(display=False) as counter:
            list(algorithm.adapt(meta, tasks.support_x, tasks.support_y, steps))
        return counter.get_total_flops()

    assert flops(10) < 1.2 * flops(1)  # what the head costs; the body again would be 5 times


@pytest.mark.parametrize("head", ["zeros", "imprinted"])
def test_a_task_s_head_begins_at_zero_or_at_the_directions_of_its_class_means(head: str) -> None:
    """Whatever the head was that the model was drawn with."""
    algorithm = transfer(ON, finetune="all", head=head, lr_grid=[0.1])
    first = next(algorithm.adapt(started(algorithm), TASKS.support_x, TASKS.support_y, 0))
    assert not first["head.bias"].any()
    for t in range(len(TASKS)):
        rows, y = F.normalize(features(t)[0]), TASKS.support_y[t]
        means = torch.stack([rows[y == way].mean(0) for way in range(3)])
        expected = F.normalize(means) if head == "imprinted" else torch.zeros_like(means)
        torch.testing.assert_close(first["head.weight"][t], expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("part", ["all", "last_block", "head"])
@pytest.mark.parametrize("model", ["mlp-batch", "conv4-batch"])
def test_fine_tuning_moves_the_part_that_a_mask_of_that_name_does(model: str, part: str) -> None:
    on, tasks = problem(model), image_tasks(model, shots=3)
    algorithm = transfer(on, finetune=part, head="imprinted", lr_grid=[0.1])
    meta = map_meta(lambda v: v.to(DOUBLE), algorithm.init(on.initial()))
    before, after = algorithm.adapt(meta, tasks.support_x, tasks.support_y, 1)
    moved = {name for name in on.initial() if not torch.equal(before[name], after[name])}
    # A bias before a batch normalisation has no gradient but roundings.
    silent = {name for name in on.initial() if name.endswith(".bias") and "norm" not in name}
    assert moved | silent == matched("algo.finetune", part, on) | silent


def test_what_is_drawn_at_random_is_drawn_once_and_by_the_seed() -> None:
    made = []
    for seed in (0, 0, 1):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            made.append(transfer(ON, finetune="all", head="zeros", lr_grid=[0.1]))
    first, same, other = (a.init(ON.initial())["base"]["weight"] for a in made)
    assert torch.equal(first, same)
    assert torch.equal(first, made[0].init(ON.initial())["base"]["weight"])
    assert not torch.equal(first, other)


@pytest.mark.parametrize(
    ("factory", "settings", "combinations"), [(logreg, REGRESSED, 2), (centroid, SIMPLE, 4)]
)
def test_what_is_left_open_is_chosen_on_validation_tasks(factory, settings, combinations) -> None:
    algorithm = factory(ON, **settings)
    tried = []

    def validate(meta):
        scores = evaluate(
            algorithm.problem, algorithm, meta, iter([TASKS]), 2, lambda: None, Workers(1)
        )
        assert torch.equal(scores.values, scores.values[:, :1].expand(-1, 3))
        rates = {name: float(value) for name, value in meta["rates"].items()}
        tried.append((scores.goodness(0), rates))
        return scores

    chosen, meta = choose(algorithm, started(algorithm), validate)
    assert len(tried) == combinations
    assert chosen.steps == 0
    assert chosen.goodness == max(goodness for goodness, _ in tried)
    assert {name: float(value) for name, value in meta["rates"].items()} in [r for _, r in tried]


@pytest.mark.parametrize(
    "factory",
    [
        lambda on: baselinepp(on, head="random", **COSINES),
        lambda on: logreg(on, **REGRESSED),
        lambda on: centroid(on, **SIMPLE),
    ],
)
def test_regression_is_refused(factory) -> None:
    with pytest.raises(ConfigError, match=r"^algo=\w+: tells classes apart"):
        factory(Problem(ON.model, "regression"))


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("algo", ["baselinepp", "logreg", "centroid"])
def test_a_run_that_was_cut_ends_in_the_same_bits(algo: str, tmp_path: Path) -> None:
    """On images, with the state that pre-training keeps and the rates that validation chose."""
    small = ["model.filters=4", "outer.batch=2", "task.queries=2", "task.test_queries=2"]
    short = ["debug=default", "budget.total=8", "checkpoints.every=2", "checkpoints.keep=9"]
    config = compose_job([f"algo={algo}", "dataset=glyphs", "hardware=cpu", *small, *short])
    assert run_job(config, tmp_path / "whole") == 0
    cut = tmp_path / "cut"
    shutil.copytree(tmp_path / "whole", cut)
    for path in (cut / "checkpoints").glob("step-*.safetensors"):
        if int(path.stem.removeprefix("step-")) > 4:
            path.unlink()
    for name in ("outcome.json", "scores.npz"):
        (cut / name).unlink()
    assert run_job(config, cut) == 0
    (whole, before), (again, after) = (
        (np.load(folder / "scores.npz")["accuracy"], checkpoint.load(folder / BEST)[0])
        for folder in (tmp_path / "whole", cut)
    )
    assert (whole == again).all()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
