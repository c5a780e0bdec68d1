"""The jobs of a sweep as configurations and folders: what is wrong with them, what there is."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from metarun import manifest, records
from metarun.config import check
from metarun.errors import ConfigError
from metarun.paths import DIGITS, config_digest, find_weights, refuse_other_run, safe_name
from metarun.settings import yamlfile

LONGEST_NAME = 100
MOST_NAMES = 5  # of jobs that an error lists


def job_name(overrides: Sequence[str], fixed: Sequence[str]) -> str:
    """Return the name of a job's folder: what tells it from the other jobs of its sweep.

    A hash is added where the text is not fit for a folder's name, or too long.
    """
    varied = sorted(o for o in overrides if o.partition("=")[0] not in fixed)
    text = ",".join(varied) or "run"
    name = safe_name(text)[:LONGEST_NAME]
    digest = hashlib.sha256(text.encode()).hexdigest()[:DIGITS]
    return name if name == text else f"{name}-{digest}"


def finished(sweep: Path) -> dict[str, list[str]]:
    """Return the names of the finished jobs in a sweep's folder, by the digest of what they ran."""
    found: dict[str, list[str]] = {}
    for path in sorted(sweep.glob("*/outcome.json")):
        outcome = manifest.outcome(path.parent) or {}
        with suppress(ConfigError):
            if outcome.get("status") == "done":
                digest = config_digest(yamlfile.of_run(path.parent))
                found.setdefault(digest, []).append(path.parent.name)
    return found


def known_name(name: str, config: Mapping[str, Any], there: Mapping[str, list[str]]) -> str:
    """Return the name under which a job is finished, if it is; else the given one.

    A name tells what varies: a command in which less or more does has another for the same job.
    """
    names = there.get(config_digest(records.masked(config)), [name])
    return name if name in names else names[0]


def is_done(folder: Path, config: Mapping[str, Any]) -> bool:
    """Tell whether a job's folder holds the finished run of this very configuration."""
    found = manifest.outcome(folder)
    if found is None or found["status"] != "done":
        return False
    with suppress(ConfigError):
        there = config_digest(yamlfile.of_run(folder))
        return there == config_digest(records.masked(config))
    return False


def best_score(folder: Path) -> float | None:
    """Return what a search maximises: the best validation accuracy, or minus the least error."""
    found = [r for r in records.read(folder) if r["kind"] == "validate"]
    scores = [float(r["accuracy"]["mean"]) for r in found if "accuracy" in r]
    scores += [-float(r["mse"]["mean"]) for r in found if "mse" in r]
    return max((score for score in scores if score == score), default=None)


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
            refuse_other_run(folder, yamlfile.of_run(folder), records.masked(config))
        try:
            weights = check(config).weights
            if weights is not None:
                find_weights(weights)
        except ConfigError as error:
            wrong.setdefault(str(error), []).append(name)
    if wrong:
        raise ConfigError("; ".join(_named(names, why, len(jobs)) for why, names in wrong.items()))


def too_small_for_sgd(
    searched: Mapping[str, Any], said: Sequence[str], jobs: Iterable[Mapping[str, Any]]
) -> str | None:
    """Return a warning where a search's own outer rates, of Adam's size, go to plain SGD.

    `searched` is what the search sweeps by itself, `said` the overrides of the command line.
    """
    if "outer.lr" not in searched or any("outer.lr" in override for override in said):
        return None
    names = {job["choices"]["algo"] for job in jobs if job["outer"]["optimizer"] == "sgd"}
    if not names:
        return None
    return (
        f"outer.lr: the search's own values, {searched['outer.lr']}, are of Adam's size, and "
        f"algo={', '.join(sorted(names))} has outer.optimizer=sgd; give it its own, as in "
        "outer.lr=0.1,0.3,1.0"
    )


def _named(names: list[str], why: str, jobs: int) -> str:
    """Say which jobs a mistake is in, unless it is in all."""
    if len(names) == jobs:
        return why
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return f"{', '.join(names[:MOST_NAMES])}{more} (of {jobs} jobs): {why}"
