"""Who may import whom: the arrows of the design, read from the source."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "metarun"
CORE = {"errors", "nearest", "precision", "tasks", "problem", "inner"}
CORE |= {"models", "gradients", "algorithms"}
SHARED = {"data/counter"}  # arithmetic that data sets and algorithms share
HEAVY = ("torch", "wandb", "matplotlib", "scipy", "pandas")


def imported(path: Path) -> set[str]:
    """Return the dotted names that a file imports, at any depth."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def files_of(room: str) -> list[Path]:
    place = PACKAGE / room
    return sorted(place.rglob("*.py")) if place.is_dir() else [PACKAGE / f"{room}.py"]


def room_of(path: Path, package: Path) -> str:
    return path.relative_to(package).parts[0].removesuffix(".py")


def rooms(package: Path) -> dict[str, set[str]]:
    """Return which rooms, a folder or a file at the top, each of a package's imports."""
    there = {room_of(path, package) for path in package.rglob("*.py")}
    found: dict[str, set[str]] = {room: set() for room in there}
    for path in package.rglob("*.py"):
        own = room_of(path, package)
        for name in imported(path):
            whole, _, inside = name.partition(".")
            if whole == "metarun":
                found[own] |= {inside.partition(".")[0]} & there - {own}
    return found


def test_rooms_import_in_one_direction() -> None:
    TopologicalSorter(rooms(PACKAGE)).prepare()


def test_rooms_import_down_the_readme_s_table() -> None:
    tree = (PACKAGE.parent / "README.md").read_text().partition("## The tree")[2]
    rows = re.findall(r"^\| (`.*?) \|", tree, re.MULTILINE)
    level = {room: n for n, row in enumerate(rows) for room in re.findall(r"\w+", row)}
    found = rooms(PACKAGE)
    assert level.keys() == found.keys() - {"__init__", "__main__"}
    up = [(a, b) for a in level for b in found[a] if level[b] < level[a]]
    assert not up


def test_a_circle_of_rooms_is_found(tmp_path: Path) -> None:
    """The control: two rooms that import each other, one from within a function."""
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "file.py").write_text("from metarun import two\n")
    (tmp_path / "two.py").write_text("def late():\n    import metarun.one.file\n")
    with pytest.raises(CycleError):
        TopologicalSorter(rooms(tmp_path)).prepare()


@pytest.mark.parametrize("room", sorted(CORE - {"errors"}))
def test_the_core_knows_torch_and_itself_only(room: str) -> None:
    for path in files_of(room):
        for name in imported(path):
            if name.startswith("metarun"):
                named = {name.split(".")[1], "/".join(name.split(".")[1:3])}
                assert named & (CORE | SHARED | {"kernels"}), f"{path.name} imports {name}"
            else:
                allowed = {"torch", "pydantic", *sys.stdlib_module_names}
                assert name.split(".")[0] in allowed, f"{path.name} imports {name}"


@pytest.mark.parametrize(
    ("library", "places"),
    [
        (
            "hydra",
            {"cli", "config", "sweeps/sweep", "verbs/resume"}
            | {
                f"settings/{name}"
                for name in ("compose", "compat", "explain", "refusals", "several", "yamlfile")
            },
        ),
        ("wandb", {"tracking"}),
        ("rich", {"console"}),
        ("matplotlib", {"report", "data"}),
    ],
)
def test_each_library_is_known_in_its_places_only(library: str, places: set[str]) -> None:
    for path in sorted(PACKAGE.rglob("*.py")):
        if any(name.split(".")[0] == library for name in imported(path)):
            file = path.relative_to(PACKAGE).with_suffix("")
            assert {file.parts[0], str(file)} & places, f"{file} imports {library}"


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["--cfg", "job"]])
def test_looking_around_imports_nothing_heavy(words: list[str]) -> None:
    code = (
        "import sys; from metarun.cli import main; main(sys.argv[1:]); "
        f"print([m for m in {HEAVY!r} if m in sys.modules], file=sys.stderr)"
    )
    command = [sys.executable, "-c", code, *words]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, cwd=PACKAGE.parent, timeout=60
    )
    assert done.stderr.strip() == "[]"


def test_no_file_is_longer_than_300_lines() -> None:
    for path in sorted([*PACKAGE.rglob("*.py"), *(PACKAGE.parent / "tests").rglob("*.py")]):
        assert len(path.read_text().splitlines()) <= 300, path
