"""Does everyone compute the same meta-gradient? In float64, against the plain loop."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.contender import Build
from benchmarks.nets import initial
from benchmarks.peers import plain
from benchmarks.works import Work, batch

TOLERANCE = 1e-6  # a rate kept in float32 costs 5e-8; a wrong second order 5e-3
TASKS, QUERIES = 4, 3  # at most: enough for chunks of several tasks, and float64 is slow


class Distance(NamedTuple):
    """How far a gradient is from the oracle's."""

    max_error: float  # the largest, relative to the oracle's largest entry
    one_minus_cos: float

    @property
    def close(self) -> bool:
        return self.max_error <= TOLERANCE and self.one_minus_cos <= TOLERANCE


def distance(found: list[Tensor], wanted: list[Tensor]) -> Distance:
    """Compare two gradients as one vector each, in float64."""
    a, b = (torch.cat([p.detach().double().flatten() for p in g]) for g in (found, wanted))
    cosine = float(a @ b / (a.norm() * b.norm()))
    return Distance(float((a - b).abs().max() / b.abs().max()), max(0.0, 1.0 - cosine))


def agreement(
    work: Work, builds: Mapping[str, Build], threads: int, device: torch.device
) -> dict[str, dict[str, Distance]]:
    """Return everyone's distance in float64, and in float32 from the same float64 oracle."""
    few = replace(work, tasks=min(work.tasks, TASKS), queries=min(work.queries, QUERIES))
    exact, single = torch.float64, torch.float32
    oracle = plain.build(few, initial(few, exact, device), batch(few, exact, device)).gradient()
    found: dict[str, dict[str, Distance]] = {}
    for name, build in builds.items():
        for dtype, key in ((exact, "float64"), (single, "float32")):
            one = build(few, initial(few, dtype, device), batch(few, dtype, device))
            if one is None:
                continue
            torch.set_num_threads(one.threads or threads)
            found.setdefault(name, {})[key] = distance(one.gradient(), oracle)
    torch.set_num_threads(threads)
    return found
