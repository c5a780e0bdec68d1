"""Weights that were given: a network that begins where another run, or another program, ended."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import torch as safetensors
from torch import Tensor

from metarun import checkpoint, manifest
from metarun.config import Part, check
from metarun.data.source import Source
from metarun.errors import CheckpointError, ConfigError
from metarun.models.net import Net
from metarun.paths import find_weights
from metarun.seen import refuse_seen
from metarun.settings import yamlfile

LEARNED = ("meta/params/", "meta/frozen/")  # a checkpoint's groups that are the model's own
HEAD = "head."


class Given(NamedTuple):
    """Weights, and where they are from."""

    word: str  # as the user wrote it
    tensors: Mapping[str, Tensor]
    digest: str  # SHA-256 over names and numbers
    run: Path | None  # whose best checkpoint they are; None for a file

    def facts(self) -> dict[str, Any]:
        """Return what an outcome says of them: where they are from, and what they cost there."""
        found = {"from": self.word, "sha256": self.digest}
        outcome = (manifest.outcome(self.run) if self.run else None) or {}
        cost = outcome.get("cost") or {}
        known = {key: cost[key] for key in ("flops_total", "train_seconds") if key in cost}
        return {**found, "cost": known or None}


def given(word: str) -> Given:
    """Read weights: a run, or a sweep's job, by path or by name below the outputs, or a file.

    Raises:
        ConfigError: there is no such thing, the run is not finished, or the file is a run's.
        CheckpointError: what is there is damaged, or no safetensors file.
    """
    place = find_weights(word)
    run = place if place.is_dir() else None
    tensors = _of_run(place) if run else _of_file(place)
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {[*value.shape]} {value.dtype}".encode())
        digest.update(value.contiguous().flatten().view(torch.uint8).numpy().data)
    return Given(word, tensors, digest.hexdigest(), run)


def put(found: Given, model: Net, name: str) -> None:
    """Give a model these weights; a head that is not among them stays as it is.

    Raises:
        ConfigError: the body's are not all there, or are of other shapes.
        CheckpointError: some are not finite.
    """
    for key, own in model.named_parameters():
        value = found.tensors.get(key)
        if value is not None and not value.isfinite().all():
            raise CheckpointError(f"weights: {found.word}: {key} is not finite")
        if value is not None and value.shape == own.shape:
            with torch.no_grad():
                own.copy_(value)
        elif not key.startswith(HEAD):
            there = "is missing" if value is None else f"is {[*value.shape]} there"
            raise ConfigError(
                f"weights: {found.word}: not of model={name} as it is set: {key} {there}, and "
                f"{[*own.shape]} here"
            )


def random_head(found: Given, model: Net) -> list[str]:
    """Return the names of a head's parameters for which there were no weights of their shape."""
    return [
        key
        for key, own in model.named_parameters()
        if key.startswith(HEAD)
        and ((value := found.tensors.get(key)) is None or value.shape != own.shape)
    ]


def refuse_begun(found: Given, dataset: Part, source: Source, root: Path) -> None:
    """Refuse weights of a run that saw what is tested here, or that began with such weights.

    Raises:
        ConfigError, DataError: as `refuse_seen` does.
    """
    if found.run is None:
        return
    before = check(yamlfile.of_run(found.run))
    if before.weights is not None:
        refuse_begun(given(before.weights), dataset, source, root)
    trained = before.parts["dataset"]
    refuse_seen(f"weights={found.word}", found.run, trained, dataset, source, root)


def _of_run(folder: Path) -> dict[str, Tensor]:
    ended = manifest.outcome(folder)
    if not yamlfile.is_run(folder):
        raise ConfigError(f"weights: {folder} is not a run folder; a run folder holds config.yaml")
    if ended is None or ended["status"] != "done":
        raise ConfigError(f"weights: {folder} is not finished; metarun resume {folder} goes on")
    tensors, _ = checkpoint.load(checkpoint.best(folder))
    return {
        key.removeprefix(group): value
        for key, value in tensors.items()
        for group in LEARNED
        if key.startswith(group)
    }


def _of_file(path: Path) -> dict[str, Tensor]:
    try:
        tensors = safetensors.load_file(path)
    except Exception as error:  # the parser raises many kinds
        raise CheckpointError(
            f"weights: {path}: no safetensors file ({error!s:.80}); "
            "safetensors.torch.save_file(model.state_dict(), path) writes one"
        ) from error
    if any(key.startswith(LEARNED) for key in tensors):
        raise ConfigError(
            f"weights: {path}: a checkpoint of metarun's; name its run instead, of which is known "
            "what it has seen"
        )
    return tensors
