"""What a run found and what it cost, as the plain values of `outcome.json`."""

from __future__ import annotations

import hashlib
import io
import json
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from metarun import __version__
from metarun.assemble import Experiment
from metarun.engine.cost import Flops, count, flops_per_adaptation
from metarun.engine.fitting import peak_memory_bytes
from metarun.evaluate import Chosen, Scores
from metarun.records import masked
from metarun.report.clusters import families
from metarun.state import State
from metarun.train import summary


def task_list(experiment: Experiment) -> str:
    """Return a SHA-256 over the test tasks' tensors; runs that share it can be paired.

    The first tasks stand for all: every one is a function of the same few numbers and of what the
    split holds, which are hashed as well.
    """
    test, shape = experiment.test, experiment.task
    digest = hashlib.sha256()
    words = [test.seed, test.tasks, shape.ways, shape.shots, shape.test_queries]
    digest.update(" ".join(map(str, words)).encode())
    digest.update(experiment.source.fingerprint.get("test", "").encode())
    some = experiment.tasks("test", 0, min(test.tasks, 25))
    for tensor in (some.support_x, some.support_y, some.query_x, some.query_y, some.mode):
        digest.update(tensor.float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def versions() -> dict[str, str | None]:
    """Return what the bits of a result may depend on."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "metarun": __version__,
        "git": _git_commit(),
    }


def _git_commit() -> str | None:
    here = Path(__file__).resolve().parent
    if not (here.parent / ".git").exists():
        return None  # installed, not a checkout; the folder above may be another project's
    command = ["git", "-C", str(here), "rev-parse", "HEAD"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None


def outcome(
    experiment: Experiment,
    config: Mapping[str, Any],
    name: str,
    state: State,
    chosen: Chosen,
    scores: Scores,
    flops: Flops,
) -> dict[str, Any]:
    """Return everything that `outcome.json` says of a run that ended well."""
    choices, shape = config["choices"], experiment.task
    return {
        "status": "done",
        "exit_code": 0,
        "name": name,
        **{key: choices[key] for key in ("algo", "dataset", "model")},
        "seed": experiment.seed,
        "start": _start(experiment),
        "weights": experiment.given.facts() if experiment.given else None,
        "oracle": experiment.algorithm.oracle is not None,
        "shape": {"ways": shape.ways, "shots": shape.shots, "test_queries": shape.test_queries},
        "test": summary(scores, chosen.steps),
        "chosen": {"steps": chosen.steps, **chosen.rates},
        "task_list": task_list(experiment),
        "normalisation": experiment.normalisation(),
        "budget": {"unit": experiment.budget.unit, "total": experiment.budget.total},
        "cost": _cost(experiment, state, flops, chosen.steps),
        "clusters": families(scores, experiment.source.modes, chosen.steps),
        "divergence": {
            "skipped_steps": state.skipped,
            "dropped_tasks": state.dropped,
            "nonfinite_steps": state.nonfinite,
            "clipped_steps": state.clipped,
        },
        "versions": versions(),
        "hardware": experiment.hardware.describe()
        | {"chunk": state.chunk or experiment.tasks_at_once()},
    }


def _start(experiment: Experiment) -> str:
    """Return what a task's start is; what nothing trained is what was given."""
    start = experiment.algorithm.start
    return "pre-trained" if experiment.given and start == "random" else start


def outcome_file(found: Mapping[str, Any]) -> bytes:
    """Return `outcome.json`: secrets masked, numbers that are not finite as in the records."""
    return (json.dumps(masked(found), indent=2, allow_nan=False) + "\n").encode()


def score_file(scores: Scores) -> bytes:
    """Return `scores.npz`: every task's score after every number of steps, for pairing."""
    arrays: dict[str, Any] = {
        "task": np.arange(len(scores.values)),
        scores.metric: scores.values.numpy(),
        "mode": scores.mode.numpy(),
    }
    if scores.assignment is not None:
        arrays["assignment"] = scores.assignment.numpy()
    if scores.by_start is not None:
        arrays["by_start"] = scores.by_start.numpy()
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def _cost(experiment: Experiment, state: State, flops: Flops, steps: int) -> dict[str, Any]:
    batch = experiment.outer.batch
    return {
        "meta_steps": state.step,
        "examples": state.step * experiment.examples_a_step(),
        "train_seconds": state.seconds,
        "tasks_per_second": state.step * batch / state.seconds if state.seconds else 0.0,
        "flops_per_meta_step": flops.until(state.step) // max(1, state.step),
        "flops_total": flops.until(state.step),
        "flops_per_adaptation": flops_per_adaptation(experiment, state.meta, steps),
        "peak_memory_bytes": peak_memory_bytes(experiment.hardware.device),
        "parameters": sum(p.numel() for p in experiment.problem.model.parameters()),
        "meta_parameters": count(state.meta) if experiment.algorithm.meta_grad else 0,
    }
