"""Measure the peak memory of one task's meta-gradient against the number of inner steps.

`python docs/memory.py` writes docs/memory.json and, from it, docs/memory.png; every number comes
from a process of its own. `--device cuda` measures on a GPU; `--draw` draws the stored numbers.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
STEPS = (1, 4, 16, 64)
METHODS = {
    "unrolled": ("algo=maml", "algo.estimator=unrolled"),
    "adjoint": ("algo=maml", "algo.estimator=adjoint"),
    "recompute": ("algo=maml", "algo.estimator=recompute"),
    "first_order": ("algo=fomaml",),
    "implicit": ("algo=imaml",),
}
SETTING = ("dataset=glyphs", "model=conv4", "task.queries=1", "hardware.threads=1")


def peak(method: str, steps: int, device: str) -> dict[str, Any]:
    """Return the bytes that one meta-gradient needs at most, beyond its inputs, and a start's."""
    import torch

    from metarun.assemble import assemble
    from metarun.config import check, compose_job
    from metarun.data.fetch import data_root

    on = "cpu" if device == "cpu" else "gpu"
    words = (*SETTING, *METHODS[method], f"algo.steps={steps}", f"hardware={on}")
    experiment = assemble(check(compose_job(list(words))), data_root())
    meta, task = experiment.initial(), experiment.batch(0)[:1]
    meta_grad = experiment.algorithm.meta_grad
    assert meta_grad is not None
    size = sum(v.numel() * v.element_size() for v in meta["params"].values())
    meta_grad(meta, task, 0)  # what a first call allocates for good is not the method's
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        meta_grad(meta, task, 0)
        found = torch.cuda.max_memory_allocated() - before
    else:
        activities = [torch.profiler.ProfilerActivity.CPU]
        with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
            meta_grad(meta, task, 0)
        found = _largest_sum(profile)
    return {"peak_bytes": found, "parameter_bytes": size, "torch": torch.__version__}


def _largest_sum(profile: Any) -> int:
    """Add up every allocation and release of the profile in its order."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    memory = [e for e in events if e.get("name") == "[memory]"]
    live = most = 0
    for event in sorted(memory, key=lambda e: e["ts"]):
        live += event["args"]["Bytes"]
        most = max(most, live)
    return most


def measure(method: str, steps: int, device: str = "cpu") -> dict[str, Any]:
    """Return `peak` from a fresh process."""
    command = [sys.executable, __file__, "--one", method, str(steps), "--device", device]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=280)
    return json.loads(done.stdout.splitlines()[-1])


def draw(stored: dict[str, Any], path: Path) -> None:
    """Draw the stored numbers."""
    from metarun import plots

    labels = {
        "unrolled": ("MAML, unrolled", plots.COLOURS["maml"]),
        "adjoint": ("MAML, adjoint (default)", plots.COLOURS["clustered"]),
        "recompute": ("MAML, recompute", plots.COLOURS["transfer"]),
        "first_order": ("FO-MAML", plots.COLOURS["fomaml"]),
        "implicit": ("iMAML", plots.COLOURS["imaml"]),
    }
    with plots.sheet(6.4, 4.0) as (figure, (axes,)):
        for (method, (label, colour)), marker in zip(labels.items(), plots.MARKERS, strict=False):
            points = {int(k): v / 2**20 for k, v in stored["peak_bytes"][method].items()}
            axes.plot(list(points), list(points.values()), color=colour, marker=marker, label=label)
        axes.set_title("Peak memory of one task's meta-gradient")
        axes.set_xlabel(f"inner steps ({stored['setting']})")
        axes.set_ylabel("MiB")
        plots.logarithmic(axes, "y")
        axes.set_xscale("log", base=2)
        axes.set_xticks(STEPS, [str(step) for step in STEPS])
        axes.legend()
        path.write_bytes(plots.render(figure, "png"))


def main() -> None:
    """Measure all, or one, or only draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--one", nargs=2, metavar=("METHOD", "STEPS"))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--draw", action="store_true")
    told = parser.parse_args()
    if told.one:
        print(json.dumps(peak(told.one[0], int(told.one[1]), told.device)))
        return
    store = HERE / "memory.json"
    if not told.draw:
        found = {m: {k: measure(m, k, told.device) for k in STEPS} for m in METHODS}
        some = found["unrolled"][1]
        stored = {
            "setting": "Conv-4 of 64 filters, 28 x 28, 5-way 1-shot, 5 queries",
            "device": told.device,
            "torch": some["torch"],
            "parameter_bytes": some["parameter_bytes"],
            "peak_bytes": {
                m: {str(k): f["peak_bytes"] for k, f in by.items()} for m, by in found.items()
            },
        }
        store.write_text(json.dumps(stored, indent=1) + "\n")
    draw(json.loads(store.read_text()), HERE / "memory.png")


if __name__ == "__main__":
    main()
