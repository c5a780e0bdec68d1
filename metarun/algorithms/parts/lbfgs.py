"""Limited-memory BFGS for many small problems side by side."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from itertools import islice

import torch
from torch import Tensor

Rows = slice | Tensor  # of which tasks: EVERY, or R numbers of tasks
Objective = Callable[[Tensor, Rows], tuple[Tensor, Tensor]]
# points [R, D], whose tasks -> values [R], slopes [R, D], which are the caller's to write into

EVERY = slice(None)
PAIRS = 10  # past steps that the curvature is estimated from
HALVINGS = 30
DECREASE = 1e-4  # share of the slope's promise that a step must keep (Armijo)


def minimise(objective: Objective, start: Tensor, iterations: int, tolerance: float) -> Tensor:
    """Return the minima [T, D] of smooth strictly convex functions, one a task; see `iterates`."""
    return deque(islice(iterates(objective, start, tolerance), iterations + 1), maxlen=1).pop()


def iterates(
    objective: Objective,
    start: Tensor,
    tolerance: float,
    *,
    pairs: int = PAIRS,
    first: float | None = None,
) -> Iterator[Tensor]:
    """Yield points [T, D] that approach minima, the start first, until every task has stopped.

    Nocedal and Wright, 2006, algorithm 7.4, with a step that is halved until it decreases enough,
    so that no value ever rises; the first step is `first` times the slope, or of length 1 at
    most. A task stops when every entry of its slope is at most `tolerance`, or no step decreases
    its value any more; where that is no number at the start, neither is any later point. Tasks do
    not see each other: a task alone goes the same way.
    """
    point = start
    yield point
    value, slope = objective(point, EVERY)
    going = slope.abs().amax(1) > tolerance
    bad = ~(value + slope.sum(1)).isfinite()
    if bool(bad.any()):
        going, point = going & ~bad, torch.where(bad[:, None], torch.nan, point)
        if not bool(going.any()):
            yield point
    steps: deque[tuple[Tensor, Tensor, Tensor]] = deque(maxlen=pairs)
    while bool(going.any()):
        direction = _times_inverse(slope, steps).neg_()
        promise = _dot(direction, slope)
        length = torch.ones_like(value)
        if not steps:
            length = first * length if first else 1 / slope.norm(dim=1).clamp_min(1)
        length = torch.where(going, length, 0.0)
        after, new_value, new_slope, length = _search(
            objective, point, value, direction, promise, length
        )
        moved = length > 0
        if not bool(moved.all()):  # where a task stays, so does everything about it
            rows = moved[:, None]
            after, new_slope = torch.where(rows, after, point), torch.where(rows, new_slope, slope)
            new_value = torch.where(moved, new_value, value)
        step, change = direction.mul_(length[:, None]), new_slope - slope
        curved = _dot(step, change)
        steps.append((step, change, torch.where(curved > 0, 1 / curved, 0.0)))
        point, value, slope = after, new_value, new_slope
        going = moved & (slope.abs().amax(1) > tolerance)
        yield point


def _search(
    objective: Objective,
    point: Tensor,
    value: Tensor,
    direction: Tensor,
    promise: Tensor,
    length: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Halve each length until its step decreases enough, or to 0; return where, value, slope, it.

    What is not finite never decreases enough. Only tasks whose step was too long are asked again,
    so that one that needs ten halvings costs ten, not ten for each that came along.
    """
    after = torch.addcmul(point, direction, length[:, None])
    found, slope = objective(after, EVERY)
    bound = value + DECREASE * length * promise
    rows = (~((found <= bound) | (length == 0))).nonzero()[:, 0]
    for _ in range(HALVINGS):
        if not len(rows):
            break
        length[rows] *= 0.5
        there = torch.addcmul(point[rows], direction[rows], length[rows, None])
        after[rows], (found[rows], slope[rows]) = there, objective(there, rows)
        bound = value[rows] + DECREASE * length[rows] * promise[rows]
        rows = rows[~(found[rows] <= bound)]
    length[rows] = 0.0
    return after, found, slope, length


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(1)


def _times_inverse(slope: Tensor, steps: deque[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
    """Apply the estimated inverse Hessian; a pair whose weight is zero counts for nothing."""
    found, shares = slope.clone(), list[Tensor]()
    for step, change, weight in reversed(steps):
        share = weight * _dot(step, found)
        found.addcmul_(change, share[:, None], value=-1)
        shares.append(share)
    if steps:
        _, change, weight = steps[-1]
        scale = torch.where(weight > 0, 1 / (weight * _dot(change, change)), 1.0)
        found.mul_(scale[:, None])
    for (step, change, weight), share in zip(steps, reversed(shares), strict=True):
        found.addcmul_(step, (share - weight * _dot(change, found))[:, None])
    return found
