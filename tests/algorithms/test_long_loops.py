"""Long inner loops: the figures against closed forms, and what they show on sinusoids."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from families import CLUSTERED, MIXTURE, PLAIN, TSA, begin, regression, turned, two_levels
from oracles import DOUBLE, Quadratic, imaml, maml, quadratic_tasks

sys.path.insert(0, str(Path(__file__).parents[1] / "train"))

from tiny import Log, tiny

from metarun.algorithms.base import MetaAlgorithm
from metarun.algorithms.clustered import clustered
from metarun.algorithms.mixture import mixture
from metarun.algorithms.multi_maml import multi_maml
from metarun.algorithms.tsamaml import tsamaml
from metarun.engine.cost import Flops
from metarun.errors import ConfigError
from metarun.numerics.longloop import largest_curvature, observed
from metarun.problem import Problem
from metarun.signals import Stop
from metarun.state import State
from metarun.train import train

SIZE, RATE, STEPS = 5, 0.3, 7
PROBLEM = Quadratic(SIZE)
TASKS = quadratic_tasks(3, SIZE)
META = {"params": PROBLEM.initial()}
SETTINGS = {"inner_lr": RATE, "steps": STEPS}
SOLVED = dict(solver="cg", iterations=SIZE)


def looked_at(algorithm: MetaAlgorithm):
    assert algorithm.meta_grad is not None
    there = observed(PROBLEM, algorithm, SETTINGS, "any")
    assert there.meta_grad is not None
    return algorithm.meta_grad(META, TASKS, 0), there.meta_grad(META, TASKS, 0)


def test_the_figures_are_those_of_the_closed_forms() -> None:
    plain, found = looked_at(maml(PROBLEM, **SETTINGS, estimator="recompute"))
    theta = META["params"]["phi"]
    for t in range(len(TASKS)):
        a, target = TASKS.support_x[t], TASKS.support_y[t]
        contraction = torch.linalg.matrix_power(torch.eye(SIZE, dtype=DOUBLE) - RATE * a, STEPS)
        end = target + contraction @ (theta - target)
        first = TASKS.query_x[t] @ (end - TASKS.query_y[t])
        exact = contraction.T @ first
        cosine = exact @ first / exact.norm() / first.norm()
        torch.testing.assert_close(found.figures["gradient_ratio"][t], exact.norm() / first.norm())
        torch.testing.assert_close(found.figures["cosine_first_order"][t], cosine)
        largest = RATE * torch.linalg.eigvalsh(a)[-1]
        for place in ("start", "end"):
            curvature = found.figures[f"curvature_{place}"][t]
            assert 0.8 * largest < curvature <= (1 + 1e-12) * largest
    torch.testing.assert_close(found.losses, plain.losses)
    torch.testing.assert_close(found.gradient["params"], plain.gradient["params"])


def test_first_order_has_a_ratio_and_a_cosine_of_one() -> None:
    _, found = looked_at(maml(PROBLEM, **SETTINGS, estimator="first_order"))
    for name in ("gradient_ratio", "cosine_first_order"):
        torch.testing.assert_close(found.figures[name], torch.ones(3, dtype=DOUBLE))


SEVERAL: dict[str, Callable[[Problem], MetaAlgorithm]] = {
    "clustered": lambda on: clustered(on, **CLUSTERED),
    "clustered-graded": lambda on: clustered(on, **{**CLUSTERED, "graded_by": "query"}),
    "multi_maml": lambda on: multi_maml(on, **PLAIN, starts=2),
    "tsamaml": lambda on: tsamaml(on, **TSA),
    "mixture": lambda on: mixture(on, **{**MIXTURE, "temperature": 1e-9}),
    "mixture-start": lambda on: mixture(
        on, **{**MIXTURE, "temperature": 1e-9, "combine": "parameters"}
    ),
}


@pytest.mark.parametrize("family", SEVERAL)
def test_of_several_starts_the_figures_are_of_the_one_a_task_has_in_training(family: str) -> None:
    on, tasks = regression(), two_levels(8)
    algorithm, parent = SEVERAL[family](on), maml(on, **PLAIN)
    meta = begin(algorithm, on)
    if algorithm.turn is not None:
        meta = turned(algorithm, meta, two_levels())
    elif family == "multi_maml":  # whose starts begin as one
        for value in meta["params"].values():
            value[1] += 1.0
    group, chosen = "starts" if algorithm.turn else "params", set[int]()
    judge = algorithm.problem or on
    found = observed(judge, algorithm, PLAIN, family).meta_grad(meta, tasks, 0)
    for t in range(len(tasks)):
        one = tasks[t : t + 1]
        pulls = algorithm.meta_grad(meta, one, 0).gradient[group]["head.bias"].flatten(1)
        (which,) = pulls.abs().sum(1).nonzero().flatten().tolist()
        chosen.add(which)
        start = {"params": {n: v[which] for n, v in meta[group].items()}}
        expected = observed(on, parent, PLAIN, "maml").meta_grad(start, one, 0).figures
        for name, value in expected.items():
            if name.startswith("curvature") and family == "mixture":
                continue  # the sharpest of all its starts
            torch.testing.assert_close(found.figures[name][t], value[0], rtol=1e-8, atol=0)
    assert len(chosen) > 1


def test_figures_of_an_algorithm_s_own_are_kept() -> None:
    _, found = looked_at(imaml(PROBLEM, **SETTINGS, proximal=2.0, **SOLVED))
    assert {"solver_residual", "inner_residual", "gradient_ratio"} <= found.figures.keys()


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_power_iterations_find_the_largest_curvature_and_its_sign(sign: float) -> None:
    one = TASKS[:1]
    bent = type(one)(sign * one.support_x, *(getattr(one, n) for n in one.__slots__[1:]))
    there = {"phi": META["params"]["phi"][None]}
    found = largest_curvature(PROBLEM, there, PROBLEM.model.adapted, bent, 300)
    expected = sign * torch.linalg.eigvalsh(one.support_x[0])[-1]
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=0.0)


def test_the_curvature_is_of_what_the_inner_loop_moves() -> None:
    """Of ANIL's head alone, whose Hessian on features z is 2 z'z / S; a body bends far more."""
    words = ("outer.diagnose=true", "hardware.dtype=float64", "algo.steps=2")
    experiment, whole = (tiny(*words, f"algo={algo}") for algo in ("anil", "maml"))
    meta, tasks = experiment.initial(), experiment.batch(0)
    figures, others = (e.algorithm.meta_grad(meta, tasks, 0).figures for e in (experiment, whole))
    for t in range(len(tasks)):
        x = tasks.support_x[t]
        z = experiment.problem.features(meta["params"], x)
        z = torch.cat([z, torch.ones_like(z[:, :1])], 1)
        largest = 0.01 * torch.linalg.eigvalsh(2 * z.T @ z / len(z))[-1]
        for place in ("start", "end"):  # the body, and with it the Hessian, stays
            found = figures[f"curvature_{place}"][t]
            assert 0.9 * largest < found <= (1 + 1e-12) * largest
        assert others["curvature_start"][t] > 1.2 * largest


def test_curvatures_are_of_where_the_loop_begins_and_of_where_it_ends() -> None:
    words = ("outer.diagnose=true", "hardware.dtype=float64", "algo.steps=9", "algo.inner_lr=0.05")
    experiment = tiny(*words)
    meta, task = experiment.initial(), experiment.batch(0)[:1]
    figures = experiment.algorithm.meta_grad(meta, task, 0).figures
    adapted = experiment.problem.model.adapted
    path = list(experiment.algorithm.adapt(meta, task.support_x, task.support_y, 9))
    bent = [largest_curvature(experiment.problem, path[k], adapted, task) for k in (0, 9)]
    torch.testing.assert_close(figures["curvature_start"][0], 0.05 * bent[0])
    torch.testing.assert_close(figures["curvature_end"][0], 0.05 * bent[1])
    assert abs(bent[1] / bent[0] - 1) > 0.01


LONG = ("task.shots=20", "outer.batch=6", "hardware.dtype=float64", "model.hidden=[40,40]")


@pytest.mark.slow
def test_at_a_large_rate_outliers_rule_a_long_loop_s_exact_gradient() -> None:
    """The reference's criterion (9.3): p95 of the ratio above 100 at rate 0.1 and 50 steps."""
    ratios = {}
    for rate, steps in ((0.1, 50), (0.01, 50), (0.1, 1)):
        words = (f"algo.inner_lr={rate}", f"algo.steps={steps}", "outer.diagnose=true")
        experiment = tiny(*LONG, *words)
        meta_grad = experiment.algorithm.meta_grad
        assert meta_grad is not None
        figures = meta_grad(experiment.initial(), experiment.batch(0), 0).figures
        ratios[rate, steps] = float(figures["gradient_ratio"].quantile(0.95))
        if rate == 0.1:
            assert figures["curvature_start"].max() > 1.5
    assert ratios[0.1, 50] > 100
    assert ratios[0.01, 50] < 2
    assert ratios[0.1, 1] < 10


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ("algo=fomaml",),
        ("algo=truncated",),
        ("algo=maml", "algo.estimator=recompute"),
        ("algo=imaml", "algo.inner_lr=0.01"),
    ],
    ids=" ".join,
)
def test_two_hundred_steps_run_and_stay_finite_at_a_small_rate(words: tuple[str, ...]) -> None:
    few = ("budget.total=1", "validation.tasks=2", "outer.batch=2", "algo.inner_lr=0.01")
    experiment, log = tiny(*few, *words, "algo.steps=200"), Log()
    state = train(experiment, State(experiment.initial()), log, Stop(), Flops())
    assert (state.step, state.nonfinite) == (1, 0)


def test_records_tell_the_tail_over_tasks_and_count_what_was_clipped() -> None:
    words = ("outer.diagnose=true", "algo.steps=2", "outer.clip=1e-6", "budget.total=3")
    experiment, log = tiny(*words), Log()
    state = train(experiment, State(experiment.initial()), log, Stop(), Flops())
    assert (state.clipped, state.nonfinite) == (3, 0)
    figures = [f for kind, _, f in log.records if kind == "train"][-1]
    assert figures["clipped"] == 3
    for name in ("gradient_ratio", "cosine_first_order", "curvature_start", "curvature_end"):
        assert figures[f"{name}_median"] <= figures[f"{name}_p95"] <= figures[f"{name}_max"]


def test_diagnosing_changes_no_training() -> None:
    ends = []
    for said in ("true", "false"):
        experiment = tiny(f"outer.diagnose={said}", "hardware.dtype=float64", "algo.steps=2")
        ends.append(train(experiment, State(experiment.initial()), Log(), Stop(), Flops()).meta)
    for name, value in ends[0]["params"].items():
        torch.testing.assert_close(value, ends[1]["params"][name], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("algo", ["transfer", "scratch"])
def test_where_there_is_no_inner_loop_in_training_diagnosing_is_refused(algo: str) -> None:
    with pytest.raises(ConfigError, match=f"outer.diagnose: algo={algo} has no training loop"):
        tiny(f"algo={algo}", "outer.diagnose=true")
