"""Seconds, floating-point operations, and how fast the machine can do any."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from statistics import median

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.contender import Contender
from benchmarks.nets import initial
from benchmarks.peers import plain
from benchmarks.works import Work, batch

SLICE = 0.2  # seconds of repetition a contender a round, where one step is shorter
MOST_REPEATS = 50


def seconds(contender: Contender, threads: int, device: torch.device) -> float:
    """Return how long one whole meta-update takes."""
    wanted = contender.threads or threads
    if torch.get_num_threads() != wanted:
        torch.set_num_threads(wanted)
    synchronise(device)
    begun = time.perf_counter()
    contender.step()
    synchronise(device)
    return time.perf_counter() - begun


def synchronise(device: torch.device) -> None:
    """Wait for a GPU; a CPU is always done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def repeats(contender: Contender, threads: int, device: torch.device) -> int:
    """Warm up with two steps, one where it is long; return how many fit into a slice."""
    took = seconds(contender, threads, device)
    if took < 10 * SLICE:
        took = seconds(contender, threads, device)
    return max(1, min(MOST_REPEATS, round(SLICE / took)))


def interleaved(
    contenders: Mapping[str, Contender], rounds: int, threads: int, device: torch.device
) -> dict[str, list[float]]:
    """Return everyone's median seconds a round; each round has its own order."""
    order, shuffle = list(contenders), random.Random(0).shuffle
    counts = {name: repeats(one, threads, device) for name, one in contenders.items()}
    found: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        shuffle(order)
        for name in order:
            took = [seconds(contenders[name], threads, device) for _ in range(counts[name])]
            found[name].append(median(took))
    return found


def flops(work: Work) -> int:
    """Count the operations of one meta-update's convolutions and matrix products, as a plain loop.

    A multiplication and an addition are two; every task has the same shapes, so one counts for
    all. Features that no inner step changes count once.
    """
    device = torch.device("cpu")
    tasks = batch(work, torch.float32, device)[:1]
    contender = plain.build(work, initial(work, torch.float32, device), tasks)
    with FlopCounterMode(display=False) as counter:
        contender.gradient()
    return counter.get_total_flops() * work.tasks


def best_rate(threads: int, device: torch.device) -> float:
    """Return the most float32 operations a second seen in this process.

    Tried are a large matrix product, and the 3x3 convolution of 64 channels on 75 images.
    """
    torch.set_num_threads(threads)
    side, images = (1024, 75) if device.type == "cpu" else (8192, 75 * 32)
    a, b = (torch.randn(side, side, device=device) for _ in range(2))
    x = torch.randn(images, 64, 14, 14, device=device).contiguous(memory_format=torch.channels_last)
    w = torch.randn(64, 64, 3, 3, device=device).contiguous(memory_format=torch.channels_last)
    tried: list[tuple[Callable[[], object], float]] = [
        (lambda: a @ b, 2.0 * side**3),
        (lambda: torch.conv2d(x, w, padding=1), 2.0 * images * 14 * 14 * 64 * 64 * 9),
    ]
    best = 0.0
    with torch.no_grad():
        for function, operations in tried:
            for _ in range(12):
                synchronise(device)
                begun = time.perf_counter()
                function()
                synchronise(device)
                best = max(best, operations / (time.perf_counter() - begun))
    return best
