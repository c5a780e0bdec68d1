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
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

    from metarun.data.source import Split

HERE = Path(__file__).parent
STEPS = (1, 4, 16, 64)
METHODS = {
    "unrolled": ("algo=maml", "algo.estimator=unrolled"),
    "adjoint": ("algo=maml", "algo.estimator=adjoint"),
    "recompute": ("algo=maml", "algo.estimator=recompute"),
    "first_order": ("algo=fomaml",),
    "implicit": ("algo=imaml",),
}


class Setting(NamedTuple):
    """A network and the size of its tasks."""

    title: str
    tasks: str
    words: tuple[str, ...]


SETTINGS = {
    "small": Setting(
        "Conv-4 of 64 filters, 28 x 28",
        "5-way 1-shot, 5 queries",
        ("dataset=glyphs", "model=conv4", "task.queries=1"),
    ),
    "standard": Setting(  # miniImageNet's; what is on the images is all the same to memory
        "Conv-4 of 32 filters, 84 x 84 in colour",
        "5-way 5-shot, 75 queries",
        (
            "dataset=folder",
            "dataset.path=noise",
            "dataset.size=84",
            "model=conv4",
            "model.filters=32",
            "model.downsample=max_pool",
            "model.spatial=flatten",
            "task.shots=5",
            "task.queries=15",
        ),
    ),
}


def noise(root: Path, *, size: int, **_: Any) -> Any:
    """Give as many images as one task of each split needs, without a folder to read them from."""
    import torch

    from metarun.data.images import Pictures, image_source

    classes, images = 5, 20
    generator = torch.Generator().manual_seed(0)
    shape = (3 * classes * images, 3, size, size)
    pixels = torch.randint(256, shape, dtype=torch.uint8, generator=generator)
    names = tuple(map(str, range(3 * classes)))
    pictures = Pictures(pixels, (images,) * len(names), names)
    splits: dict[Split, range] = {
        "train": range(5),
        "validation": range(5, 10),
        "test": range(10, 15),
    }
    return image_source(pictures, splits, "none")


def peak(setting: str, method: str, steps: int, device: str) -> dict[str, Any]:
    """Return the bytes that one meta-gradient needs at most, beyond its inputs, and a start's."""
    import gc

    import torch

    from metarun.assemble import assemble
    from metarun.config import check, compose_job
    from metarun.data.fetch import data_root

    own = (f"algo.steps={steps}", f"hardware={'cpu' if device == 'cpu' else 'gpu'}")
    words = (*SETTINGS[setting].words, *METHODS[method], *own, "hardware.threads=1")
    checked = check(compose_job(list(words)))
    if checked.choices["dataset"] == "folder":
        images = checked.parts["dataset"]._replace(factory=noise)
        checked = replace(checked, parts={**checked.parts, "dataset": images})
    experiment = assemble(checked, data_root())
    meta, task = experiment.initial(), experiment.batch(0)[:1]
    meta_grad = experiment.algorithm.meta_grad
    assert meta_grad is not None
    size = sum(v.numel() * v.element_size() for v in meta["params"].values())
    meta_grad(meta, task, 0)  # what a first call allocates for good is not the method's
    gc.collect()  # nor what is let go of
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


def measure(
    setting: str, methods: Iterable[str], steps: Iterable[int], device: str = "cpu"
) -> dict[str, dict[int, dict[str, Any]]]:
    """Return `peak` by method and steps, one after another in one fresh process."""
    asked = [",".join(methods), ",".join(map(str, steps))]
    command = [sys.executable, __file__, "--only", setting, *asked, "--device", device]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=600)
    found = json.loads(done.stdout.splitlines()[-1])
    return {method: {int(k): one for k, one in by.items()} for method, by in found.items()}


def measured(setting: str, device: str) -> dict[str, Any]:
    """Return every method's peak after every number of steps."""
    found = {m: {k: measure(setting, [m], [k], device)[m][k] for k in STEPS} for m in METHODS}
    some = found["unrolled"][1]
    return {
        "setting": setting,
        "device": device,
        "torch": some["torch"],
        "parameter_bytes": some["parameter_bytes"],
        "peak_bytes": {
            m: {str(k): f["peak_bytes"] for k, f in by.items()} for m, by in found.items()
        },
    }


def draw(stored: list[dict[str, Any]], path: Path) -> None:
    """Draw the stored numbers, a panel for each setting."""
    from metarun.report import plots

    labels = {
        "unrolled": ("MAML, unrolled", plots.COLOURS["maml"]),
        "adjoint": ("MAML, adjoint (default)", plots.COLOURS["clustered"]),
        "recompute": ("MAML, recompute", plots.COLOURS["transfer"]),
        "first_order": ("FO-MAML", plots.COLOURS["fomaml"]),
        "implicit": ("iMAML", plots.COLOURS["imaml"]),
    }
    with plots.sheet(10.0, 4.2, len(stored)) as (figure, panels):
        for axes, found in zip(panels, stored, strict=True):
            for (method, (label, colour)), marker in zip(
                labels.items(), plots.MARKERS, strict=False
            ):
                by = {int(k): v / 2**20 for k, v in found["peak_bytes"][method].items()}
                axes.plot(list(by), list(by.values()), color=colour, marker=marker, label=label)
            setting = SETTINGS[found["setting"]]
            axes.set_title(f"{setting.title}\n{setting.tasks}")
            axes.set_xlabel("inner steps")
            axes.set_ylabel("peak memory of one task's meta-gradient, MiB")
            plots.logarithmic(axes, "y")
            axes.set_xscale("log", base=2)
            axes.set_xticks(STEPS, [str(step) for step in STEPS])
        panels[0].legend()
        path.write_bytes(plots.render(figure, "png"))


def main() -> None:
    """Measure all, or some, or only draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs=3, metavar=("SETTING", "METHOD,...", "STEPS,..."))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--draw", action="store_true")
    told = parser.parse_args()
    if told.only:
        setting, methods, steps = told.only
        asked = [int(k) for k in steps.split(",")]
        found = {
            method: {k: peak(setting, method, k, told.device) for k in asked}
            for method in methods.split(",")
        }
        print(json.dumps(found))
        return
    store = HERE / "memory.json"
    if not told.draw:
        stored = [measured(setting, told.device) for setting in SETTINGS]
        store.write_text(json.dumps(stored, indent=1) + "\n")
    draw(json.loads(store.read_text()), HERE / "memory.png")


if __name__ == "__main__":
    main()
