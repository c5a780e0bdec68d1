"""higher's patched modules and differentiable optimiser."""

from __future__ import annotations

from collections.abc import Sequence

import higher
import torch
from torch import Tensor

from benchmarks.contender import Contender, by_backward, each
from benchmarks.nets import error, module
from benchmarks.works import Work
from metarun.tasks import Tasks

NAME, DISTRIBUTION = "higher", "higher"


def build(work: Work, values: Sequence[Tensor], tasks: Tasks) -> Contender | None:
    if work.algorithm != "maml":
        return None
    net, loss, count = module(work, values), error(work), len(tasks)
    params = list(net.parameters())
    inner = torch.optim.SGD(params, lr=work.inner_lr)

    def backward() -> None:
        for xs, ys, xq, yq in each(tasks):
            with higher.innerloop_ctx(
                net, inner, copy_initial_weights=False, track_higher_grads=work.second_order
            ) as (fast, optimizer):
                for _ in range(work.steps):
                    optimizer.step(loss(fast(xs), ys))
                final = loss(fast(xq), yq) / count
                if work.second_order:
                    final.backward()
                    continue
                # Without its graph the gradient ends at the fast weights; the caller carries it.
                for p, g in zip(
                    params, torch.autograd.grad(final, list(fast.parameters())), strict=True
                ):
                    p.grad = g if p.grad is None else p.grad + g

    return by_backward(params, backward)
