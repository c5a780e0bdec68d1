"""The command: `python -m benchmarks --works w1,w3 --rounds 5 --out outputs/bench`."""

from __future__ import annotations

import argparse
import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any

os.environ.setdefault("MPLBACKEND", "agg")

import torch

from benchmarks import curves, report, sampling
from benchmarks.machine import describe
from benchmarks.peers import installed
from benchmarks.run import OURS, builders, in_processes, measure, ratios
from benchmarks.works import WORKS, chosen
from metarun.hardware import keep_freed_memory
from metarun.precision import tensor_float


def parser() -> argparse.ArgumentParser:
    """Return the command's options."""
    found = argparse.ArgumentParser(prog="benchmarks", description=__doc__)
    found.add_argument("--works", default="*", help="names or patterns: w1,w3 or w1*")
    found.add_argument("--only", default="", help="contenders by name, comma-separated")
    found.add_argument(
        "--also", action="append", default=[], help="metarun once more, with these overrides"
    )
    found.add_argument("--rounds", type=int, default=5)
    found.add_argument("--threads", type=int, default=2)
    found.add_argument("--device", default="cpu", help="cpu | cuda | cuda:N")
    found.add_argument("--memory", action="store_true", help="peaks too, in fresh processes")
    found.add_argument(
        "--processes", action="store_true", help="times too, of fresh processes in alternation"
    )
    found.add_argument("--curves", action="store_true", help="how metarun alone scales, instead")
    found.add_argument(
        "--sampling", action="store_true", help="drawing tasks, as a share of a step, instead"
    )
    found.add_argument("--out", type=Path, default=Path("outputs/bench"))
    found.add_argument("--list", action="store_true", help="works and peers, and nothing measured")
    return found


def main(arguments: list[str] | None = None) -> int:
    """Measure and write; return 1 when our own gradient is not the plain loop's."""
    asked = parser().parse_args(arguments)
    if asked.list:
        return _list()
    works, device = chosen(asked.works), torch.device(asked.device)
    keep_freed_memory()
    tensor_float("ieee")  # which metarun would set for those after it, and torch's default is not
    torch.set_num_threads(asked.threads)
    warnings.filterwarnings("ignore", category=FutureWarning)
    asked.out.mkdir(parents=True, exist_ok=True)
    about = describe(asked.threads, device)
    if asked.curves:
        points = curves.measure(asked.threads, device, _say)
        _write(asked.out / "curves.json", {**about, "curves": points})
        curves.draw(points, asked.out / "curves.png")
        return 0
    if asked.sampling:
        shares = sampling.measure(device, _say, asked.threads)
        _write(asked.out / "sampling.json", {**about, "sampling": shares})
        return 0
    variants = {OURS: []} | {f"{OURS} {one}": one.split() for one in asked.also}
    builds = builders(asked.threads, variants)
    if asked.only:
        if unknown := set(asked.only.split(",")) - set(builds):
            _say(f"--only: {', '.join(sorted(unknown))}: not here; there are {', '.join(builds)}")
            return 2
        builds = {name: builds[name] for name in asked.only.split(",")}
    results: dict[str, Any] = {}
    for work in works:
        _say(f"{work.name}: {work.title}")
        result = measure(work, builds, asked.rounds, asked.threads, device)
        if asked.memory or asked.processes:
            rounds = asked.rounds if asked.processes else 1
            names = list(result["contenders"])
            took, peaks, failed = in_processes(work, variants, names, rounds, asked.threads, device)
            result["failed_alone"] = failed
            for name, entry in result["contenders"].items():
                entry["peak_mib"] = peaks.get(name)
                if asked.processes:
                    entry["alone_seconds"] = took[name]
                    entry["alone_against_reference"] = ratios(
                        took.get(result["reference"], ()), took[name]
                    )
        results[work.name] = result
        _say(report.table(work.name, result))
        _write(asked.out / "results.json", {**about, "rounds": asked.rounds, "works": results})
        (asked.out / "results.md").write_text(report.markdown(about, results), encoding="utf-8")
        report.draw(results, asked.out / "results.png")
    wrong = report.wrong(results)
    for line in wrong:
        print(f"not the plain loop's gradient: {line}", file=sys.stderr)
    return int(any(line.split(": ")[1].startswith(OURS) for line in wrong))


def _list() -> int:
    found, missing = installed()
    print("\n".join(f"{name:12} {work.title}" for name, work in WORKS.items()))
    print("contenders:", ", ".join([OURS, *found]))
    print("\n".join(f"not here: {name} ({why})" for name, why in missing.items()))
    return 0


def _say(text: str) -> None:
    print(text, flush=True)


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
