"""How sharply tasks choose among several starts, and how evenly: temperatures and entropies.

Letters in shapes: T tasks, M starts.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from metarun.algorithms.parts.usage import USAGE
from metarun.gradients.metagradient import MetaGradient
from metarun.problem import Meta, Params

TEMPERATURE = "temperature"  # an entry of the usage: known wherever tasks choose


class Cooling(NamedTuple):
    """A temperature that falls geometrically over so many meta-steps; it stays without an end."""

    first: float
    last: float | None
    steps: int

    def begun(self) -> Params:
        """Return the state that is needed of it, none where it stays."""
        return {} if self.last is None else {TEMPERATURE: torch.tensor(self.first)}

    def now(self, usage: Params) -> Tensor | float:
        return usage.get(TEMPERATURE, self.first)

    def cooled(self, found: MetaGradient, meta: Meta) -> MetaGradient:
        """Add a meta-step's fall to what a meta-gradient shifts: arithmetic on the state alone."""
        if self.last is None:
            return found
        there = meta[USAGE][TEMPERATURE]
        fall = (self.last / self.first) ** (1 / self.steps)
        usage = found.shift[USAGE] | {TEMPERATURE: (there * fall).clamp_min(self.last) - there}
        return found._replace(
            shift=found.shift | {USAGE: usage},
            figures=found.figures | {TEMPERATURE: there.expand(len(found.losses))},
        )


def entropy(weights: Tensor) -> Tensor:
    """Return the entropy of each row of weights, [T, M] to [T]."""
    return -(weights * weights.clamp_min(torch.finfo(weights.dtype).tiny).log()).sum(1)


def pressure(weights: Tensor, share: Tensor, *, balance: float, sharpness: float) -> Tensor:
    """Return what each task's weights [T, M] cost beside their losses, [T].

    `balance` times the divergence of the starts' shares from equal ones, and `sharpness` times
    the weights' own entropy. Shares are the running ones [M], in place of the batch's mean, about
    which the divergence is taken as linear: its slope is the same there, and a sum over tasks is
    the same in any chunks.
    """
    apart = (len(share) * share).clamp_min(torch.finfo(share.dtype).tiny).log()
    return balance * (weights * apart).sum(1) + sharpness * entropy(weights)
