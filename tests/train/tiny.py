"""A run that takes a moment: sinusoids, a small perceptron, a few steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from metarun.assemble import Experiment, assemble
from metarun.config import check, compose_job
from metarun.state import State

TINY = (
    "dataset=sinusoid",
    "model.hidden=[8]",
    "outer.batch=4",
    "task.test_queries=10",
    "budget.total=12",
    "validation.every=6",
    "validation.tasks=6",
    "validation.steps=2",
    "test.tasks=8",
    "test.steps=3",
    "checkpoints.every=4",
    "hardware=cpu",
    "hardware.threads=1",
)
FEW = {
    "algo=clustered": ["algo.starts=2"],
    "algo=mixture": ["algo.starts=2"],
    "algo=multi_maml": ["algo.starts=1"],
    "algo=mmaml": ["algo.width=6"],
    "algo=tsamaml": ["algo.starts=2", "algo.warm_up=6", "algo.tasks=10", "algo.cluster_steps=2"],
}


def tiny_config(*overrides: str) -> dict[str, Any]:
    """Return the resolved configuration of a tiny run."""
    few = [word for algo, words in FEW.items() if algo in overrides for word in words]
    return compose_job([*TINY, *few, *overrides])


def tiny(*overrides: str) -> Experiment:
    """Return a tiny experiment."""
    return assemble(check(tiny_config(*overrides)), Path("no-data-needed"))


class Log:
    """Keeps what training records, and nothing else."""

    def __init__(self) -> None:
        self.records: list[tuple[str, int, dict[str, Any]]] = []

    def record(self, kind: str, step: int, figures: dict[str, Any]) -> None:
        self.records.append((kind, step, figures))

    def progress(self, done: float, figures: dict[str, float]) -> None:
        pass

    def save(self, state: State) -> None:
        pass

    def save_best(self, state: State) -> None:
        pass
