"""Who may import whom: the arrows of the design, read from the source."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "metarun"
CORE = {
    "errors",
    "tasks",
    "problem",
    "inner",
    "estimators",
    "adjoint",
    "implicit",
    "algorithms",
    "models",
}
CORE |= {
    "evolution",
    "metagradient",
    "encoder",
    "fitness",
    "kmeans",
    "lbfgs",
    "masks",
    "nearest",
    "precision",
    "rates",
    "solve",
    "usage",
    "data/counter",  # arithmetic that data sets and algorithms share
}
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


@pytest.mark.parametrize("room", sorted(CORE - {"errors"}))
def test_the_core_knows_torch_and_itself_only(room: str) -> None:
    for path in files_of(room):
        for name in imported(path):
            if name.startswith("metarun"):
                rooms = {name.split(".")[1], "/".join(name.split(".")[1:3])}
                assert rooms & (CORE | {"kernels"}), f"{path.name} imports {name}"
            else:
                allowed = {"torch", "pydantic", *sys.stdlib_module_names}
                assert name.split(".")[0] in allowed, f"{path.name} imports {name}"


@pytest.mark.parametrize(
    ("library", "rooms"),
    [
        ("hydra", {"cli", "compose", "compat", "explain", "sweep", "config", "resume", "yamlfile"}),
        ("wandb", {"tracking"}),
        ("rich", {"console"}),
        ("matplotlib", {"plots", "report", "data"}),
    ],
)
def test_each_library_is_known_in_its_rooms_only(library: str, rooms: set[str]) -> None:
    for path in sorted(PACKAGE.rglob("*.py")):
        room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if any(name.split(".")[0] == library for name in imported(path)):
            assert room in rooms, f"{path.relative_to(PACKAGE)} imports {library}"


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
    for path in sorted(PACKAGE.rglob("*.py")):
        assert len(path.read_text().splitlines()) <= 300, path
