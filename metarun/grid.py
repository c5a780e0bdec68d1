"""The jobs of a sweep before any is started: mistakes among them, and what their folders hold."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from metarun import manifest, records
from metarun.config import check
from metarun.errors import ConfigError
from metarun.paths import config_digest, refuse_other_run
from metarun.yamlfile import read

MOST_NAMES = 5  # of jobs that an error lists


def is_done(folder: Path, config: Mapping[str, Any]) -> bool:
    """Tell whether a job's folder holds the finished run of this very configuration."""
    found = manifest.outcome(folder)
    if found is None or found["status"] != "done":
        return False
    with suppress(ConfigError):
        there = config_digest(read(folder / "config.yaml"))
        return there == config_digest(records.masked(config))
    return False


def refuse_mistakes(jobs: Mapping[str, dict[str, Any]], sweep: Path) -> None:
    """Check every job of a grid, by name, that is not done in the folder of the sweep.

    Raises:
        ConfigError: some are mistakes, which are named, or the folder is another run's or sweep's.
    """
    if (sweep / "config.yaml").exists():
        raise ConfigError(f"name: {sweep} holds a run; choose another name")
    wrong: dict[str, list[str]] = {}
    for name, config in jobs.items():
        folder = sweep / name
        if is_done(folder, config):
            continue
        if (folder / "config.yaml").exists():
            refuse_other_run(folder, read(folder / "config.yaml"), records.masked(config))
        try:
            check(config)
        except ConfigError as error:
            wrong.setdefault(str(error), []).append(name)
    if wrong:
        raise ConfigError("; ".join(_named(names, why, len(jobs)) for why, names in wrong.items()))


def _named(names: list[str], why: str, jobs: int) -> str:
    """Say which jobs a mistake is in, unless it is in all."""
    if len(names) == jobs:
        return why
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return f"{', '.join(names[:MOST_NAMES])}{more} (of {jobs} jobs): {why}"
