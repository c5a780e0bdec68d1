"""`metarun verify` on every algorithm as it is shipped, and what it does not hold against one."""

from __future__ import annotations

from dataclasses import replace

import oracles
import pytest
from test_verify import CLUSTERS, EXPERIMENT, PLAIN, Images, found, one_row, peeping

from metarun.algorithms.clustered import clustered
from metarun.algorithms.reptile import reptile
from metarun.assemble import learning
from metarun.config import check, compose_job
from metarun.paths import conf_dir
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
