"""Weights & Biases, fed from the records of a run by a process of its own that may die."""

from metarun.tracking.settings import TrackingSettings, none, wandb
from metarun.tracking.start import mirror_comparison, start_mirror
from metarun.tracking.sync import sync_main

__all__ = [
    "TrackingSettings",
    "mirror_comparison",
    "none",
    "start_mirror",
    "sync_main",
    "wandb",
]
