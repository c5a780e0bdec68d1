"""What is measured: someone's way to make one meta-update of a piece of work."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.works import Work
from metarun.tasks import Tasks

OUTER_LR = 0.001


class Contender(NamedTuple):
    """One implementation, built for one work, at the common start."""

    gradient: Callable[[], list[Tensor]]  # the mean meta-gradient, in the network's order
    step: Callable[[], None]  # the whole meta-update, outer Adam step included
    threads: int | None = None  # torch's threads in the calling thread; None: as many as allowed
    note: str = ""


# Work, values to start from, tasks -> a contender, or None where it cannot do the work.
Build = Callable[[Work, Sequence[Tensor], Tasks], Contender | None]


def by_backward(
    params: Sequence[Tensor], backward: Callable[[], None], note: str = ""
) -> Contender:
    """Return the contender whose `backward` leaves the mean meta-gradient in `params`' grad."""
    params = list(params)
    adam = torch.optim.Adam(params, lr=OUTER_LR)

    def gradient() -> list[Tensor]:
        adam.zero_grad()
        backward()
        found = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in params]
        adam.zero_grad()
        return found

    def step() -> None:
        adam.zero_grad()
        backward()
        adam.step()

    return Contender(gradient, step, note=note)


def each(tasks: Tasks) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Yield every task's support and query."""
    yield from zip(tasks.support_x, tasks.support_y, tasks.query_x, tasks.query_y, strict=True)
