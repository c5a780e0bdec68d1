"""learn2learn's MAML on its cloned modules, from its sources (see install_peers.sh)."""

from __future__ import annotations

from collections.abc import Sequence

from learn2learn.algorithms.maml import MAML
from torch import Tensor

from benchmarks.contender import Contender, by_backward, each
from benchmarks.nets import error, module
from benchmarks.works import Work
from metarun.tasks import Tasks

NAME, DISTRIBUTION, VERSION = "learn2learn", "learn2learn", "0.2.0, from its sources"


def build(work: Work, values: Sequence[Tensor], tasks: Tasks) -> Contender | None:
    if work.algorithm == "imaml":
        return None
    net, loss, count = module(work, values), error(work), len(tasks)
    adapted = net if work.algorithm == "maml" else net.head
    maml = MAML(adapted, lr=work.inner_lr, first_order=not work.second_order)

    def backward() -> None:
        for xs, ys, xq, yq in each(tasks):
            learner = maml.clone()
            if work.algorithm == "anil":  # as its ANIL example: features once, the head adapts
                xs, xq = net.body(xs), net.body(xq)
            for _ in range(work.steps):
                learner.adapt(loss(learner(xs), ys))
            (loss(learner(xq), yq) / count).backward()

    return by_backward(list(net.parameters()), backward)
