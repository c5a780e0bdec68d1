"""What runs are called: the same configuration has the same folder, whatever the clock says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from metarun import paths
from metarun.config import compose_job
from metarun.errors import ConfigError
from metarun.paths import config_digest, differences, refuse_other_run, run_name

ROOT = Path(__file__).parents[2]
SHIFTED = """
import sys, time
now, shift = time.time, float(sys.argv[1])
time.time = lambda: now() + shift
from metarun.cli import main
sys.exit(main(sys.argv[2:]))
"""


@pytest.fixture(scope="module")
def config() -> dict[str, Any]:
    return compose_job(["dataset=sinusoid"])


def changed(config: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    copy = deepcopy(config)
    *parents, last = key.split(".")
    for name in parents:
        copy = copy[name]
    root = deepcopy(config)
    node = root
    for name in parents:
        node = node[name]
    node[last] = value
    return root


@pytest.mark.parametrize(
    ("key", "value", "counts"),
    [
        ("seed", 1, True),
        ("outer.lr", 0.002, True),
        ("algo.steps", 2, True),
        ("hardware.dtype", "float64", True),
        ("test.seed", 1, True),
        ("budget.total", 1001, True),
        ("name", "other", False),
        ("launch.workers", 8, False),
        ("search.trials", 8, False),
        ("tracking", {"_target_": "metarun.tracking.wandb"}, False),
        ("suggest.inner_lr", 9.0, False),
        ("checkpoints.every", 7, False),
        ("choices.launch", "local", False),
        ("budget.total", 1000.0, False),
    ],
)
def test_what_the_digest_counts(config: dict[str, Any], key: str, value: Any, counts: bool) -> None:
    other = changed(config, key, value)
    assert (config_digest(other) != config_digest(config)) == counts
    assert bool(differences(config, other)) == counts


def test_digest_does_not_depend_on_order(config: dict[str, Any]) -> None:
    turned = json.loads(json.dumps(config), object_pairs_hook=lambda pairs: dict(pairs[::-1]))
    assert list(turned) != list(config)
    assert config_digest(turned) == config_digest(config)


def test_names(config: dict[str, Any]) -> None:
    name = run_name(config)
    assert name.startswith("maml-sinusoid-")
    assert name.endswith("-s0")
    assert run_name(changed(config, "seed", 7)) == name.removesuffix("0") + "7"
    assert run_name(changed(config, "outer.lr", 7)) != name
    assert run_name(changed(config, "name", "mine")) == "mine"
    named = changed(config, "choices.experiment", "mine/of a kind")
    assert run_name(named).startswith("maml-mine-of_a_kind-")


def test_another_run_is_refused(config: dict[str, Any], tmp_path: Path) -> None:
    refuse_other_run(tmp_path, config, changed(config, "launch.workers", 3))
    other = changed(changed(config, "outer.lr", 0.5), "algo.steps", 3)
    with pytest.raises(ConfigError) as refused:
        refuse_other_run(tmp_path, config, other)
    said = str(refused.value)
    assert "outer.lr (0.001 there, 0.5 here)" in said
    assert "algo.steps (1 there, 3 here)" in said
    assert str(tmp_path) in said


def test_conf_is_the_working_trees(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert paths.conf_dir() == ROOT / "conf"
    package = tmp_path / "site-packages" / "metarun"
    monkeypatch.setattr(paths, "__file__", str(package / "paths.py"))
    (package.parent / "conf").mkdir(parents=True)  # somebody else's
    (package.parent / "conf" / "config.yaml").touch()
    with pytest.raises(ConfigError, match="install metarun again"):
        paths.conf_dir()
    (package / "conf" / "hydra" / "help").mkdir(parents=True)
    (package / "conf" / "hydra" / "help" / "metarun.yaml").touch()
    assert paths.conf_dir() == package / "conf"


def test_outputs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("METARUN_OUTPUTS", raising=False)
    assert paths.outputs_root() == tmp_path / "outputs"
    monkeypatch.setenv("METARUN_OUTPUTS", "elsewhere")
    assert paths.outputs_root() == tmp_path / "elsewhere"


TIMES = [pytest.param(4, marks=pytest.mark.slow), pytest.param(10, marks=pytest.mark.nightly)]


@pytest.mark.parametrize("times", TIMES)
def test_requeue_finds_its_run(times: int, tmp_path: Path) -> None:
    """Goal 5: the same command, at another time and from another place, finds its folder."""
    folders: set[str] = set()
    for attempt in range(times):
        place = tmp_path / f"place {attempt}"
        place.mkdir()
        shift = str((attempt - times // 2) * 86_400 * 400)
        ended = subprocess.run(
            [sys.executable, "-c", SHIFTED, shift, "dataset=sinusoid", "debug=default"],
            capture_output=True,
            text=True,
            cwd=place,
            env=os.environ
            | {"PYTHONPATH": str(ROOT), "METARUN_OUTPUTS": str(tmp_path / "outputs")},
            check=True,
        )
        folders |= {path.name for path in (tmp_path / "outputs").iterdir()}
        assert ("already complete" in ended.stdout) == (attempt > 0)
        assert not list(place.iterdir())
    assert len(folders) == 1
