"""The README is true: its commands run, its code is the code, its table is of real runs."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)
SHORT = ("debug=default", "test.tasks=8")
FEWER = {"seed=0,1,2": "seed=0,1", "outer.lr=0.001,0.003": "outer.lr=0.003"}  # jobs of a sweep


def lines(kind: str) -> list[str]:
    return [line for found, text in BLOCKS if found == kind for line in text.splitlines() if line]


RUNS = [line for line in lines("bash") if line.startswith("metarun ")]
PLAIN = [line for line in RUNS if "omniglot" not in line]


def metarun(words: list[str], place: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "metarun", *words]
    settings = os.environ | {
        "METARUN_OUTPUTS": str(place / "outputs"),
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        **environment,
    }
    return subprocess.run(
        command, cwd=place, env=settings, capture_output=True, text=True, timeout=280, check=False
    )


def data() -> Path | None:
    places = (Path(os.environ.get("METARUN_DATA", "")), ROOT.parent / "shared" / "data")
    return next((p.resolve() for p in places if (p / "omniglot").is_dir()), None)


@pytest.mark.slow
@pytest.mark.parametrize("line", RUNS)
def test_commands_run(line: str, tmp_path: Path) -> None:
    words = shlex.split(line)[1:]
    if "--cfg" not in words:
        words += [*SHORT] if "budget" not in line else [*SHORT, "budget.total=1"]
        words = [FEWER.get(word, word) for word in words]
    environment = {}
    if "omniglot" in line:
        place = data()
        if place is None:
            words = [w.replace("dataset=omniglot", "dataset=glyphs") for w in words]
            words = [w.replace("experiment=omniglot_5w1s", "dataset=glyphs") for w in words]
        else:
            environment["METARUN_DATA"] = str(place)
    done = metarun(words, tmp_path, **environment)
    assert done.returncode == 0, done.stderr


def test_the_refusal_that_is_shown_is_the_one_that_is_given(tmp_path: Path) -> None:
    asked, said = lines("console")
    done = metarun(shlex.split(asked.removeprefix("$ metarun ")), tmp_path)
    assert done.returncode == 2
    assert done.stderr.strip() == said
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize("target", ["demo", "wheel", "test", "check"])
def test_make_targets_exist(target: str) -> None:
    done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, check=False)
    assert done.returncode == 0


def test_maml_is_shown_as_it_is() -> None:
    source = (ROOT / "metarun" / "algorithms" / "maml.py").read_text()
    shown = next(text for kind, text in BLOCKS if kind == "python")
    assert source.endswith(shown)


def test_options_that_are_listed_are_those_that_exist() -> None:
    for group, options in re.findall(r"^\| `(\w+)` \| (`.*`) \|$", README, re.MULTILINE):
        listed = set(re.findall(r"`(\w+)`", options))
        assert listed == {path.stem for path in (ROOT / "conf" / group).glob("*.yaml")}, group


@pytest.mark.slow
def test_an_algorithm_of_ones_own_runs_resumes_and_is_compared(tmp_path: Path) -> None:
    """As in the README: one file, one YAML and nothing of this tree touched."""
    _, own = [text for kind, text in BLOCKS if kind == "python"]
    (yaml,) = [text for kind, text in BLOCKS if kind == "yaml"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "slow.py").write_text(own)
    (tmp_path / "conf" / "algo").mkdir(parents=True)
    (tmp_path / "conf" / "algo" / "slow.yaml").write_text(yaml)
    line = next(line for line in lines("bash") if line.startswith("METARUN_ALLOW"))
    words = shlex.split(line.split(" metarun ", 1)[1])
    environment = {"METARUN_ALLOW": "mine.", "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"}
    short = [*SHORT, "name=own"]
    done = metarun([*words, *short], tmp_path, **environment)
    assert done.returncode == 0, done.stderr
    (tmp_path / "outputs" / "own" / "outcome.json").unlink()
    newest = sorted((tmp_path / "outputs" / "own" / "checkpoints").glob("step-*"))[-1]
    newest.unlink()
    done = metarun([*words, *short], tmp_path, **environment)
    assert done.returncode == 0, done.stderr
    assert "going on from meta-step" in done.stdout
    done = metarun(["compare", "outputs/own"], tmp_path, COLUMNS="100")
    assert done.returncode == 0, done.stderr
    assert "slow" in done.stdout


@pytest.mark.slow
def test_a_wheel_works_in_another_folder(tmp_path: Path) -> None:
    """Built from the tree, unpacked elsewhere and run from a third place, conf/ included."""
    tree = tmp_path / "tree"
    shutil.copytree(
        ROOT, tree, ignore=shutil.ignore_patterns(".git", ".venv", "outputs", "__pycache__", "dist")
    )
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "-o", str(tmp_path)]
    subprocess.run(command, cwd=tree, check=True, capture_output=True, timeout=200)
    (wheel,) = tmp_path.glob("metarun-*.whl")
    site = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*install, "--target", str(site), str(wheel)], check=True, capture_output=True)
    assert (site / "metarun" / "conf" / "config.yaml").is_file()
    place = tmp_path / "place"
    place.mkdir()
    words = ["dataset=sinusoid", "debug=default", "name=wheel"]
    done = metarun(words, place, PYTHONPATH=str(site))
    assert done.returncode == 0, done.stderr
    words = ["compare", "outputs/wheel"]
    assert metarun(words, place, PYTHONPATH=str(site)).returncode == 0
    assert (place / "outputs" / "wheel" / "comparison.html").is_file()
