"""The examples work as they stand, from outside, and touch nothing of the tree."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import oracles
import pytest

ROOT = Path(__file__).parents[1]
OUTSIDER = ROOT / "examples" / "outsider"
TINY = (
    "debug=default",
    "model.hidden=[8]",
    "budget.total=6",
    "test.tasks=20",
    "test.steps=2",
    "validation.steps=2",
    "hardware=cpu",
)


def tree() -> dict[Path, int]:
    """Return every file of the package, its settings and the examples, with when it changed."""
    folders = (ROOT / name for name in ("metarun", "conf", "examples"))
    files = (path for folder in folders for path in folder.rglob("*") if path.is_file())
    return {path: path.stat().st_mtime_ns for path in files if "__pycache__" not in path.parts}


def metarun(words: list[str], place: Path) -> str:
    """Run metarun in another folder with the example on the path; return what it says."""
    environment = {
        "METARUN_ALLOW": "anchored",
        "METARUN_OUTPUTS": str(place / "outputs"),
        "PYTHONPATH": f"{ROOT}{os.pathsep}{OUTSIDER}",
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "100",
    }
    done = subprocess.run(
        [sys.executable, "-m", "metarun", *words],
        cwd=place,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_an_outsiders_algorithm_runs_resumes_and_is_compared(tmp_path: Path) -> None:
    """By the commands of its README, with small budgets."""
    before = tree()
    text = (OUTSIDER / "README.md").read_text()
    lines = [shlex.split(line)[1:] for line in re.findall(r"^metarun .*$", text, re.MULTILINE)]
    verify, own, other, compare = (
        [str(OUTSIDER / "conf") if word == "conf" else word for word in line] for line in lines
    )
    said = metarun([*verify, "model.hidden=[8]"], tmp_path)
    assert "no leakage" in said
    assert "fail" not in said
    metarun([*own, *TINY], tmp_path)
    run = tmp_path / "outputs" / "anchored"
    whole = (run / "scores.npz").read_bytes()
    (run / "outcome.json").unlink()
    (run / "scores.npz").unlink()
    sorted((run / "checkpoints").glob("step-*"))[-1].unlink()
    assert "going on from meta-step" in metarun([*own, *TINY], tmp_path)
    assert (run / "scores.npz").read_bytes() == whole
    metarun([*other, *TINY], tmp_path)
    said = metarun(compare, tmp_path)
    assert re.search(r"^ *anchored +\d", said, re.MULTILINE), said
    assert re.search(r"^ *maml ", said, re.MULTILINE), said
    assert tree() == before


def test_the_outsiders_algorithm_is_maml_without_decay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(OUTSIDER))
    from anchored import anchored
    from oracles import maml

    on, tasks = oracles.problem("mlp"), oracles.image_tasks("mlp")
    settings = dict(inner_lr=0.1, steps=3, estimator="adjoint")
    parent = maml(on, **settings)
    meta = parent.init(on.initial())
    expected = parent.meta_grad(meta, tasks, 0).gradient
    same = anchored(on, **settings, decay=0.0).meta_grad(meta, tasks, 0)
    assert oracles.distance(same.gradient, expected) < 1e-14
    algorithm = anchored(on, **settings, decay=0.5)
    drawn = algorithm.meta_grad(meta, tasks, 0)
    assert oracles.distance(drawn.gradient, expected) > 1e-3
    objective = lambda there: algorithm.meta_grad(there, tasks, 0)  # noqa: E731
    assert oracles.finite_difference(objective, meta, drawn.gradient) < 1e-7
