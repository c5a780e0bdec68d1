"""How our engine scales: tasks a step, inner steps, ways; each point in a fresh process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.child import alone
from benchmarks.run import OURS
from benchmarks.works import WORKS

BASE = replace(WORKS["w1-1query"], tasks=8, inner_lr=0.01)
SWEPT: dict[str, tuple[int, ...]] = {
    "tasks": (1, 2, 4, 8, 16, 32, 64, 128, 256),
    "steps": (1, 2, 4, 8, 16, 32, 64),
    "ways": (5, 10, 20, 50, 100),
}
TITLES = {"tasks": "tasks a meta-step", "steps": "inner steps", "ways": "ways"}
ESTIMATORS = ("adjoint", "recompute", "first_order")


def measure(threads: int, device: torch.device, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Return seconds and peak memory for every point; only the steps are measured in three ways."""
    points: list[dict[str, Any]] = []
    for what, values in SWEPT.items():
        for estimator in ESTIMATORS if what == "steps" else ESTIMATORS[:1]:
            for value in values:
                work = replace(BASE, **{what: value})
                overrides = [f"algo.estimator={estimator}"]
                found = alone(work, OURS, overrides, threads, device)
                points.append({"swept": what, "value": value, "estimator": estimator, **found})
                say(f"{TITLES[what]} {value}, {estimator}: {found}")
    return points


def draw(points: list[dict[str, Any]], path: Path) -> None:
    """Draw seconds above and peak memory below, a column a sweep."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    figure = Figure(figsize=(4 * len(SWEPT), 6), layout="constrained")
    panels = figure.subplots(2, len(SWEPT), squeeze=False)
    for column, what in enumerate(SWEPT):
        for row, key in enumerate(("seconds", "peak_mib")):
            axes = panels[row][column]
            for estimator in ESTIMATORS:
                line = [
                    (p["value"], p[key])
                    for p in points
                    if p["swept"] == what and p["estimator"] == estimator and key in p
                ]
                if line:
                    axes.plot(*zip(*line, strict=True), marker="o", label=estimator)
            axes.set_xscale("log")
            axes.set_xticks(SWEPT[what], [str(value) for value in SWEPT[what]], minor=False)
            axes.set_xticks([], minor=True)
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axes.yaxis.set_minor_formatter(NullFormatter())
            axes.grid(alpha=0.3)
            axes.set_xlabel(TITLES[what])
            axes.set_ylabel("seconds a meta-step" if key == "seconds" else "peak, MiB")
    panels[0][1].legend(fontsize=8)
    figure.savefig(path, dpi=120)
