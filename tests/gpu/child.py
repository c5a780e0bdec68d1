"""Train and test on the pretended device and on the CPU; print one JSON line an algorithm.

`child.py DATASET ALGO,ALGO,... OVERRIDE...`; `waits` for DATASET tells how often a meta-step makes
the host wait for the device, `resumed` the same of a run that goes on from its checkpoint, `verify`
what `metarun verify` does not find right there, and `left behind` leaves the data on the host.
"""

from __future__ import annotations

import json
import sys
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pretend
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "train"))
from tiny import FEW, Log

from metarun.assemble import Experiment, assemble
from metarun.config import Checked, check, compose_job
from metarun.data.regression import RegressionSource
from metarun.engine.batching import settle
from metarun.engine.cost import Flops
from metarun.evaluate import Scores
from metarun.hardware import Hardware
from metarun.hardware import hardware as resolve
from metarun.signals import Stop
from metarun.state import State, Vault
from metarun.train import train
from metarun.verbs.checks import checks
from metarun.verbs.verify import subject_of

WORDS = (
    *("hardware=cpu", "hardware.threads=1", "hardware.batching=vmap", "hardware.compile=false"),
    *("outer.batch=6", "budget.unit=meta_steps", "budget.total=3"),
    *("validation.every=2", "validation.tasks=4", "validation.steps=1"),
    *("outer.optimizer=sgd", "outer.lr=0.01"),  # Adam would make roundings of zero full steps
    *("test.tasks=6", "test.steps=2", "task.test_queries=3"),
)


def settings(words: list[str], *, pretended: bool) -> Checked:
    """Check settings, for the CPU or for the pretended device."""
    checked = check(compose_job(words))

    def there(**settings: Any) -> Hardware:
        return replace(resolve(**settings), device=pretend.DEVICE)

    if pretended:
        part = checked.parts["hardware"]
        part = type(part)(part.name, there, part.values)
        checked = replace(checked, parts={**checked.parts, "hardware": part})
    return checked


def experiment(words: list[str], *, pretended: bool) -> Experiment:
    """Assemble an experiment for the CPU or for the pretended device."""
    return assemble(settings(words, pretended=pretended), Path("no-data-needed"))


def through(
    words: list[str], *, pretended: bool, folder: Path | None = None
) -> tuple[State, Scores, int]:
    """Train and test; return also how often the meta-steps waited for the device.

    With a folder, go on from its checkpoint, or leave one there.
    """
    ready = experiment(words, pretended=pretended)
    state = State(ready.initial())
    settled, _ = settle(ready, state.meta)
    stop, vault = Stop(), Vault(folder or Path(), {}, ready)
    if folder and vault.folder.is_dir():
        state = vault.restore()
    with pretend.waits() as counted:
        state = train(settled, state, Log(), stop, Flops())
    if folder and not vault.folder.is_dir():
        vault.save(state)
        vault.save_best(state)
    return state, settled.evaluate(state.meta, "test", 6, 2, stop), counted.count


def compare(words: list[str]) -> dict[str, Any]:
    """Return how far the two devices' results are apart, and where the tensors lie."""
    state, scores, _ = through(words, pretended=True)
    plain, expected, _ = through(words, pretended=False)
    pairs = [
        (state.meta[group][name].cpu(), value)
        for group, params in plain.meta.items()
        for name, value in params.items()
    ]
    devices = {v.device.type for params in state.meta.values() for v in params.values()}
    return {
        "apart": max((float((one - other).abs().max()) for one, other in pairs), default=0.0),
        "scores_apart": float((scores.values - expected.values).abs().max()),
        "devices": sorted(devices),
        "steps": state.step,
    }


def waits(words: list[str]) -> dict[str, Any]:
    """Return the waits of a meta-step that nothing is recorded of."""
    few, many = (
        through([*words, "validation.every=1000", f"budget.total={total}"], pretended=True)[2]
        for total in (2, 6)
    )
    return {"waits": (many - few) / 4}


def verified(words: list[str]) -> dict[str, Any]:
    """Return which checks of `metarun verify` fail there, and how many pass."""
    checked = settings([*words, "hardware.dtype=float64"], pretended=True)
    rows = list(checks(subject_of(checked, assemble(checked, Path("no-data-needed")))))
    wrong = [row.name for row in rows if row.state in ("fail", "warn")]
    return {"wrong": wrong, "passed": sum(row.state == "ok" for row in rows)}


def resumed(words: list[str]) -> dict[str, Any]:
    """Return the waits of a meta-step after a stop; Adam counts its steps beside its moments."""
    words = [*words, "validation.every=1000", "outer.optimizer=adam"]
    with TemporaryDirectory() as place, redirect_stdout(sys.stderr):
        folder = Path(place)
        _, *after = (
            through([*words, f"budget.total={total}"], pretended=True, folder=folder)[2]
            for total in (2, 4, 8)
        )
    return {"waits": (after[1] - after[0]) / 4}


def main() -> None:
    """Compare for every algorithm named."""
    what, algorithms, *more = sys.argv[1:]
    torch.set_num_threads(1)
    measures = {"waits": waits, "resumed": resumed, "verify": verified}
    measure, dataset = measures.get(what, compare), what
    if what in (*measures, "left behind"):
        dataset = "sinusoid"
    if what == "left behind":
        RegressionSource.to = lambda self, device: self
    for algo in algorithms.split(","):
        words = [f"dataset={dataset}", *WORDS, f"algo={algo}", *FEW.get(f"algo={algo}", []), *more]
        try:
            found = measure(words)
        except Exception as error:  # a mixed device, told to the test
            found = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps({"algo": algo, **found}), flush=True)


if __name__ == "__main__":
    main()
