"""No false alarms: where training is healthy, no number is found not to be finite."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny import Log

from metarun.assemble import assemble
from metarun.config import check, compose_job
from metarun.engine.cost import Flops
from metarun.paths import conf_dir
from metarun.signals import Stop
from metarun.state import State
from metarun.train import train

SHAPES = (
    *("model=mlp", "model.hidden=[8]", "outer.batch=5", "hardware=cpu", "hardware.threads=1"),
    *("validation.every=1000000", "validation.tasks=4", "validation.steps=2"),
)
PRESETS = sorted(path.stem for path in (conf_dir() / "algo").glob("*.yaml"))
PRESETS.remove("scratch")  # which trains nothing
IMAGES = ("baselinepp", "centroid", "logreg", "protomaml", "protonet")
ON = {
    **dict.fromkeys((*IMAGES, "alfa"), "glyphs"),  # of its tasks on sinusoids some do run away
    **dict.fromkeys(("clustered", "mixture", "multi_maml", "tsamaml"), "multimodal"),
}
STEPS = 10_000
FEWER = dict.fromkeys(("alfa", "mixture", "tsamaml"), 5_000)  # the dearest by far
FEWER |= dict.fromkeys(("es_maml", "imaml"), 1_000)


@pytest.mark.nightly
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("algo", PRESETS)
def test_ten_thousand_steps_at_an_algorithm_s_defaults_raise_no_alarm(algo: str) -> None:
    steps = FEWER.get(algo, STEPS)
    words = (f"algo={algo}", f"dataset={ON.get(algo, 'sinusoid')}", f"budget.total={steps}")
    experiment = assemble(check(compose_job([*SHAPES, *words])), Path("no-data-needed"))
    state, log = State(experiment.initial()), Log()
    train(experiment, state, log, Stop(), Flops())
    assert (state.step, state.nonfinite, state.skipped) == (steps, 0, 0)
    assert "diverged" not in {kind for kind, _, _ in log.records}
