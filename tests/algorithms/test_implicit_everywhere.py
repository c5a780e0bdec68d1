"""The implicit meta-gradient as an estimator: of every family, or refused in a line."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from cases import CASES
from oracles import (
    DOUBLE,
    distance,
    finite_difference,
    image_tasks,
    problem,
)
from torch import Tensor

from metarun.algorithms.base import MetaAlgorithm
from metarun.config import compose_job
from metarun.errors import ConfigError
from metarun.gradients.estimators import Implicit
from metarun.numerics.chunks import map_meta
from metarun.problem import Meta, Problem

sys.path.insert(0, str(Path(__file__).parents[1] / "train"))

from tiny import tiny

BUILDERS = {case.name: case for case in CASES}


def begun(algorithm: MetaAlgorithm, on: Problem) -> Meta:
    meta = algorithm.init((algorithm.problem or on).initial())
    return map_meta(lambda value: value.to(DOUBLE), meta)


SOLVED = {
    "maml": {},
    "anil": {},
    "boil": {},
    "protomaml": {},
    "cavia": {},
    "adapters-film": {},
    "mmaml": {"inner_clip": 10.0},
    "multi_maml": {},
    "clustered": {},
    "tsamaml": {},
    "mixture-gate": {"proximal": 40.0, "inner_lr": 0.02},
    "mixture-em-start": {},
}


QUICK = ("maml", "cavia", "mixture-gate")
EACH = [pytest.param(name, marks=[pytest.mark.slow] * (name not in QUICK)) for name in SOLVED]


@pytest.mark.parametrize("name", EACH)
def test_it_is_the_gradient_of_every_family_s_solution(name: str) -> None:
    """Where the proximal problem is solved, the way to it does not matter: adjoint agrees."""
    on, tasks, case = problem("mlp"), image_tasks("mlp"), BUILDERS[name]
    solving = {"inner_lr": 0.05, "proximal": 10.0, "steps": 120} | SOLVED[name]
    implicit = Implicit(solver="cg", iterations=40, tolerance=0.0)
    found, expected = (
        case.factory(on, **{**case.settings, **solving, "estimator": estimator})
        for estimator in (implicit, "adjoint")
    )
    meta = begun(found, on)
    gradient, exact = (each.meta_grad(meta, tasks, 0) for each in (found, expected))
    assert gradient.figures["inner_residual"].max() < 1e-9
    assert gradient.figures["solver_residual"].max() < 1e-9
    assert distance(gradient.gradient, exact.gradient) < 1e-7


@pytest.mark.parametrize("name", EACH)
def test_the_pull_is_part_of_the_inner_loss_whatever_the_estimator(name: str) -> None:
    on, tasks, case = problem("mlp"), image_tasks("mlp"), BUILDERS[name]
    weak, strong = (
        case.factory(on, **{**case.settings, "proximal": strength, "inner_lr": 0.02, "steps": 2})
        for strength in (0.0, 20.0)
    )
    meta = begun(weak, on)
    support = tasks.support_x, tasks.support_y

    def moved(algorithm) -> Tensor:
        first, *_, last = algorithm.adapt(meta, *support, 8)
        names = [name for name in first if " " not in name and name in last]
        return sum((last[n] - first[n]).square().sum() for n in names)

    assert moved(strong) < 0.7 * moved(weak)
    if strong.exact:

        def objective(there: Meta):
            return strong.meta_grad(there, tasks, 0)

        assert finite_difference(objective, meta, objective(meta).gradient) < 1e-7


IMPLIED = "{solver: cg, iterations: 5}"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["algo=maml"], "pulled to its start; set algo.proximal above 0"),
        (["algo=clustered"], "set algo.proximal above 0"),
        (["algo=metasgd", "algo.proximal=1.0"], "rates .algo.rates=parameter. would never be"),
        (["algo=alfa"], "the rule that adapts .algo=alfa. would never be learned; use adjoint"),
        (["algo=metacurvature"], "the curvature .algo=metacurvature. would never be learned"),
        (["algo=mamlpp"], "algo.estimator: .* must be one of adjoint, recompute, unrolled or"),
    ],
)
def test_what_it_cannot_learn_is_refused_in_a_line(words: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        tiny(*words, f"algo.estimator={IMPLIED}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("algo", ["maml", "anil", "cavia", "protomaml", "mmaml"])
def test_it_is_one_setting_and_a_strength(algo: str) -> None:
    words = [f"algo={algo}", "algo.proximal=2.0", f"algo.estimator={IMPLIED}"]
    experiment = tiny("dataset=glyphs", "model=mlp", *words)
    found = experiment.algorithm.meta_grad(experiment.initial(), experiment.batch(0), 0)
    assert {"inner_residual", "solver_residual"} <= found.figures.keys()


def test_imaml_is_maml_with_a_pull_and_an_implicit_gradient() -> None:
    values = compose_job(["algo=imaml"])["algo"]
    assert values["_target_"] == compose_job(["algo=maml"])["algo"]["_target_"]
    assert values["proximal"] == 2.0
    assert values["estimator"] == dict(solver="cg", iterations=5, tolerance=1e-6, damping=0.0)
