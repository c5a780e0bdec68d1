"""Limited-memory BFGS for many small problems side by side."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from itertools import islice

import torch
from torch import Tensor

Objective = Callable[[Tensor], tuple[Tensor, Tensor]]  # points [T, D] -> values [T], slopes [T, D]

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
    its value any more. Tasks do not see each other: a task alone goes the same way.
    """
    point = start
    yield point
    value, slope = objective(point)
    going = slope.abs().amax(1) > tolerance
    steps: deque[tuple[Tensor, Tensor, Tensor]] = deque(maxlen=pairs)
    while bool(going.any()):
        direction = -_times_inverse(slope, steps)
        promise = _dot(direction, slope)
        length = torch.ones_like(value)
        if not steps:
            length = first * length if first else 1 / slope.norm(dim=1).clamp_min(1)
        after, new_value, new_slope, enough = _search(
            objective, point, value, direction, promise, torch.where(going, length, 0.0)
        )
        moved = (going & enough)[:, None]
        step = torch.where(moved, after - point, 0.0)
        change = torch.where(moved, new_slope - slope, 0.0)
        curved = _dot(step, change)
        steps.append((step, change, torch.where(curved > 0, 1 / curved, 0.0)))
        point, slope = torch.where(moved, after, point), torch.where(moved, new_slope, slope)
        value = torch.where(moved[:, 0], new_value, value)
        going = going & enough & (slope.abs().amax(1) > tolerance)
        yield point


def _search(
    objective: Objective,
    point: Tensor,
    value: Tensor,
    direction: Tensor,
    promise: Tensor,
    length: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Halve each step until it decreases enough; return where, value, slope and whether it did."""
    halvings = 0
    while True:
        after = point + length[:, None] * direction
        found, slope = objective(after)
        enough = found <= value + DECREASE * length * promise
        if halvings == HALVINGS or bool((enough | (length == 0)).all()):
            return after, found, slope, enough
        length = torch.where(enough, length, 0.5 * length)
        halvings += 1


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(1)


def _times_inverse(slope: Tensor, steps: deque[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
    """Apply the estimated inverse Hessian; a pair whose weight is zero counts for nothing."""
    found, shares = slope, list[Tensor]()
    for step, change, weight in reversed(steps):
        share = weight * _dot(step, found)
        found = found - share[:, None] * change
        shares.append(share)
    if steps:
        _, change, weight = steps[-1]
        scale = torch.where(weight > 0, 1 / (weight * _dot(change, change)), 1.0)
        found = scale[:, None] * found
    for (step, change, weight), share in zip(steps, reversed(shares), strict=True):
        found = found + (share - weight * _dot(change, found))[:, None] * step
    return found
