"""The meta-gradient by evolution strategies: from values of the loss alone."""

from __future__ import annotations

from collections import deque
from zlib import crc32

import torch
from torch import Tensor

from metarun.gradients.metagradient import MetaGrad, MetaGradient, MetaSum, query_losses
from metarun.inner import Learner, adapt
from metarun.problem import Meta, Params, Problem
from metarun.tasks import Tasks


def evolution(
    problem: Problem, learner: Learner, steps: int, *, pairs: int, sigma: float
) -> MetaGrad:
    """Estimate the gradient of the loss smoothed by noise of deviation `sigma`, by values alone.

    The mean over antithetic pairs of noise * (J(meta + sigma noise) - J(meta - sigma noise)) /
    (2 sigma), without fitness shaping, hence unbiased: Song et al., 2020, arXiv:1910.01215,
    algorithm 3. Both of a pair see the same task. Each task has noise of its own, seeded by the
    meta-step and by its support, which the run's seed and the task's number decide: it is the
    same in any chunk and any order. The relative error is about sqrt(numbers / (tasks * pairs)).
    """

    def objective(meta: Meta, task: Tasks, place: int) -> Tensor:
        def start(meta: Meta, x: Tensor, y: Tensor) -> Params:
            # One that was chosen for the whole batch, and handed in, is of all its tasks.
            first = learner.start(meta, x, y).items()
            return {n: v if len(v) == 1 else v[place : place + 1] for n, v in first}

        alone, support = learner._replace(start=start), (task.support_x, task.support_y)
        params = deque(adapt(alone, meta, *support, steps), maxlen=1)[0]
        with torch.no_grad():
            return query_losses(problem, params, task)

    def meta_grad(meta: Meta, tasks: Tasks, step: int) -> MetaGradient:
        meta = {group: {n: v.detach() for n, v in params.items()} for group, params in meta.items()}
        total, losses = MetaSum(meta), list[Tensor]()
        for place, task in enumerate(tasks.chunks(1)):
            losses.append(objective(meta, task, place))
            generator = torch.Generator().manual_seed(_task_seed(task, step))
            for _ in range(pairs):
                noise = [_normal(leaf, generator) for leaf in total.leaves]
                pair = [total.moved(noise, by) for by in (sigma, -sigma)]
                up, down = (objective(there, task, place) for there in pair)
                weight = (up - down) / (2 * sigma * pairs * len(tasks))
                total.add([weight * part for part in noise])
        return MetaGradient(total.gradient(), torch.cat(losses))

    return meta_grad


def _task_seed(task: Tasks, step: int) -> int:
    seed = crc32(str(step).encode())
    for tensor in (task.support_x, task.support_y):
        seed = crc32(tensor.double().cpu().contiguous().numpy().tobytes(), seed)
    return seed


def _normal(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, dtype=torch.float64, generator=generator).to(like)
