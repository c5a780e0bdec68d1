"""iteryne's MAML and ANIL, by functional calls of the module."""

from __future__ import annotations

from collections.abc import Sequence

from iteryne import ANIL, MAML
from torch import Tensor

from benchmarks.contender import Contender, by_backward, each
from benchmarks.nets import error, module
from benchmarks.works import Work
from metarun.tasks import Tasks

NAME, DISTRIBUTION = "iteryne", "iteryne"


def build(work: Work, values: Sequence[Tensor], tasks: Tasks) -> Contender | None:
    if work.algorithm == "imaml":
        return None
    net, loss, count = module(work, values), error(work), len(tasks)
    how = dict(inner_lr=work.inner_lr, inner_steps=work.steps, first_order=not work.second_order)
    maml = MAML(net, **how) if work.algorithm == "maml" else ANIL(net, net.head, **how)

    def backward() -> None:
        for xs, ys, xq, yq in each(tasks):
            learner = maml.clone()
            for _ in range(work.steps):
                learner.adapt(loss(learner(xs), ys))
            (loss(learner(xq), yq) / count).backward()

    return by_backward(list(net.parameters()), backward)
