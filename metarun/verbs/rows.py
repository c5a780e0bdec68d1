"""One check of `metarun verify` and what it found, and how close is close enough."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from metarun.gradients.metagradient import MetaGrad
from metarun.numerics.chunks import map_meta
from metarun.numerics.trees import WIDTHS, apart, finite_difference, random_like
from metarun.problem import Meta
from metarun.tasks import Tasks

EXACT = 1e-5  # relative error below which a gradient is the true one; kinks leave some
KINK = 1e-2  # no kink makes a larger error likely
SAME = 1e-9  # relative difference of two ways to compute the same in float64
ROUNDED = 4  # machine epsilons, by which meta-parameters are shaken
DRAWS = 3  # of such shaking; the largest of them is off by less than the factor below
CARRIED = 10
State = Literal["ok", "warn", "fail", "skip"]


class Row(NamedTuple):
    """One check and what it found."""

    name: str
    state: State
    detail: str


def equal_row(name: str, found: float, allowed: float = SAME, *, before: str = "") -> Row:
    """Return the row of two things that ought to be equal, by their relative difference."""
    state = "ok" if found <= allowed else "fail"
    return Row(name, state, f"{before}relative difference {found:.1e}")


def exact_row(name: str, meta_grad: MetaGrad, meta: Meta, tasks: Tasks, demand: str) -> Row:
    """Return the row of a meta-gradient beside finite differences of its losses.

    Of the first width that finds no error: the wider ones may cross a kink, and the sharper the
    loss, the more likely.
    """
    error = float("inf")
    for width in WIDTHS:
        found = finite_difference(meta_grad, meta, tasks, width)
        error = min(error, found) if found == found else found  # no number, and it stays none
        if error < EXACT:
            return Row(name, "ok", f"exact: relative error {error:.1e}")
    mild = error <= KINK
    why = "a kink of ReLU or max-pool?" if mild else "is something detached?"
    return Row(name, "warn" if mild else "fail", f"{demand}: relative error {error:.1e}; {why}")


def same_gradient(name: str, found: float, meta_grad: MetaGrad, meta: Meta, tasks: Tasks) -> Row:
    """Return the row of one meta-gradient by two ways, which rounding may have moved apart.

    Adam's division by a gradient that ought to be zero, or a search for the lengths of steps,
    carries a rounding far: where roundings of the meta-parameters do as much, nothing is wrong.
    """
    row = equal_row(name, found)
    if row.state == "ok" or not found <= KINK:
        return row
    carried = moved_by_rounding(meta_grad, meta, tasks)
    if found <= CARRIED * carried:
        return Row(name, "warn", f"{row.detail}; rounding alone carries as far, {carried:.1e}")
    return row


def moved_by_rounding(meta_grad: MetaGrad, meta: Meta, tasks: Tasks) -> float:
    """Return how far roundings of the meta-parameters move the meta-gradient, relative to it."""
    plain, generator = meta_grad(meta, tasks, 0).gradient, torch.Generator().manual_seed(0)

    def rounded(value: Tensor) -> Tensor:
        return value * (1 + ROUNDED * torch.finfo(value.dtype).eps * random_like(value, generator))

    moved = [meta_grad(map_meta(rounded, meta), tasks, 0).gradient for _ in range(DRAWS)]
    return max(apart(gradient, plain) for gradient in moved)
