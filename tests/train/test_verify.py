"""`metarun verify`: sound algorithms pass every check, and each check has a fault that it finds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import oracles
import pytest
import torch
from oracles import maml
from tiny import tiny

from metarun.algorithms.baselinepp import baselinepp
from metarun.algorithms.clustered import clustered
from metarun.algorithms.metacurvature import metacurvature
from metarun.algorithms.protomaml import protomaml
from metarun.algorithms.protonet import protonet
from metarun.algorithms.r2d2 import r2d2
from metarun.algorithms.scratch import scratch
from metarun.problem import Problem
from metarun.tasks import Tasks
from metarun.verbs import verify
from metarun.verbs.checks import Row, Subject, checks

WAYS = 3
CLUSTERS = dict(starts=2, own="all", assign="after", spread=0.3, balance=0.1)
CLUSTERS |= dict(folds=2, graded_by="support", warm_up=0, share_rate=0.1, restart=0.0)
CLUSTERS |= dict(warm_up_by="mean")
PLAIN = dict(inner_lr=0.1, steps=2, estimator="adjoint", proximal=0.0)
UNPULLED = {name: value for name, value in PLAIN.items() if name != "proximal"}
STEPWISE = {**PLAIN, "steps": WAYS, "per_step": True}  # as many rates as classes
RATES = ("global", "tensor", "parameter")
GRADIENT = ["repeated", "loop = vmap", "finite differences"]
ESTIMATORS = ["estimators agree", "first order", "no steps"]
TASKWISE = ["label permutation", "no leakage"]


@dataclass(frozen=True)
class Images:
    """Noise with labels, as a source of tasks."""

    kind: str = "classification"
    features: tuple[int, ...] = (1, 8, 8)
    targets: int = 0
    train_classes: int = 7

    def tasks(self, split, first, count, *, ways, shots, queries, seed) -> Tasks:
        generator = torch.Generator().manual_seed(seed + first)
        labels = torch.arange(ways).repeat(count, 1)

        def images(rows: int):
            return torch.rand(count, rows, *self.features, generator=generator)

        return Tasks(
            images(ways * shots),
            labels.repeat(1, shots),
            images(ways * queries),
            labels.repeat(1, queries),
            torch.zeros(count, dtype=torch.long),
        )

    def examples(self, first, count, *, seed):
        generator = torch.Generator().manual_seed(seed + first)
        return torch.rand(count, *self.features, generator=generator), torch.arange(count) % 7


EXPERIMENT = tiny("task.shots=2", "task.queries=2", "hardware.dtype=float64")


def subject(factory: Callable[..., Any], settings: dict[str, Any], on: Problem) -> Subject:
    """Return an algorithm on noise images, and its variants."""

    def variant(changes) -> Any:
        algorithm = factory(on, **{**settings, **changes})
        return replace(
            EXPERIMENT,
            source=Images(),
            task=replace(EXPERIMENT.task, ways=WAYS),
            problem=algorithm.problem or on,
            algorithm=algorithm,
        )

    return Subject(variant({}), settings, variant)


def found(factory, settings, on: Problem | None = None) -> dict[str, Row]:
    rows = list(checks(subject(factory, settings, on or oracles.problem("mlp"))))
    return {row.name: row for row in rows}


def one_row(name: str, factory, on: Problem, **settings: Any) -> Row:
    """Return one check's row; those after it are not run."""
    rows = checks(subject(factory, {**PLAIN, **settings}, on))
    return next(row for row in rows if row.name == name)


@pytest.mark.parametrize(
    ("factory", "settings", "more"),
    [
        (maml, PLAIN, [*ESTIMATORS, *TASKWISE]),
        (maml, {**PLAIN, "estimator": "first_order"}, [*ESTIMATORS, *TASKWISE]),
        pytest.param(
            clustered,
            {**PLAIN, **CLUSTERS},
            [*ESTIMATORS, *TASKWISE],
            marks=pytest.mark.slow,
        ),
        (protomaml, PLAIN, [*ESTIMATORS, *TASKWISE]),
        (metacurvature, UNPULLED, [*ESTIMATORS, *TASKWISE]),
        *((maml, {**STEPWISE, "rates": rates}, [*ESTIMATORS, *TASKWISE]) for rates in RATES),
        (protonet, {"distance": "cosine", "scale": 5.0}, TASKWISE),
        (r2d2, {"ridge": 1.0, "scale": 1.0}, TASKWISE),
    ],
)
def test_sound_algorithms_pass_all_that_applies(factory, settings, more: list[str]) -> None:
    rows = found(factory, settings)
    always = ["adaptation", "adapted alone", "normalisation", "Hessian symmetric"]
    assert list(rows) == [*always, *GRADIENT, *more]
    assert {row.state for row in rows.values()} == {"ok"}, rows


def test_pre_training_and_scratch_have_fewer_checks() -> None:
    settings = dict(finetune="all", head="imprinted", scale=2.0, many_scale=9.0, lr_grid=[0.1, 0.3])
    rows = found(baselinepp, settings)
    assert {row.state for row in rows.values()} == {"ok"}, rows
    assert "no leakage" not in rows
    rows = found(scratch, {"lr_grid": [0.1]})
    assert list(rows)[-1] == "gradient"
    assert {row.state for row in rows.values()} == {"ok"}, rows


# Faults: each a factory like maml's, with one thing wrong.


def unrepeatable(on: Problem, **settings: Any):
    algorithm = maml(on, **settings)

    def adapt(meta, x, y, steps):
        for params in algorithm.adapt(meta, x, y, steps):
            yield {name: value + 1e-12 * torch.rand(()) for name, value in params.items()}

    def meta_grad(meta, tasks, step):
        return scaled(algorithm.meta_grad(meta, tasks, step), 1 + 1e-12 * float(torch.rand(())))

    return algorithm._replace(adapt=adapt, meta_grad=meta_grad)


def scaled(gradient, factor: float):
    moved = {g: {n: factor * v for n, v in p.items()} for g, p in gradient.gradient.items()}
    return gradient._replace(gradient=moved)


def mixing(on: Problem, **settings: Any):
    """Tasks of a batch see each other."""
    algorithm = maml(on, **settings)

    def adapt(meta, x, y, steps):
        for params in algorithm.adapt(meta, x, y, steps):
            yield {name: value + 0.01 * value.mean(0) * len(x) for name, value in params.items()}

    def meta_grad(meta, tasks, step):
        return scaled(algorithm.meta_grad(meta, tasks, step), len(tasks))

    return algorithm._replace(adapt=adapt, meta_grad=meta_grad)


def too_long(on: Problem, **settings: Any):
    algorithm = maml(on, **settings)
    return algorithm._replace(meta_grad=lambda *args: scaled(algorithm.meta_grad(*args), 1.02))


def one_way_wrong(on: Problem, **settings: Any):
    """`recompute` forgets the second-order terms."""
    way = {"recompute": "first_order"}.get(settings["estimator"], settings["estimator"])
    return maml(on, **{**settings, "estimator": way})


def boasting(on: Problem, **settings: Any):
    return maml(on, **settings)._replace(exact=True)


def never_first_order(on: Problem, **settings: Any):
    return maml(on, **{**settings, "estimator": "adjoint"})._replace(exact=False)


def trained_on_another_loss(on: Problem, **settings: Any):
    algorithm = maml(on, **settings)

    def meta_grad(meta, tasks, step):
        there = algorithm.meta_grad(meta, tasks, step)
        return there._replace(losses=there.losses + 1)

    return algorithm._replace(meta_grad=meta_grad)


def wrong_without_steps(on: Problem, **settings: Any):
    return maml(on, **settings) if settings["steps"] else too_long(on, **settings)


def cannot_stand_still(on: Problem, **settings: Any):
    if settings["steps"] == 0:
        raise ValueError("steps: at least 1")
    return maml(on, **settings)


@dataclass(frozen=True)
class FirstClassCounts(Problem):
    def error(self, outputs, y):
        weight = torch.ones(outputs.shape[-1], dtype=outputs.dtype)
        weight[0] = 2.0
        return torch.nn.functional.cross_entropy(outputs, y, weight=weight, reduction="sum")


def partial_to_a_class(on: Problem, **settings: Any):
    return maml(FirstClassCounts(on.model, on.kind, on.train_classes), **settings)


def peeping(on: Problem, **settings: Any):
    """The rate of the inner loop depends on the labels of the query."""
    algorithm = maml(on, **settings)

    def meta_grad(meta, tasks, step):
        rows = torch.arange(tasks.query_y.shape[1]) + 1.0
        hint = (tasks.query_y * rows).sum(1).cos()[:, None]
        return algorithm.meta_grad(meta, replace(tasks, support_x=pushed(tasks, hint)), step)

    return algorithm._replace(meta_grad=meta_grad)


def pushed(tasks: Tasks, hint: torch.Tensor) -> torch.Tensor:
    return tasks.support_x * (1 + 0.1 * hint[:, :, None, None, None])


@pytest.mark.parametrize(
    ("factory", "name", "state"),
    [
        (unrepeatable, "adaptation", "fail"),
        (unrepeatable, "repeated", "fail"),
        (mixing, "adapted alone", "fail"),
        (mixing, "loop = vmap", "fail"),
        (too_long, "finite differences", "fail"),
        (one_way_wrong, "estimators agree", "fail"),
        (boasting, "first order", "fail"),
        (never_first_order, "first order", "warn"),
        (trained_on_another_loss, "no steps", "fail"),
        (wrong_without_steps, "no steps", "fail"),
        (cannot_stand_still, "no steps", "warn"),
        (partial_to_a_class, "label permutation", "fail"),
        (peeping, "no leakage", "fail"),
    ],
)
def test_each_fault_is_found_by_its_check(factory, name: str, state: str) -> None:
    row = one_row(name, factory, oracles.problem("mlp"))
    assert row.state == state, row


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ((), 0),
        (("algo.estimator=first_order",), 0),
        (("algo=mamlpp", "algo.first_order_until=10"), 0),  # its second order is looked at too
    ],
)
def test_the_command_prints_a_table(words, code: int, capsys) -> None:
    assert verify.main(["dataset=sinusoid", "model.hidden=[8]", *words]) == code
    said = capsys.readouterr().out
    for name in ("adaptation", "no steps", "no leakage", "finite differences"):
        assert name in said
    assert "label permutation" not in said
    assert said.splitlines()[-1] == "11 checks passed"


@pytest.mark.parametrize(
    ("states", "said"),
    [
        ({"a": "ok"}, "1 check passed"),
        ({"a": "ok", "b": "ok", "c": "skip"}, "2 checks passed; 1 does not apply"),
        (
            {"a": "ok", "b": "warn", "c": "skip", "d": "skip"},
            "1 check passed; 1 to be looked at: b; 2 do not apply",
        ),
        ({"a": "ok", "b": "fail", "c": "warn"}, "1 of 3 checks FAILED: b"),
        ({"a": "fail", "b": "fail"}, "2 of 2 checks FAILED: a, b"),
    ],
)
def test_a_last_line_sums_up(states, said: str) -> None:
    assert verify.summary([Row(name, state, "") for name, state in states.items()]) == said


def test_the_command_fails_with_a_check(capsys, monkeypatch) -> None:
    monkeypatch.setattr(verify, "checks", lambda _: [Row("a", "ok", ""), Row("b", "fail", "so")])
    assert verify.main(["dataset=sinusoid", "model.hidden=[8]"]) == 1
    said = capsys.readouterr().out
    assert "so" in said
    assert said.splitlines()[-1] == "1 of 2 checks FAILED: b"
