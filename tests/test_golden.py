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

from tiny import Log, tiny

from metarun.engine.cost import Flops
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
        "imaml": ("algo=imaml", "algo.inner_optimizer=sgd"),  # a search may turn by a rounding
        "clustered": ("algo=clustered", "algo.steps=3"),
        "transfer": ("algo=transfer",),
    }.items()
}


@pytest.mark.parametrize("name", RUNS)
def test_losses_are_the_golden_ones(name: str) -> None:
    experiment, log = tiny(*RUNS[name]), Log()
    train(experiment, State(experiment.initial()), log, Stop(), Flops())
    losses = [figures["loss"] for kind, _, figures in log.records if kind == "train"]
    golden = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    if os.environ.get("METARUN_GOLDEN") == "write":
        GOLDEN.write_text(json.dumps({**golden, name: losses}, indent=1, sort_keys=True) + "\n")
        return
    assert len(losses) == 12
    assert losses == pytest.approx(golden[name], rel=1e-9)


def test_two_exact_estimators_have_one_trajectory() -> None:
    golden = json.loads(GOLDEN.read_text())
    assert golden["maml"] == pytest.approx(golden["maml-recompute"], rel=1e-12)
    assert golden["maml"] != pytest.approx(golden["fomaml"], rel=1e-6)
