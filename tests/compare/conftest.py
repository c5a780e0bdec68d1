"""Run folders as a finished run leaves them, with scores that share their tasks' difficulty."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml

TASKS, STEPS = 600, 10
# Where a method's curve starts and ends, how fast it rises, seconds, FLOPs a meta-step.
ACCURACY = {
    "scratch": (0.20, 0.40, 0.5, 0.0, 0.0),
    "transfer": (0.20, 0.58, 0.6, 21.0, 2.9e9),
    "fomaml": (0.21, 0.66, 1.6, 41.0, 7.4e9),
    "maml": (0.21, 0.69, 1.8, 63.0, 1.1e10),
    "imaml": (0.21, 0.64, 1.0, 88.0, 1.6e10),
}
ERROR = {
    "scratch": (6.1, 4.2, 0.4, 0.0, 0.0),
    "transfer": (3.2, 2.1, 0.4, 6.0, 2.0e6),
    "maml": (3.6, 0.31, 1.5, 14.0, 9.0e6),
    "clustered": (2.9, 0.12, 1.5, 31.0, 2.7e7),
}

STARTS = dict(scratch="random", transfer="pre-trained", logreg="pre-trained")


@pytest.fixture
def make_run(tmp_path):
    """Return a function that writes one run folder below tmp_path and gives its path."""

    def make(folder: str, algo: str = "maml", **settings: object) -> Path:
        return write_run(tmp_path / folder, algo, **settings)

    return make


def write_run(
    folder: Path,
    algo: str,
    *,
    seed: int = 0,
    metric: str = "accuracy",
    dataset: str = "glyphs",
    task_list: str = "a",
    tasks: int = TASKS,
    steps: int = STEPS,
    modes: tuple[str, ...] = (),
    budget: float = 1000,
    config: dict | None = None,
    edit: Callable[[dict, dict], None] = lambda outcome, arrays: None,
) -> Path:
    """Write config.yaml, records.jsonl, scores.npz and outcome.json of one finished run."""
    up = metric == "accuracy"
    start, end, pace, seconds, flops = (ACCURACY if up else ERROR)[algo]
    draw = np.random.default_rng([ord(c) for c in task_list])  # tasks are the same for all
    difficulty = draw.normal(0, 0.11, tasks)
    mode = draw.integers(0, max(len(modes), 1), tasks)
    own = np.random.default_rng([seed, *map(ord, algo)])
    rise = 1 - np.exp(-pace * np.arange(steps + 1))
    curve = start + (end + own.normal(0, 0.008 if up else 0.01 * end) - start) * rise
    if up:
        noise = own.normal(0, 0.045, (tasks, 1))
        p = np.clip(curve + difficulty[:, None] * rise + noise, 0.01, 0.99)
        scores = own.binomial(75, p) / 75
    else:
        scores = curve * np.exp(5 * difficulty[:, None] + own.normal(0, 0.3, (tasks, 1)) - 0.2)
    arrays = {"task": np.arange(tasks), metric: scores, "mode": mode}
    means = scores.mean(0)
    step = int(means.argmax() if up else means.argmin())
    half = 1.96 * scores.std(0, ddof=1) / tasks**0.5
    outcome = {
        "status": "done",
        "exit_code": 0,
        "name": folder.name,
        "algo": algo,
        "start": STARTS.get(algo, "meta-learned"),
        "dataset": dataset,
        "model": "conv4" if up else "mlp",
        "seed": seed,
        "shape": {"ways": 5 if up else 1, "shots": 1 if up else 10, "test_queries": 15},
        "test": {
            metric: {
                "mean": float(means[step]),
                "ci95": float(half[step]),
                "tasks": tasks,
                "step": step,
                "by_step": means.tolist(),
                "ci95_by_step": half.tolist(),
            }
        },
        "chosen": {"steps": step, "inner_lr": 0.4 if up else 0.01},
        "task_list": hashlib.sha256(task_list.encode()).hexdigest(),
        "normalisation": "batch, transductive" if up else "none",
        "budget": {"unit": "meta_steps", "total": budget},
        "cost": {
            "meta_steps": budget if flops else 0,
            "examples": 1_280_000,
            "train_seconds": seconds,
            "tasks_per_second": 16 * budget / seconds if seconds else 0.0,
            "flops_per_meta_step": flops,
            "flops_total": flops * budget,
            "peak_memory_bytes": 480 * 2**20,
            "parameters": 112_261,
            "meta_parameters": 112_261 if flops else 0,
        },
        "clusters": clusters(modes, mode, own) if algo == "clustered" and modes else None,
        "divergence": {"skipped_steps": 0, "dropped_tasks": 0},
        "versions": {"python": "3.12.1", "torch": "2.13.0", "metarun": "0.1.0", "git": "0f3c"},
        "hardware": {"device": "cpu", "threads": 2, "dtype": "float32", "chunk": 16},
    }
    settings = {
        "seed": seed,
        "name": None,
        "algo": {"_target_": f"metarun.algorithms.{algo}.{algo}", "inner_lr": 0.4, "steps": 3},
        "budget": outcome["budget"],
        "choices": {"algo": algo, "dataset": dataset, "model": outcome["model"]},
    }
    edit(outcome, arrays)
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(settings | (config or {})))
    (folder / "records.jsonl").write_text('{"kind": "end", "step": 1000, "time": 0}\n')
    np.savez(folder / "scores.npz", **arrays)
    (folder / "outcome.json").write_text(json.dumps(outcome))
    return folder


def clusters(modes, mode, own):
    """What a clustered run says of its clusters."""
    assigned = np.where(own.uniform(size=mode.size) < 0.9, mode, (mode + 1) % len(modes))
    usage = np.bincount(assigned, minlength=len(modes)) / mode.size
    return {
        "modes": list(modes),
        "per_mode": {name: {"mean": 0.1, "tasks": 100} for name in modes},
        "usage": usage.tolist(),
        "effective": 4.8,
        "purity": 0.9,
        "nmi": 0.81,
        "ari": 0.79,
    }


@pytest.fixture(scope="session")
def sweep(tmp_path_factory):
    """A sweep of five methods with three seeds each, and one job that was killed."""
    folder = tmp_path_factory.mktemp("sweep")
    for algo in ("scratch", "transfer", "fomaml", "maml", "imaml"):
        for seed in (0, 1, 2):
            write_run(folder / f"{algo}-s{seed}", algo, seed=seed)
    killed = folder / "maml-s3"
    killed.mkdir()
    (killed / "config.yaml").write_text("seed: 3\nchoices: {algo: maml}\n")
    (killed / "records.jsonl").write_text('{"kind": "train", "step": 340, "time": 0}\n{"kind": "tr')
    return folder
