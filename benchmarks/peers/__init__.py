"""A file a peer. Each has NAME, the DISTRIBUTION that gives its version, and `build`."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType

FILES = ("plain", "from_learn2learn", "from_higher", "from_torchopt", "from_iteryne", "from_pml")


def installed() -> tuple[dict[str, ModuleType], dict[str, str]]:
    """Return the peers that can be imported by name, and why the others cannot."""
    found: dict[str, ModuleType] = {}
    missing: dict[str, str] = {}
    for file in FILES:
        try:
            module = import_module(f"benchmarks.peers.{file}")
        except ImportError as error:
            missing[file.removeprefix("from_")] = str(error).splitlines()[0]
        else:
            found[module.NAME] = module
    return found, missing


def version_of(module: ModuleType) -> str:
    """Return the peer's version, and how it came here where it is not installed."""
    try:
        return version(module.DISTRIBUTION)
    except PackageNotFoundError:
        return module.VERSION
