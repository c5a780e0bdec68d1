"""YAML from outside is data: its size is bounded before anything is built from it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from metarun import records
from metarun.errors import ConfigError

MOST_BYTES = 1_000_000
MOST_NODES = 100_000  # with every alias written out
DEEPEST = 64
MOST_FILES = 2_000  # in a folder of configurations
SUFFIXES = (".yaml", ".yml")
Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read(path: Path) -> dict[str, Any]:
    """Return the mapping that a YAML file holds; no tag of it can name a Python object.

    Raises:
        ConfigError: it cannot be read, is no mapping, or is larger than a configuration may be.
    """
    refuse_bomb(path)
    try:
        with path.open("rb") as file:
            found = yaml.load(file, Loader)
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(yaml_fault(error)) from error
    if not isinstance(found, dict):
        raise ConfigError(f"{path}: holds no settings; a configuration is a mapping")
    return found


def of_run(folder: Path) -> dict[str, Any]:
    """Return the resolved configuration of the run in a folder; its records know it as well.

    Raises:
        ConfigError: it has none, or one that cannot be read.
    """
    path = folder / "config.yaml"
    told = [] if path.exists() else [r["config"] for r in records.read(folder) if "config" in r]
    return told[-1] if told else read(path)


def is_run(folder: Path) -> bool:
    """Tell whether a folder holds a run, whose configuration may have been lost."""
    return (folder / "config.yaml").is_file() or bool(records.read(folder))


def refuse_bombs(folder: Path) -> None:
    """Raise ConfigError when a YAML file below a folder is too large, written out or as it is."""
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder of configurations")
    for count, path in enumerate(_files(folder)):
        if count == MOST_FILES:
            raise ConfigError(
                f"{folder}: more than {MOST_FILES} YAML files; give a folder of configurations only"
            )
        refuse_bomb(path)


def refuse_bomb(path: Path) -> None:
    """Raise ConfigError when a YAML file is too large, or would be with its aliases written out."""
    try:
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    if len(data) > MOST_BYTES:
        raise ConfigError(f"{path}: larger than {MOST_BYTES} bytes; no configuration is")
    try:
        nodes, depth = _extent(data)
    except (yaml.YAMLError, ValueError):
        return  # malformed: whoever loads it says so, and nobody else need care
    if nodes > MOST_NODES:
        raise ConfigError(f"{path}: its aliases stand for more than {MOST_NODES} values")
    if depth > DEEPEST:
        raise ConfigError(f"{path}: nested more than {DEEPEST} levels deep")


def yaml_fault(error: Exception) -> str:
    """Say in one line where a YAML file is malformed, and how."""
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error).partition("\n")[0]
    name = getattr(error, "name", None)
    place = f"{mark.name}, line {mark.line + 1}: " if mark else f"{name}: " if name else ""
    tabs = "; indent with spaces, not tabs" if "'\\t'" in problem or "tab char" in problem else ""
    return f"{place}{problem}{tabs}"


def _files(folder: Path) -> Iterator[Path]:
    for parent, folders, files in os.walk(folder, followlinks=True):
        depth = len(Path(parent).relative_to(folder).parts)
        folders[:] = [f for f in folders if not f.startswith(".") and depth < DEEPEST]
        yield from (Path(parent, name) for name in sorted(files) if name.endswith(SUFFIXES))


def _extent(data: bytes) -> tuple[int, int]:
    """Count the nodes, aliases written out, and the deepest nesting, up to one that is too large.

    Nothing is constructed, and the parser is left early: it is slow where brackets never close.
    """
    anchors: dict[str, int] = {}
    open_nodes: list[tuple[str | None, int]] = [(None, 0)]
    deepest = 0
    for event in yaml.parse(data, Loader):
        if isinstance(event, yaml.CollectionStartEvent):
            open_nodes.append((event.anchor, 1))
            deepest = max(deepest, len(open_nodes) - 1)
            if deepest > DEEPEST:
                break
            continue
        if isinstance(event, yaml.CollectionEndEvent):
            name, size = open_nodes.pop()
        elif isinstance(event, yaml.AliasEvent):
            name, size = None, anchors.get(event.anchor, 0)
        elif isinstance(event, yaml.ScalarEvent):
            name, size = event.anchor, 1
        else:
            continue
        if name is not None:
            anchors[name] = size
        parent, total = open_nodes.pop()
        open_nodes.append((parent, total + size))
        if total + size > MOST_NODES:
            return total + size, deepest
    return open_nodes[0][1], deepest
