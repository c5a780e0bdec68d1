"""Measure what `hardware.precision` does to the meta-gradient and to the time of a meta-step.

`python docs/precision.py` prints a table; `--device cuda` has tf32 in it too. Distances are
relative to the meta-gradient in float64, at the start of training, where gradients are largest.
"""

from __future__ import annotations

import argparse
import time

import torch
from torch import Tensor

from metarun.assemble import assemble
from metarun.config import check, compose_job
from metarun.data.fetch import data_root
from metarun.engine.batching import settle
from metarun.numerics.chunks import in_chunks

IMAGES = ("dataset=glyphs", "outer.batch=32", "suggest.inner_lr=0.4")
DEEP = ("dataset=glyphs", "model=resnet12", "outer.batch=2")
WORKS = {
    "Conv-4, MAML, 15 queries": (*IMAGES, "algo=maml", "task.queries=15"),
    "Conv-4, MAML, 1 query": (*IMAGES, "algo=maml", "task.queries=1"),
    "Conv-4, FO-MAML, 15 queries": (*IMAGES, "algo=fomaml", "task.queries=15"),
    "Conv-4, MAML++, 5 steps, 15 queries": (*IMAGES, "algo=mamlpp", "task.queries=15"),
    "Conv-4, pre-training": (*IMAGES, "algo=transfer", "task.queries=15"),
    "ResNet-12, ANIL, 5 queries": (*DEEP, "algo=anil", "task.queries=5"),
    "sinusoid perceptron, MAML": ("experiment=sinusoid", "algo=maml"),
}
ROUNDS = 5


def measured(words: tuple[str, ...], rounds: int = ROUNDS) -> tuple[Tensor, float]:
    """Return a first meta-gradient, flat and in float64, and the median seconds it takes."""
    experiment = assemble(check(compose_job(list(words))), data_root())
    meta = experiment.initial()
    experiment, _ = settle(experiment, meta)
    meta_grad, batch = experiment.algorithm.meta_grad, experiment.batch(0)
    assert meta_grad is not None
    spent, flat = list[float](), torch.empty(0)
    for _ in range(rounds + 1):
        begun = time.perf_counter()
        chunk = experiment.tasks_at_once()
        found, _ = in_chunks(meta_grad, meta, batch, 0, chunk, experiment.workers)
        parts = [v.flatten() for params in found.gradient.values() for v in params.values()]
        flat = torch.cat(parts).double().cpu()
        spent.append(time.perf_counter() - begun)
    return flat, sorted(spent[1:])[rounds // 2] if rounds else spent[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    on = parser.parse_args().device
    hardware = "hardware=cpu" if on == "cpu" else "hardware=gpu"
    print("| meta-step | precision | distance | cosine | times as fast as full |")
    print("| --- | --- | --- | --- | --- |")
    for name, words in WORKS.items():
        words = (*words, hardware)
        exact, _ = measured((*words, "hardware.dtype=float64"), 0)
        reference = 0.0
        for precision in ("full", "bf16") if on == "cpu" else ("full", "tf32", "bf16"):
            found, seconds = measured((*words, f"hardware.precision={precision}"))
            reference = reference or seconds
            apart = float((found - exact).norm() / exact.norm())
            cosine = float(torch.cosine_similarity(found, exact, 0))
            row = f"| {name} | {precision} | {apart:.1e} | {cosine:.5f} |"
            print(row, f"{reference / seconds:.2f} |", flush=True)


if __name__ == "__main__":
    main()
