"""Find runs under folders and read what they left; nothing is dropped without a reason."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from metarun import manifest, records
from metarun.errors import ConfigError, DataError
from metarun.settings import yamlfile

Metric = Literal["accuracy", "mse"]
METRICS: tuple[Metric, ...] = ("accuracy", "mse")
NEEDED = {"algo": str, "dataset": str, "seed": int, "shape": dict, "test": dict, "task_list": str}
RUN_FILES = {"outcome.json", records.NAME}
NOT_RUNS = ("checkpoints", "evaluations", "wandb")  # read when they are named themselves


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """One finished run; T test tasks, K adaptation steps."""

    folder: Path
    outcome: dict[str, Any]
    config: dict[str, Any]
    metric: Metric
    step: int  # the number of steps that validation chose
    task: NDArray[np.int64]  # [T], ascending
    scores: NDArray[np.float64]  # [T, K+1]
    mode: NDArray[np.int64]  # [T]


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A run that the comparison could not use, and why."""

    folder: str
    name: str  # algorithm and seed, as far as known
    status: str
    reason: str


class Found(NamedTuple):
    """What lies under the folders."""

    runs: tuple[Run, ...]
    left_out: tuple[LeftOut, ...]


def load(folders: Sequence[Path]) -> Found:
    """Read every run under the folders: run folders, sweep folders or folders of these.

    Unfinished, failed and damaged runs come back as `left_out`.

    Raises: ConfigError for a folder that is not there; DataError when none holds a run.
    """
    paths: dict[Path, Path] = {}
    jobs: dict[Path, LeftOut] = {}
    for folder in folders:
        if not folder.is_dir():
            raise ConfigError(f"{folder}: no such folder; give run or sweep folders")
        for here, inside, files in os.walk(folder):
            inside[:] = sorted(d for d in inside if d not in NOT_RUNS and not d.startswith("."))
            if RUN_FILES & set(files):
                paths[Path(here).resolve()] = Path(here)
            if manifest.NAME in files:
                jobs |= {item.resolve(): _job(item, entry) for item, entry in _jobs(Path(here))}
    unstarted = [job for path, job in jobs.items() if path not in paths]
    if not paths and not unstarted:
        raise DataError(f"{', '.join(map(str, folders))}: no run in there (no records, no outcome)")
    found = [*map(read, paths.values()), *unstarted]
    return Found(
        tuple(item for item in found if isinstance(item, Run)),
        tuple(item for item in found if isinstance(item, LeftOut)),
    )


def read(folder: Path) -> Run | LeftOut:
    """Read one run folder."""
    config = config_of(folder)
    algo = cast(dict[str, Any], config.get("choices") or {}).get("algo", "?")
    name = f"{algo} seed {config.get('seed', '?')}"
    if not (folder / "outcome.json").exists():
        return LeftOut(str(folder), name, "unfinished", _last_record(folder))
    try:
        outcome = _object(folder / "outcome.json")
        name = f"{outcome.get('algo', algo)} seed {outcome.get('seed', '?')}"
        if (status := outcome.get("status")) != "done":
            why = outcome.get("reason") or f"ended with exit code {outcome.get('exit_code', '?')}"
            return LeftOut(str(folder), name, str(status), str(why))
        return _finished(folder, outcome, config)
    except (OSError, ValueError, KeyError, TypeError) as error:
        why = " ".join(str(error).split()) or type(error).__name__
        return LeftOut(str(folder), name, "damaged", why)


def _finished(folder: Path, outcome: dict[str, Any], config: dict[str, Any]) -> Run:
    if wrong := [key for key, kind in NEEDED.items() if not isinstance(outcome.get(key), kind)]:
        raise DataError(f"outcome.json lacks {', '.join(wrong)}")
    metric: Metric | None = next((m for m in METRICS if m in outcome["test"]), None)
    if metric is None:
        raise DataError(f"outcome.json: test holds neither {' nor '.join(METRICS)}")
    arrays = _arrays(folder / "scores.npz")
    if missing := [key for key in ("task", metric) if key not in arrays]:
        raise DataError(f"scores.npz lacks {', '.join(missing)}")
    task, scores = arrays["task"], np.asarray(arrays[metric], np.float64)
    mode = arrays.get("mode", np.zeros_like(task))
    if scores.ndim != 2 or not len(task) == len(scores) == len(mode) or len(task) < 2:
        raise DataError(f"scores.npz: {metric} {scores.shape} does not fit {len(task)} tasks")
    step = int(outcome["test"][metric].get("step", scores.shape[1] - 1))
    if not 0 <= step < scores.shape[1]:
        raise DataError(f"outcome.json: step {step} is outside the curve of scores.npz")
    if lost := int((~np.isfinite(scores[:, step])).sum()):
        raise DataError(
            f"{lost} of {len(task)} test tasks have no finite {metric}; a mean over the others "
            "would flatter it"
        )
    mean, said = float(scores[:, step].mean()), float(outcome["test"][metric]["mean"])
    if not abs(mean - said) <= 1e-6 + 1e-4 * abs(mean):
        raise DataError(f"outcome.json says {metric} {said:.6g}, scores.npz gives {mean:.6g}")
    order = np.argsort(task, kind="stable")
    return Run(folder, outcome, config, metric, step, task[order], scores[order], mode[order])


def _object(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text("utf-8"))
    except ValueError as error:  # cut short, or no text at all
        raise DataError(f"{path.name} is no whole JSON ({error})") from error
    if not isinstance(found, dict):
        raise DataError(f"{path.name} holds no object")
    return cast(dict[str, Any], found)


def _arrays(path: Path) -> dict[str, NDArray[Any]]:
    try:
        with path.open("rb") as file, np.load(file) as archive:
            return dict(archive)
    except FileNotFoundError as error:
        raise DataError(f"{path.name} is missing") from error
    except Exception as error:  # a damaged archive raises nearly anything
        raise DataError(f"{path.name} cannot be read ({type(error).__name__})") from error


def _jobs(sweep: Path) -> list[tuple[Path, dict[str, Any]]]:
    """Return the jobs of a sweep, which may never have started."""
    return [(sweep / name, e) for name, e in manifest.jobs(manifest.read(sweep)).items()]


def _job(folder: Path, entry: dict[str, Any]) -> LeftOut:
    why = str(entry.get("reason") or "its folder holds no run")
    return LeftOut(str(folder), folder.name, str(entry.get("state", "?")), why)


def config_of(folder: Path) -> dict[str, Any]:
    """Return a run's settings; none where they are lost."""
    try:
        return yamlfile.of_run(folder)
    except ConfigError:
        return {}  # labels then have only the outcome to go by


def _last_record(folder: Path) -> str:
    found = records.read(folder)
    if not found:
        return "no outcome and no records yet"
    return f"no outcome yet; last record: {found[-1]['kind']}, step {found[-1]['step']}"
