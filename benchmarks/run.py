"""One piece of work, everyone on it: times, ratios a round, agreement, memory."""

from __future__ import annotations

import os
import random
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

import torch

from benchmarks import ours
from benchmarks.agreement import agreement
from benchmarks.child import alone
from benchmarks.contender import Build, Contender
from benchmarks.measure import best_rate, flops, interleaved
from benchmarks.nets import initial
from benchmarks.peers import installed, plain
from benchmarks.works import Work, batch

OURS = "metarun"


def builders(threads: int, variants: Mapping[str, Sequence[str]]) -> dict[str, Build]:
    """Return everyone's builder: our engine under each set of overrides, then the peers."""
    own: dict[str, Build] = {
        name: ours.build(threads, overrides)
        for name, overrides in variants.items()
        if name.split()[0] == OURS
    }
    return own | {name: module.build for name, module in installed()[0].items()}


def measure(
    work: Work,
    builds: Mapping[str, Build],
    rounds: int,
    threads: int,
    device: torch.device,
) -> dict[str, Any]:
    """Interleave everyone in this process; return what was seen, ready for JSON."""
    near = agreement(work, builds, threads, device)
    values, tasks = initial(work, torch.float32, device), batch(work, torch.float32, device)
    contenders: dict[str, Contender] = {}
    for name, build in builds.items():
        one = build(work, values, tasks)
        if one is not None:
            contenders[name] = one
    load = os.getloadavg()[0]
    took = interleaved(contenders, rounds, threads, device)
    result = summary(work, took, flops(work), best_rate(threads, device))
    result["load_average_before"] = load
    for name, entry in result["contenders"].items():
        entry["note"] = contenders[name].note
        entry["agreement"] = {
            dtype: {**d._asdict(), "close": d.close} if dtype == "float64" else d._asdict()
            for dtype, d in near[name].items()
        }
    return result


def in_processes(
    work: Work,
    variants: Mapping[str, Sequence[str]],
    names: Sequence[str],
    rounds: int,
    threads: int,
    device: torch.device,
) -> tuple[dict[str, list[float]], dict[str, float], dict[str, str]]:
    """Alternate fresh processes; return seconds a round, largest peaks in MiB, and failures."""
    order, shuffle = list(names), random.Random(0).shuffle
    took: dict[str, list[float]] = {name: [] for name in names}
    peaks: dict[str, float] = {}
    failed: dict[str, str] = {}
    for _ in range(rounds):
        shuffle(order)
        for name in order:
            found = alone(work, name, variants.get(name, ()), threads, device)
            if "failed" in found:
                failed[name] = found["failed"]
                continue
            took[name].append(found["seconds"])
            peaks[name] = max(peaks.get(name, 0.0), found["peak_mib"])
    return took, peaks, failed


def summary(
    work: Work, took: Mapping[str, Sequence[float]], operations: int, rate: float
) -> dict[str, Any]:
    """Return medians, ratios a round against the reference and the plain loop, and the limit."""
    reference = work.reference if work.reference in took else plain.NAME
    limit = operations / rate
    contenders = {
        name: {
            "seconds": list(times),
            "median": median(times),
            "times_limit": median(times) / limit,
            "against_reference": ratios(took.get(reference, ()), times),
            "against_plain": ratios(took.get(plain.NAME, ()), times),
        }
        for name, times in took.items()
        if times
    }
    return {
        "title": work.title,
        "tasks": work.tasks,
        "reference": reference,
        "must": work.must if reference == work.reference else None,
        "aim": work.aim if reference == work.reference else None,
        "gflop": operations / 1e9,
        "best_gflop_per_second": rate / 1e9,
        "limit_seconds": limit,
        "contenders": contenders,
    }


def ratios(base: Sequence[float], times: Sequence[float]) -> dict[str, Any] | None:
    """Return how many times faster than `base`, round by round."""
    a_round = [b / t for b, t in zip(base, times, strict=False)]
    if not a_round:
        return None
    return {
        "median": median(a_round),
        "low": min(a_round),
        "high": max(a_round),
        "rounds": a_round,
    }
