"""What a long inner loop does to the meta-gradient: its size, its direction, the curvature.

The exact meta-gradient is the query gradient v times a product of (1 - rate * Hessian), one factor
a step: directions in which rate * curvature exceeds 2, or is negative, grow with every step.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from metarun.algorithms.base import MetaAlgorithm
from metarun.algorithms.parts.masks import moved
from metarun.errors import ConfigError
from metarun.gradients.metagradient import MetaGradient, pull_back, query_losses
from metarun.inner import leaves, over_tasks
from metarun.numerics.chunks import in_chunks
from metarun.problem import Meta, Params, Problem
from metarun.tasks import Tasks

POWER_STEPS = 10


def observed(
    problem: Problem, algorithm: MetaAlgorithm, values: Mapping[str, Any], name: str
) -> MetaAlgorithm:
    """Return the algorithm whose every meta-gradient comes with figures of its inner loop.

    A task's `gradient_ratio` is the norm of its meta-gradient over that of v, its
    `cosine_first_order` their cosine, both over the task's start; `curvature_start` and
    `curvature_end` are the inner rate times the eigenvalue of the support loss's Hessian, over
    what is adapted, that is largest in size, by power iterations, before and after the inner loop.
    The algorithm's settings `values` give the rate, the steps and the mask of what is adapted.
    The gradient itself stays as it was; tasks are taken one at a time.

    Raises:
        ConfigError: nothing is trained by an inner loop of such settings.
    """
    meta_grad = algorithm.meta_grad
    if meta_grad is None or not {"inner_lr", "steps"} <= values.keys():
        raise ConfigError(
            f"outer.diagnose: algo={name} has no training loop with algo.inner_lr and algo.steps "
            "to look into; leave it false"
        )
    inner_lr, steps = float(values["inner_lr"]), int(values["steps"])
    adapted = moved("algo.adapt", values.get("adapt", "all"), problem)

    def one(meta: Meta, task: Tasks, step: int) -> MetaGradient:
        found = meta_grad(meta, task, step)
        shared = found.gradient.get("starts") or found.gradient.get("params", {})
        figures = look(problem, algorithm, meta, task, steps, shared, adapted)
        for place in ("start", "end"):
            figures[f"curvature_{place}"] = inner_lr * figures[f"curvature_{place}"]
        return found._replace(figures={**found.figures, **figures})

    def all_of(meta: Meta, tasks: Tasks, step: int) -> MetaGradient:
        return in_chunks(one, meta, tasks, step, 1)[0]

    return algorithm._replace(meta_grad=all_of)


def look(
    problem: Problem,
    algorithm: MetaAlgorithm,
    meta: Meta,
    task: Tasks,
    steps: int,
    gradient: Params,
    adapted: frozenset[str],
) -> dict[str, Tensor]:
    """Return the figures of one task, each [1], whose meta-gradient on the start is given.

    `adapted` names what its inner loop moves. Of several starts, it is the one that the gradient
    pulls at; where that pulls at several, their sum is the pull on what the task began with.
    """
    adapt = algorithm.adapt if algorithm.oracle is None else algorithm.oracle(task.mode)
    path = list(adapt(meta, task.support_x, task.support_y, steps))
    begun = path[0]
    if any(n in begun and v.dim() == begun[n].dim() for n, v in gradient.items()):  # [M, ...]
        own = torch.stack([v.flatten(1).any(1) for v in gradient.values()]).any(0).nonzero()
        if algorithm.each is not None and len(own) == 1:
            each = algorithm.each(meta, task.support_x, task.support_y, steps)
            path = list(each[int(own)])
        gradient = {name: value.sum(0) for name, value in gradient.items()}
    end = leaves(path[-1])
    with torch.enable_grad():
        losses = query_losses(problem, end, task)
        pull = pull_back([losses], list(end.values()), [torch.ones_like(losses)])
    first_order = {n: p[0] for n, p in zip(end, pull, strict=True) if p is not None}
    shared = [n for n, p in first_order.items() if n in gradient and gradient[n].shape == p.shape]
    figures: dict[str, Tensor] = {}
    if shared:
        found, first = (_flat([tree[n] for n in shared]) for tree in (gradient, first_order))
        figures["gradient_ratio"] = (found.norm() / first.norm())[None]
        figures["cosine_first_order"] = (found @ first / (found.norm() * first.norm()))[None]
    for place, params in (("start", path[0]), ("end", path[-1])):
        figures[f"curvature_{place}"] = largest_curvature(problem, params, adapted, task)[None]
    return figures


def largest_curvature(
    problem: Problem,
    params: Params,
    adapted: frozenset[str],
    task: Tasks,
    iterations: int = POWER_STEPS,
) -> Tensor:
    """Return the support Hessian's eigenvalue of largest size over what is adapted, a scalar.

    The Rayleigh quotient after power iterations from a fixed start; it errs towards zero.
    """
    there = leaves(params)
    names = [n for n in there if n in adapted]
    wanted = [there[n] for n in names]
    with torch.enable_grad():
        loss = over_tasks(problem.loss, shared=0, count=1)(there, task.support_x, task.support_y)
        gradient = torch.autograd.grad(loss.sum(), wanted, create_graph=True)
    generator = torch.Generator().manual_seed(0)
    vector = [torch.randn(w.shape, generator=generator, dtype=torch.float64).to(w) for w in wanted]
    quotient = torch.zeros_like(loss.sum())
    for _ in range(iterations):
        size = _flat(vector).norm()
        vector = [v / size for v in vector]
        image = list(torch.autograd.grad(gradient, wanted, vector, retain_graph=True))
        quotient = _flat(vector) @ _flat(image)
        if not float(quotient.abs()) > 0:  # flat, or not finite
            break
        vector = image
    return quotient.detach()


def _flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])
