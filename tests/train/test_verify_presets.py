"""`metarun verify` on every algorithm as it is shipped, and what it does not hold against one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import sin

import oracles
import pytest
from oracles import maml
from test_verify import CLUSTERS, EXPERIMENT, PLAIN, Images, found, one_row, peeping, scaled

from metarun.algorithms.clustered import clustered
from metarun.algorithms.reptile import reptile
from metarun.assemble import learning
from metarun.config import check, compose_job
from metarun.paths import conf_dir
from metarun.problem import Problem
from metarun.verbs import verify
from metarun.verbs.checks import checks

PRESETS = sorted(path.stem for path in (conf_dir() / "algo").glob("*.yaml"))
QUICK = ("maml", "reptile", "mamlpp", "metacurvature")
SKIPS = {
    "clustered": {"no steps": "no estimator makes its gradient exact"},
    "es_maml": {"label permutation": "seed the estimator's noise"},
    "mixture": {"no steps": "no estimator makes its gradient exact"},
    "reptile": {"no leakage": "no query is held out"},
}


@pytest.mark.parametrize(
    "preset", [pytest.param(p, marks=[pytest.mark.slow] * (p not in QUICK)) for p in PRESETS]
)
def test_no_preset_fails_and_every_skip_says_why(preset: str) -> None:
    """As shipped; a warning is of a kink of ReLU alone."""
    words = ["model=mlp", "model.hidden=[8]", "task.shots=2", "task.queries=2", "hardware=cpu"]
    words += ["dataset=omniglot", f"algo={preset}", "hardware.dtype=float64"]  # its suggestions
    checked = check(compose_job(words))
    small = replace(EXPERIMENT, source=Images(), task=checked.sections["task"], parts=checked.parts)
    problem, algorithm = learning(checked, small.source, small.hardware)
    whole = verify.subject_of(checked, replace(small, problem=problem, algorithm=algorithm))
    rows = {row.name: row for row in checks(whole)}
    assert {row.state for row in rows.values()} <= {"ok", "warn", "skip"}, rows
    assert all("kink" in row.detail for row in rows.values() if row.state == "warn"), rows
    skipped = {name: row.detail for name, row in rows.items() if row.state == "skip"}
    assert skipped.keys() == SKIPS.get(preset, {}).keys()
    assert all(why in skipped[name] for name, why in SKIPS.get(preset, {}).items())


def test_queries_may_grade_starts_and_that_is_said() -> None:
    settings = {**PLAIN, **CLUSTERS, "graded_by": "query", "starts": 5, "spread": 0.05}
    rows = found(clustered, settings)
    assert {n for n, row in rows.items() if row.state != "ok"} == {"no leakage"}, rows
    assert rows["no leakage"].state == "warn"
    assert "the choice of a start" in rows["no leakage"].detail


def test_a_leak_is_found_beside_a_method_without_a_query() -> None:
    """What is said to be an approximation may leak no more than what is exact."""
    on = oracles.problem("mlp")
    assert one_row("no leakage", peeping, on, estimator="first_order").state == "fail"
    walk = dict(optimizer="sgd", inner_lr=0.01, steps=2, batch=4, beta2=0.999)
    rows = found(reptile, walk, on)
    assert rows["no leakage"].state == "skip"


def off_by(size: Callable[[float, int], float]) -> Callable[..., object]:
    """Return MAML whose gradient is too long by what `size` makes of the start and the tasks."""

    def factory(on: Problem, **settings: object) -> object:
        algorithm = maml(on, **settings)

        def meta_grad(meta, tasks, step):
            start = float(sum(value.sum() for value in meta["params"].values()))
            return scaled(algorithm.meta_grad(meta, tasks, step), 1 + size(start, len(tasks)))

        return algorithm._replace(meta_grad=meta_grad)

    return factory


@pytest.mark.parametrize(
    ("size", "state"),
    [
        (lambda start, tasks: 1e-7 * sin(1e16 * start + tasks), "warn"),  # as Adam's or a search's
        (lambda start, tasks: 1e-7 * tasks, "fail"),
        (lambda start, tasks: 0.1 * sin(1e16 * start + tasks), "fail"),
    ],
    ids=["what rounding does", "as much by a fault", "what nothing excuses"],
)
def test_two_ways_may_differ_by_what_rounding_of_the_start_does(size, state: str) -> None:
    row = one_row("loop = vmap", off_by(size), oracles.problem("mlp"))
    assert row.state == state, row
    assert ("rounding alone carries as far" in row.detail) is (state == "warn")


def kinked(at: float) -> Callable[..., object]:
    """Return MAML whose loss begins to rise that far from the start, and says no word of it."""

    def factory(on: Problem, **settings: object) -> object:
        algorithm = maml(on, **settings)
        begun = sum(value.sum() for value in on.initial().values())

        def meta_grad(meta, tasks, step):
            found = algorithm.meta_grad(meta, tasks, step)
            moved = sum(value.sum() for value in meta["params"].values()) - begun
            return found._replace(losses=found.losses + (moved - at).clamp_min(0))

        return algorithm._replace(meta_grad=meta_grad)

    return factory


@pytest.mark.parametrize(("at", "state"), [(2e-7, "ok"), (0.0, "fail")])
def test_a_kink_near_the_start_is_none_at_it(at: float, state: str) -> None:
    """The narrower differences do not reach it; one at the start they find."""
    row = one_row("finite differences", kinked(at), oracles.problem("mlp"))
    assert row.state == state, row
