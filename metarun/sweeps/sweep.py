"""Many runs by one command: Hydra's launcher says where, each job is a process of its own."""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
from collections.abc import Mapping
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from metarun import manifest
from metarun.config import checked_name, launching, tracked
from metarun.errors import ConfigError, MetarunError, StorageError, SweepError
from metarun.files import NO_SPACE, folder_lock, prepare_folder, storage_error
from metarun.manifest import Entry, State
from metarun.paths import DIGITS, outputs_root, safe_name
from metarun.settings.compat import run_hydra
from metarun.settings.compose import (
    NO_LOGGING,
    Command,
    Composed,
    compose,
    explaining,
    quoted,
    resolved,
)
from metarun.settings.yamlfile import read
from metarun.signals import REQUESTS
from metarun.sweeps import job
from metarun.sweeps.grid import (
    best_score,
    finished,
    is_done,
    job_name,
    known_name,
    refuse_mistakes,
    too_small_for_sgd,
)
from metarun.sweeps.slurm import on_slurm, refuse_without_slurm
from metarun.sweeps.stopping import HERE, OF_HYDRA, follow, halted, is_stopped, stoppable

NOT_IN_NAME = ("hydra", "launch", "tracking", "name")


def run(command: Command, composed: Composed, folder: Path | None = None) -> int:
    """Run what is unfinished of a sweep, then compare; return the exit code.

    Raises:
        ConfigError: some job is a mistake or of another sweep; nothing was run or written.
        SweepError: some jobs did not end well; a table named them.
        StorageError: the folder is full or read-only, or somebody removed it.
        PreemptedError, KeyboardStopError: it was asked to stop, and its jobs wrote checkpoints.
    """
    folder = folder or outputs_root() / sweep_name(command, composed)
    launch = launching(*_group(composed.config, "launch"))
    launcher: str = composed.config.hydra.runtime.choices["hydra/launcher"]
    refuse_without_slurm(launcher)
    there = finished(folder)
    jobs = _planned(command, composed, there)
    planned = {name: config for name, _, config in jobs}
    refuse_mistakes(planned, folder)
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    prepare_folder(folder)
    with folder_lock(folder):
        _warn_of_rates(command, composed, list(planned.values()))
        before = manifest.jobs(manifest.read(folder))
        manifest.append(
            folder,
            "sweep",
            command=["metarun", *command.flags, *command.overrides],
            fixed=composed.fixed,
            fail_fast=launch.fail_fast,
            total=len(planned) or None,
            finished=there,
            launcher=launcher,
            pid=os.getpid(),
            host=socket.gethostname(),
        )
        for name, overrides, _ in jobs:
            done = before.get(name, {}).get("state") == "done"
            state = {"state": "done", "skipped": True} if done else {"state": "pending"}
            manifest.append(folder, "job", job=name, overrides=overrides, **state)
        own = [f"hydra.sweep.dir={quoted(str(folder))}", "hydra.sweep.subdir=.", *NO_LOGGING]
        words = [*command.flags, *composed.words, *own]
        if launcher not in HERE:
            _say_where(folder, launcher)
        try:
            with stoppable(folder), explaining(command), on_slurm(launcher):
                run_hydra(run_one, command.folder, command.name, words)
        except ConfigError:
            if made and not any(_states(folder, "running", "done", "failed")):
                shutil.rmtree(made[-1])
            raise
        except OSError as error:
            if error.errno not in NO_SPACE:
                raise
            raise storage_error(error, folder, 0) from error  # Hydra's, of multirun.yaml
        except BrokenProcessPool:
            pass  # a worker was killed; what it and others did not do is still pending
        except ValueError:  # Optuna's, when no trial has a score
            if any(_states(folder, "done")) or not any(_states(folder, "failed")):
                raise
        finally:
            (folder / OF_HYDRA).unlink(missing_ok=True)
        return _finish(folder, composed.config)


def run_one(config: DictConfig) -> float | None:
    """Run one job of the sweep that Hydra is in, wherever Hydra wants it run.

    Returns what a search maximises: the best validation accuracy, or minus the best squared error;
    None when there is none, and where the sweep's folder is gone or full, which the sweep says as
    it ends: Hydra would add lines of its own.
    """
    node: Any = HydraConfig.get()
    sweep = Path(node.sweep.dir)
    try:
        return _run_one(config, node, sweep)
    except StorageError:
        return None


def _run_one(config: DictConfig, node: Any, sweep: Path) -> float | None:
    overrides = list(node.overrides.task)
    header, since = manifest.current(sweep)
    owner = follow(header)
    name = job_name(overrides, header["fixed"])
    if halted(header, since):
        return None
    try:
        plain = resolved(config, node.runtime.choices)
        return _run_job(plain, sweep, known_name(name, plain, header["finished"]), owner)
    except MetarunError as error:
        figures = {"state": "failed", "exit_code": error.exit_code, "reason": str(error)}
        manifest.append(sweep, "job", job=name, overrides=overrides, **figures)
        _say(sweep, name, f"failed: {error}")
        return None


def _run_job(plain: dict[str, Any], sweep: Path, name: str, owner: int | None) -> float | None:
    if is_done(sweep / name, plain):
        manifest.append(sweep, "job", job=name, state="done", exit_code=0, skipped=True)
        _say(sweep, name, f"done before: {_result(sweep / name)}")
        return best_score(sweep / name)
    _say(sweep, name, "started")
    ended = job.start_and_wait(plain, sweep, name, owner, lambda: is_stopped(sweep))
    _say(sweep, name, _summary(sweep / name, ended))
    return best_score(sweep / name) if ended.state == "done" else None


def sweep_name(command: Command, composed: Composed) -> str:
    """Return the name of a sweep's folder: `name`, or one made of its experiment and overrides."""
    if name := checked_name(OmegaConf.select(composed.config, "name")):
        return name
    counted = sorted(o for o in command.overrides if _root(o) not in NOT_IN_NAME)
    digest = hashlib.sha256("\n".join(counted).encode()).hexdigest()[:DIGITS]
    experiment = composed.config.hydra.runtime.choices.get("experiment")
    return f"{safe_name(experiment or 'sweep')}-{digest}"


def _planned(
    command: Command, composed: Composed, there: Mapping[str, list[str]]
) -> list[tuple[str, list[str], dict[str, Any]]]:
    """Return each job's name, overrides and settings; Hydra's error does not say which has none."""
    own = [o for o in command.overrides if _root(o) == "hydra"]
    found: list[tuple[str, list[str], dict[str, Any]]] = []
    for number, overrides in enumerate(composed.jobs):
        words = [*own, *overrides, f"hydra.job.num={number}"]
        config = compose(command._replace(overrides=words)).config
        if config.hydra.sweeper.params != composed.config.hydra.sweeper.params:
            raise ConfigError(
                f"{', '.join(overrides)}: here something else is to be swept than in other jobs; "
                "an experiment that is itself a sweep is given alone"
            )
        HydraConfig.instance().set_config(config)  # for ${hydra:job.num}
        plain, name = resolved(config), job_name(overrides, composed.fixed)
        found.append((known_name(name, plain, there), overrides, plain))
    return found


def _warn_of_rates(command: Command, composed: Composed, jobs: list[dict[str, Any]]) -> None:
    from metarun import console

    searched = OmegaConf.select(composed.config, "hydra.sweeper.params") or {}
    outer, choices = _group(composed.config, "outer")
    first = {"outer": outer, "choices": choices}  # of a search whose jobs nobody knows yet
    if notice := too_small_for_sgd(searched, command.overrides, jobs or [first]):
        console.warn(notice)


def _states(sweep: Path, *states: State) -> list[Entry]:
    _, since = manifest.current(sweep)
    return [entry for entry in since if entry.get("state") in states]


def _finish(sweep: Path, config: DictConfig) -> int:
    from metarun import compare, console, tracking
    from metarun.data.fetch import data_root
    from metarun.seen import notice_of_change

    _, since = manifest.current(sweep)
    jobs = manifest.jobs(since)
    left = {name: entry for name, entry in jobs.items() if entry["state"] != "done"}
    if any(entry["state"] in ("pending", "running") for entry in left.values()):
        prepare_folder(sweep)  # it may have been too full to say how they ended
    code = 0
    if len(left) < len(jobs):
        code = compare.main([str(sweep)], told=[sweep / name for name in left])
        with suppress(MetarunError):
            if notice := tracking.mirror_comparison(sweep, tracked(*_group(config, "tracking"))):
                console.say(notice)

    before = [sweep / name for name, entry in jobs.items() if entry.get("skipped")]
    if notice := notice_of_change(before, data_root()):
        console.warn(notice)

    def log(name: str, entry: Entry) -> str:
        path = sweep / entry.get("log", f"{name}/{job.LOG}")
        return str(path) if path.is_file() else ""

    unsaid = {"pending": "not started", "running": "its worker was killed, or had no room to write"}
    best = sweep / "optimization_results.yaml"
    if best.is_file() and (found := read(best).get("best_params")):
        console.say("best of the search: " + ", ".join(f"{k}={v}" for k, v in found.items()))

    def state(entry: Entry) -> str:  # nothing runs any more
        return "failed" if entry["state"] == "running" else entry["state"]

    rows = [
        (name, state(e), "", e.get("reason") or unsaid[e["state"]], log(name, e))
        for name, e in left.items()
    ]
    if rows:
        console.say(console.sweep_table(rows))
    ending = f"{len(jobs) - len(left)} of {len(jobs)} jobs are done; the same command runs the rest"
    if stops := [entry["signal"] for entry in since if entry["kind"] == "stop"]:
        raise REQUESTS[stops[0]](f"the sweep was stopped; {ending}: {sweep}")
    if left:
        raise SweepError(f"the sweep has failures; {ending}: {sweep}")
    return code


def _group(config: DictConfig, group: str) -> tuple[Any, dict[str, Any]]:
    node = OmegaConf.select(config, group)
    values = OmegaConf.to_container(node, resolve=True) if node is not None else None
    return values, dict(config.hydra.runtime.choices)


def _summary(folder: Path, ended: job.Ended) -> str:
    from metarun.report.words import seconds

    if ended.state == "done":
        return f"done: {_result(folder)}, {seconds(ended.seconds)}"
    return f"{ended.state} (exit {ended.exit_code}): {ended.reason}; see {folder / job.LOG}"


def _result(folder: Path) -> str:
    from metarun.report.words import score

    found = manifest.outcome(folder) or {}
    metric, figures = next(iter(found["test"].items()))
    return f"test {metric} {score(float(figures['mean']), float(figures['ci95']), metric)}"


def _say(sweep: Path, name: str, what: str) -> None:
    from metarun import console

    header, since = manifest.current(sweep)
    ended = sum(e["state"] not in ("pending", "running") for e in manifest.jobs(since).values())
    console.say(f"[{ended}{'/' if header['total'] else ''}{header['total'] or ''}] {name}: {what}")


def _say_where(sweep: Path, launcher: str) -> None:
    """Say where to look while nothing more is said here, for hours perhaps."""
    from metarun import console

    console.say(f"the jobs go to {launcher}; how far each is: {sweep / '*' / job.LOG}")


def _root(override: str) -> str:
    return override.lstrip("+~").replace("/", ".").replace("@", ".").partition("=")[0].split(".")[0]
