"""The same results as Markdown and as a picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def markdown(about: Mapping[str, Any], results: Mapping[str, Any]) -> str:
    """Return the whole page."""
    machine, versions = about["machine"], about["versions"]
    head = [
        "# Benchmarks",
        "",
        f"{machine['device']}, {machine['architecture']}, {machine['cores']} cores, "
        f"{' '.join(machine['flags'])}; {about['threads']} threads, float32.",
        "Versions: " + ", ".join(f"{name} {text}" for name, text in versions.items()) + ".",
        f"Allocator: {about['allocator']['library']}, freed blocks kept, the same for all.",
        "",
        "One row is one whole meta-update, the outer Adam step included, on prepared random tasks, "
        "everyone interleaved in one process in shuffled order. Speeds are medians of the ratios "
        "of each round [lowest to highest]. The limit is the plain loop's operations at the best "
        "float32 rate seen in the process. Errors are of the meta-gradient, relative to the plain "
        "loop's largest entry in float64.",
        "",
    ]
    return "\n".join(head) + "\n".join(table(name, one) for name, one in results.items())


def table(name: str, result: Mapping[str, Any]) -> str:
    """Return one work's table."""
    reference = result["reference"]
    lines = [
        f"## {name}: {result['title']}",
        "",
        f"{result['gflop']:.4g} GFLOP, limit {_time(result['limit_seconds'])} at "
        f"{result['best_gflop_per_second']:.0f} GFLOP/s; load average before "
        f"{result['load_average_before']:.1f}; reference {reference}"
        + (f"; must reach {result['must']:g}x" if result["must"] else "")
        + (f", aim {result['aim']:g}x." if result["aim"] else "."),
        "",
        f"| implementation | median | x limit | speed against {reference} | against plain loop "
        "| float64 error | float32 error | peak MiB | note |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    ordered = sorted(result["contenders"].items(), key=lambda item: item[1]["median"])
    for who, entry in ordered:
        near, peak = entry["agreement"], entry.get("peak_mib")
        exact = near["float64"]
        cells = [
            who,
            _time(entry["median"]),
            f"{entry['times_limit']:.1f}",
            _ratio(entry["against_reference"]),
            _ratio(entry["against_plain"]),
            f"{exact['max_error']:.0e}" + ("" if exact["close"] else " **wrong**"),
            f"{near['float32']['max_error']:.0e}",
            "-" if peak is None else f"{peak:.0f}",
            entry["note"],
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", ""])


def wrong(results: Mapping[str, Any]) -> list[str]:
    """Return 'work: who: by how much' for every gradient that is not the plain loop's."""
    return [
        f"{name}: {who}: relative error {near['max_error']:.1e}, 1-cos {near['one_minus_cos']:.1e}"
        for name, result in results.items()
        for who, entry in result["contenders"].items()
        if not (near := entry["agreement"]["float64"])["close"]
    ]


def draw(results: Mapping[str, Any], path: Path) -> None:
    """Draw everyone's speed against the reference, a panel a work."""
    from matplotlib.figure import Figure

    columns = min(3, len(results))
    rows = -(-len(results) // columns)
    figure = Figure(figsize=(4.6 * columns, 2.9 * rows), layout="constrained")
    for axes, (name, result) in zip(
        figure.subplots(rows, columns, squeeze=False).flat, results.items(), strict=False
    ):
        entries = [
            (who, entry["against_reference"])
            for who, entry in sorted(
                result["contenders"].items(), key=lambda item: -item[1]["median"]
            )
            if entry["against_reference"]
        ]
        middles = [found["median"] for _, found in entries]
        spread = [
            [found["median"] - found["low"] for _, found in entries],
            [found["high"] - found["median"] for _, found in entries],
        ]
        colours = ["C1" if who.startswith("metarun") else "C0" for who, _ in entries]
        labels = [who if len(who) < 30 else who[:28] + "…" for who, _ in entries]
        axes.barh(labels, middles, xerr=spread, color=colours)
        axes.axvline(1.0, color="black", linewidth=0.8)
        if result["must"]:
            axes.axvline(result["must"], color="C3", linestyle="--", linewidth=0.8)
        axes.set_title(f"{name}: {result['title']}", fontsize=8)
        axes.set_xlabel(f"speed against {result['reference']}", fontsize=8)
        axes.tick_params(labelsize=8)
    for axes in figure.axes[len(results) :]:
        axes.remove()
    figure.savefig(path, dpi=120)


def _time(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"


def _ratio(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "-"
    return f"{found['median']:.2f} [{found['low']:.2f} to {found['high']:.2f}]"
