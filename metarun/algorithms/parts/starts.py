"""Several starts: what each has of its own, and what they share.

Letters in shapes: T tasks, M starts.
"""

from __future__ import annotations

import torch
from torch import Tensor

from metarun.problem import Meta, Params

SHARED = "shared"  # the group of meta-parameters that all starts have in common


def spread_starts(params: Params, starts: int, spread: float) -> Params:
    """Return copies of one start, [M, ...], `spread` relative standard deviations apart."""
    generator = torch.Generator().manual_seed(0)
    stacked: Params = {}
    for name, value in params.items():
        noise = torch.randn((starts, *value.shape), generator=generator).to(value)
        scale = value.std() if value.numel() > 1 else value.abs().sum()
        stacked[name] = value + spread * scale * noise * (starts > 1)
    return stacked


def begin_starts(params: Params, starts: int, spread: float, own: frozenset[str]) -> Meta:
    """Return `params`, what each start has of its own, [M, ...], and `shared`, the rest, if any."""
    stacked = spread_starts({n: v for n, v in params.items() if n in own}, starts, spread)
    rest = {name: value for name, value in params.items() if name not in own}
    return {"params": stacked, SHARED: rest} if rest else {"params": stacked}


def every_start(meta: Meta) -> Params:
    """Return all starts whole, [M, ...]: of what is shared, each is a view of the one there is."""
    own = meta["params"]
    count = len(next(iter(own.values())))
    rest = {name: v.expand(count, *v.shape) for name, v in meta.get(SHARED, {}).items()}
    return {**rest, **own}


def learned_starts(meta: Meta) -> Meta:
    """Return the groups of meta-parameters that `every_start` is made of."""
    return {group: meta[group] for group in ("params", SHARED) if group in meta}


def from_starts(starts: Params, which: Tensor) -> Params:
    """Return for each task the start of that number: [M, ...] and [T] to [T, ...]."""
    return {name: value[which] for name, value in starts.items()}
