"""Golden trajectories: a change that moves a training loss is a bug until it is explained.

`make golden` accepts today's numbers; the change then says why they moved.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "train"))

from tiny import tiny

from metarun.signals import Stop
from metarun.state import State
from metarun.train import train

GOLDEN = Path(__file__).parent / "golden" / "losses.json"
RUNS = {
    name: (*words, "hardware.dtype=float64")
    for name, words in {
        "maml": ("algo=maml", "algo.steps=3"),
        "maml-recompute": ("algo=maml", "algo.steps=3", "algo.estimator=recompute"),
        "fomaml": ("algo=fomaml", "algo.steps=3"),
        "imaml": ("algo=imaml",),
        "clustered": ("algo=clustered", "algo.steps=3"),
        "transfer": ("algo=transfer",),
    }.items()
}


class Losses:
    """A log that keeps training losses only."""

    def __init__(self) -> None:
        self.found: list[float] = []

    def record(self, kind: str, step: int, figures: dict) -> None:
        if kind == "train":
            self.found.append(figures["loss"])

    def progress(self, done: float, figures: dict) -> None:
        pass

    def save(self, state: State) -> None:
        pass

    def save_best(self, state: State) -> None:
        pass


@pytest.mark.parametrize("name", RUNS)
def test_losses_are_the_golden_ones(name: str) -> None:
    experiment, log = tiny(*RUNS[name]), Losses()
    train(experiment, State(experiment.initial()), log, Stop(), 0.0)
    golden = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    if os.environ.get("METARUN_GOLDEN") == "write":
        GOLDEN.write_text(json.dumps({**golden, name: log.found}, indent=1, sort_keys=True) + "\n")
        return
    assert len(log.found) == 12
    assert log.found == pytest.approx(golden[name], rel=1e-9)


def test_two_exact_estimators_have_one_trajectory() -> None:
    golden = json.loads(GOLDEN.read_text())
    assert golden["maml"] == pytest.approx(golden["maml-recompute"], rel=1e-12)
    assert golden["maml"] != pytest.approx(golden["fomaml"], rel=1e-6)
