"""Where training stands, and the checkpoints that keep it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metarun import checkpoint, console
from metarun.assemble import Experiment
from metarun.errors import CheckpointError
from metarun.numerics.chunks import map_meta
from metarun.numerics.outer import Moments
from metarun.paths import config_digest, flat
from metarun.problem import Meta

COUNTERS = (
    *("step", "validated", "seconds", "best", "skipped", "skipped_in_a_row"),
    *("dropped", "chunk", "clipped", "nonfinite"),
)


@dataclass
class State:
    """Where training stands; all that going on from here needs, for tasks have no state."""

    meta: Meta
    moments: Moments = field(default_factory=dict[str, Tensor])  # of the outer optimiser
    step: int = 0
    validated: int = 0  # the step that validation has last seen
    seconds: float = 0.0  # of training alone, validation and checkpoints excluded
    best: float | None = None  # goodness on validation
    skipped: int = 0
    skipped_in_a_row: int = 0
    dropped: int = 0
    chunk: int | None = None  # found to fit into memory
    clipped: int = 0  # meta-steps whose gradient was too long
    nonfinite: int = 0  # meta-steps in which a number was not finite


class Vault:
    """The checkpoints of one run: the newest to go on from, and the best on validation."""

    def __init__(self, folder: Path, config: Mapping[str, Any], experiment: Experiment) -> None:
        self.folder = folder / "checkpoints"
        self.config, self.digest = flat(config), config_digest(config)
        self.experiment = experiment
        self.data = dict(experiment.source.fingerprint)
        if experiment.given:
            self.data |= {"weights": experiment.given.digest}
        self.machine = _machine(experiment)

    def save(self, state: State) -> None:
        """Write everything that going on needs."""
        moments = {f"moments/{key}": value for key, value in state.moments.items()}
        self._write(state, checkpoint.step_name(state.step), moments, {})

    def save_best(self, state: State, chosen: Mapping[str, Any] | None = None) -> None:
        """Keep the meta-parameters as the best, with what validation chose for them."""
        self._write(state, checkpoint.BEST, {}, {"chosen": dict(chosen)} if chosen else {})

    def restore(self) -> State:
        """Return the newest valid state, or that before training where there is none.

        Raises:
            CheckpointError: all are damaged, or of another configuration, version or other data;
                or the best, which training was to end with, is gone.
        """
        device = self.experiment.hardware.device
        found = checkpoint.newest(self.folder, device) if self.folder.is_dir() else None
        if found is None:
            return State(self.experiment.initial())
        if found.notice:
            console.warn(found.notice)
        checkpoint.check_config(found.meta, self.digest, self.config)
        checkpoint.check_data(found.meta, self.data)
        _tell_other_machine(found.meta.get("machine") or {}, self.machine)
        state = found.meta["state"]
        if state["best"] is not None:  # better said now than when training has ended
            checkpoint.refuse_lost(checkpoint.best(self.folder.parent))
        console.say(f"going on from meta-step {state['step']}")
        moments = {
            key.removeprefix("moments/"): value
            for key, value in found.tensors.items()
            if key.startswith("moments/")
        }
        return State(self._meta(found.tensors), moments, **state)

    def best(self) -> Meta:
        """Return the meta-parameters that were best on validation, in the experiment's precision.

        Raises:
            CheckpointError: missing, damaged, or written by another configuration or version.
        """
        tensors, meta = checkpoint.load(
            checkpoint.best(self.folder.parent), self.experiment.hardware.device
        )
        checkpoint.check_config(meta, self.digest, self.config)
        dtype = self.experiment.hardware.dtype  # an evaluation's need not be training's
        return map_meta(lambda v: v.to(dtype) if v.is_floating_point() else v, self._meta(tensors))

    def _meta(self, tensors: Mapping[str, Tensor]) -> Meta:
        """Return a checkpoint's meta-parameters, where they are what the algorithm has."""
        meta: Meta = {}
        for key, value in tensors.items():
            kind, _, rest = key.partition("/")
            if kind == "meta":
                group, _, name = rest.partition("/")
                meta.setdefault(group, {})[name] = value
        if strange := _names(meta) ^ _names(self.experiment.initial()):
            raise CheckpointError(
                f"{self.folder}: {', '.join(sorted(strange)[:3])}: in the checkpoint or in this "
                "version's algorithm alone; use the version of metarun that wrote it, or train "
                "again under another name"
            )
        return meta

    def _write(
        self, state: State, name: str, more: Mapping[str, Tensor], facts: Mapping[str, Any]
    ) -> None:
        tensors = {
            f"meta/{group}/{leaf}": value
            for group, params in state.meta.items()
            for leaf, value in params.items()
        }
        counters = {key: getattr(state, key) for key in COUNTERS}
        meta = {
            "config_digest": self.digest,
            "config": self.config,
            "data": self.data,
            "machine": self.machine,
            "state": counters,
            **facts,
        }
        keep = self.experiment.checkpoints.keep
        saved = checkpoint.save(self.folder, name, {**tensors, **more}, meta, keep)
        if saved.notice:
            console.warn(saved.notice)


def _names(meta: Meta) -> set[str]:
    return {f"{group}/{name}" for group, params in meta.items() for name in params}


def _machine(experiment: Experiment) -> dict[str, Any]:
    """Return what the last bits of a sum depend on, beside the configuration."""
    hardware = experiment.hardware.describe()
    return {
        "threads": hardware["threads"],
        "processes": hardware["processes"],
        "device": hardware["name"],
        "torch": torch.__version__,
    }


def _tell_other_machine(there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Warn that what goes on need not be, to the bit, what would have come without a stop."""
    changed = [
        f"{k} {there[k]} before, {here[k]} now" for k in here if there.get(k, here[k]) != here[k]
    ]
    if changed:
        console.warn(
            f"going on with {'; '.join(changed)}: the last bits may differ from those of a run "
            "without a stop"
        )
