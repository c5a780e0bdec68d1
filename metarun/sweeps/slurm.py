"""Jobs on a Slurm cluster, through submitit: what Slurm refuses or ends is a line of text."""

from __future__ import annotations

import shutil
from collections.abc import Generator
from contextlib import contextmanager
from importlib import import_module
from types import SimpleNamespace
from typing import Any

from metarun.errors import ConfigError

LAUNCHER = "submitit_slurm"
NEEDED = ("srun", "sbatch")


def refuse_without_slurm(launcher: str) -> None:
    """Raise ConfigError where jobs are to go to Slurm and this machine has none."""
    missing = [command for command in NEEDED if shutil.which(command) is None]
    if launcher == LAUNCHER and missing:
        raise ConfigError(
            f"launch=slurm: there is no {' or '.join(missing)} here; give the command on a login "
            "node of the cluster, or use launch=local"
        )


@contextmanager
def on_slurm(launcher: str) -> Generator[None]:
    """Let a job that Slurm ended cost only itself inside the block; nothing to other launchers.

    Hydra's launcher raises at the first job without a result, and waits for none of the others.

    Raises:
        ConfigError: Slurm refuses the jobs.
    """
    if launcher != LAUNCHER:
        yield
        return
    core: Any = import_module("submitit.core.core")
    lost: type[Exception] = import_module("submitit.core.utils").UncompletedJobError
    results = core.Job.results

    def kept(job: Any) -> list[Any]:
        try:
            returned = results(job)
            # Hydra hands on what submitit raises inside a job, as when its time is up for good.
            fault = getattr(returned[0], "_return_value", None)
            if not isinstance(fault, lost):
                return returned
            why = str(fault)
        except lost:
            why = f"its state is {job.state}"
        from metarun import console

        console.warn(f"Slurm job {job.job_id} gave no result: {why}; see {job.paths.folder}")
        return [SimpleNamespace(return_value=None)]

    core.Job.results = kept
    try:
        yield
    except lost as error:
        raise ConfigError(f"launch=slurm: {error}") from error
    finally:
        core.Job.results = results
