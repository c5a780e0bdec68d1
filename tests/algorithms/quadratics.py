"""Four quadratic tasks and what closed forms say of them."""

from __future__ import annotations

import torch
from oracles import DOUBLE, Quadratic, quadratic_tasks
from torch import Tensor

from metarun.tasks import Tasks

SIZE, RATE = 6, 0.3
PROBLEM = Quadratic(SIZE)
TASKS = quadratic_tasks(4, SIZE)
THETA = PROBLEM.initial()["phi"]
EYE = torch.eye(SIZE, dtype=DOUBLE)


def gradient(algorithm, tasks: Tasks = TASKS) -> Tensor:
    meta = algorithm.init(PROBLEM.initial())
    return algorithm.meta_grad(meta, tasks, 0).gradient["params"]["phi"]


def solved(task: int, steps: int) -> tuple[Tensor, Tensor]:
    """Return phi_K and M^K of one task."""
    contraction = torch.linalg.matrix_power(EYE - RATE * TASKS.support_x[task], steps)
    target = TASKS.support_y[task]
    return target + contraction @ (THETA - target), contraction


def pull(task: int, phi: Tensor) -> Tensor:
    return TASKS.query_x[task] @ (phi - TASKS.query_y[task])


def mean(vectors) -> Tensor:
    return torch.stack(list(vectors)).mean(0)
