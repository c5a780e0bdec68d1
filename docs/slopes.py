"""Hold a meta-gradient against the slope of what it claims to differentiate.

`python docs/slopes.py key=value...` takes a run's settings (`experiment=omniglot_5w1s algo=imaml
weights=RUN`, say), goes to both sides of the start along the meta-gradient, and prints by how much
the query loss after the same inner steps falls on the way, in float64, on training tasks that no
run has seen. An inner loop with a search for its steps has kinks, so ways shorter than 0.01 show
noise. ± is 1.96 standard errors over tasks.
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor

from metarun.assemble import Experiment, assemble
from metarun.config import check, compose_job
from metarun.data.fetch import data_root
from metarun.inner import over_tasks
from metarun.problem import Meta
from metarun.tasks import Tasks

TASKS, AT_ONCE, FIRST = 32, 16, 10_000_000
LENGTHS = (0.01, 0.05)


def losses(experiment: Experiment, meta: Meta, tasks: Tasks) -> Tensor:
    """Return each task's query loss [T] after the inner steps of training."""
    steps = experiment.inner_steps
    assert steps is not None
    support = tasks.support_x, tasks.support_y
    *_, params = experiment.algorithm.adapt(meta, *support, steps)
    loss = over_tasks(experiment.problem.query_loss, shared=0, count=len(tasks))
    with torch.no_grad():
        return loss(params, tasks.support_x, tasks.query_x, tasks.query_y)


def main(words: list[str]) -> None:
    """Print the promised and the measured slopes."""
    plain = ["hardware=cpu", "hardware.dtype=float64", "hardware.precision=full"]
    experiment = assemble(check(compose_job([*words, *plain])), data_root())
    firsts = range(FIRST, FIRST + TASKS, AT_ONCE)
    batches = [experiment.tasks("train", first, AT_ONCE) for first in firsts]
    meta, meta_grad = experiment.initial(), experiment.algorithm.meta_grad
    assert meta_grad is not None
    found = [meta_grad(meta, tasks, 0).gradient["params"] for tasks in batches]
    along = {name: torch.stack([g[name] for g in found]).mean(0) for name in found[0]}
    norm = float(torch.cat([part.flatten() for part in along.values()]).norm())
    print(f"promised: {norm:.2f} a unit of length")
    for length in LENGTHS:
        sides = list[Tensor]()
        for way in (length, -length):
            moved = {n: v - way / norm * along[n] for n, v in meta["params"].items()}
            there = {**meta, "params": moved}
            sides.append(torch.cat([losses(experiment, there, tasks) for tasks in batches]))
        fall = (sides[1] - sides[0]) / (2 * length)
        print(f"at {length}: {fall.mean():.2f} ± {1.96 * fall.std() / TASKS**0.5:.2f}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
