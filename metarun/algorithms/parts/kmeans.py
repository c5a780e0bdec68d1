"""k-means, small and repeatable: the same rows give the same clusters.

Letters in shapes: n rows, d columns, M clusters.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

TRIES = 10  # beginnings, of which the best ending is kept
ROUNDS = 100  # at most, a try


class Clusters(NamedTuple):
    """Where the clusters are and who belongs to them."""

    centres: Tensor  # [M, d]
    labels: Tensor  # [n]; every cluster has a member
    spread: float  # summed squared distance of the rows from their centres


def kmeans(rows: Tensor, clusters: int, seed: int = 0) -> Clusters:
    """Cluster rows [n, d], n >= clusters, by Lloyd's rounds from k-means++ beginnings.

    Arthur and Vassilvitskii, 2007. A cluster that runs empty takes the row farthest from its
    centre.
    """
    generator = torch.Generator().manual_seed(seed)
    tries = [_lloyd(rows, _begin(rows, clusters, generator)) for _ in range(TRIES)]
    return min(tries, key=lambda found: found.spread)


def _begin(rows: Tensor, clusters: int, generator: torch.Generator) -> Tensor:
    """Draw rows one by one, each with a chance in proportion to its squared distance."""
    apart = torch.ones(len(rows), dtype=torch.float64)
    chosen: list[int] = []
    for _ in range(clusters):
        chances = apart.cumsum(0)
        draw = torch.rand((), dtype=torch.float64, generator=generator) * chances[-1]
        chosen.append(min(int(torch.searchsorted(chances, draw, right=True)), len(rows) - 1))
        near = (rows - rows[chosen[-1]]).square().sum(1).double().cpu()
        apart = near if len(chosen) == 1 else torch.minimum(apart, near)
    return rows[torch.tensor(chosen, device=rows.device)]


def _lloyd(rows: Tensor, centres: Tensor) -> Clusters:
    labels, nearest = _nearest(rows, centres)
    for _ in range(ROUNDS):
        centres = torch.stack([rows[labels == m].mean(0) for m in range(len(centres))])
        before, (labels, nearest) = labels, _nearest(rows, centres)
        if torch.equal(before, labels):
            break
    return Clusters(centres, labels, float(nearest.double().square().sum()))


def _nearest(rows: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    nearest, labels = torch.cdist(rows, centres).min(1)
    for cluster in range(len(centres)):
        if not bool((labels == cluster).any()):
            single = labels.bincount(minlength=len(centres))[labels] == 1
            lost = nearest.masked_fill(single, -1.0).argmax()  # not from a cluster of one
            labels[lost], nearest[lost] = cluster, 0.0
    return labels, nearest
