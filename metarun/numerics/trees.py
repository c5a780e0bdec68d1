"""Meta-parameters as vectors: their norms, their differences, and derivatives along them."""

from __future__ import annotations

import torch
from torch import Tensor

from metarun.gradients.metagradient import MetaGrad
from metarun.numerics.chunks import map_meta
from metarun.problem import Meta
from metarun.tasks import Tasks

WIDTHS = (1e-6, 1e-8)  # of finite differences; the narrower passes more kinks, and rounds more
DIRECTIONS = 4
TINY = torch.finfo(torch.float64).tiny


def norm(tree: Meta) -> float:
    """Return the Euclidean norm over all tensors."""
    norms: list[Tensor] = [v.norm() for params in tree.values() for v in params.values()]
    return float(torch.stack(norms).norm())


def finite_difference(
    meta_grad: MetaGrad, meta: Meta, tasks: Tasks, width: float = WIDTHS[0]
) -> float:
    """Return the worst error of the gradient along itself and random directions, by its norm.

    A random direction of many dimensions sees little of an error that the gradient's own sees.
    """
    gradient = meta_grad(meta, tasks, 0).gradient
    generator = torch.Generator().manual_seed(0)
    size = max(norm(gradient), TINY)
    worst = 0.0
    drawn = [map_meta(lambda v: random_like(v, generator), gradient) for _ in range(DIRECTIONS)]
    for direction in (gradient, *drawn):
        length = max(norm(direction), TINY)

        def loss(by: float, along: Meta = direction, length: float = length) -> float:
            there = {
                group: {
                    name: value + (by / length) * along[group][name] if group in along else value
                    for name, value in params.items()
                }
                for group, params in meta.items()
            }
            return float(meta_grad(there, tasks, 0).losses.mean())

        numeric = (loss(width) - loss(-width)) / (2 * width)
        claimed = sum(
            float((direction[g][n] * v).sum()) / length
            for g, params in gradient.items()
            for n, v in params.items()
        )
        error = abs(numeric - claimed) / size
        worst = error if not error <= worst else worst  # not a number is the worst of all
    return worst


def apart(a: Meta, b: Meta) -> float:
    """Return the norm of the difference of two trees, relative to the second's."""
    difference = {g: {n: a[g][n] - v for n, v in params.items()} for g, params in b.items()}
    return norm(difference) / max(norm(b), TINY)


def random_like(value: Tensor, generator: torch.Generator) -> Tensor:
    """Return normal numbers of a tensor's shape, drawn on the CPU, where it is."""
    return torch.randn(value.shape, dtype=value.dtype, generator=generator).to(value.device)
