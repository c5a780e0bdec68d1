"""Prototypical networks: the nearest class mean, in features learned for it."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from metarun.algorithms.base import MetaAlgorithm, Rate
from metarun.algorithms.parts.heads import (
    Cosine,
    body_of,
    class_means,
    nearest_mean,
    only_classes,
    solved,
    starting_with,
    with_head,
    without_steps,
)
from metarun.gradients.adjoint import adjoint
from metarun.problem import Meta, Params, Problem


def protonet(
    problem: Problem, *, distance: Literal["euclidean", "cosine"], scale: Rate
) -> MetaAlgorithm:
    """Learn features in which a query is nearest to the mean of its own class; adapt nothing.

    Snell et al., 2017, arXiv:1703.05175, equations 1, 2 and 8: squared Euclidean distance as a
    linear head. With `cosine`, cosines with the means times a learned `scale` (Gidaris and
    Komodakis, 2018, arXiv:1804.09458, equation 5); Snell's own cosine has no scale.
    """
    ways = only_classes(problem, "protonet")
    cosine = distance == "cosine"
    if cosine:
        problem = with_head(problem, Cosine(problem.model.width, ways, 1.0))

    def init(params: Params) -> Meta:
        meta = {"params": body_of(params)}
        return meta | ({"cosine": {"scale": torch.tensor(scale)}} if cosine else {})

    def head(meta: Meta, x: Tensor, y: Tensor) -> Params:
        means = class_means(problem.features(meta["params"], x), y, ways)
        if not cosine:
            return nearest_mean(means)
        return {"head.weight": means, "head.norm": meta["cosine"]["scale"].expand(ways)}

    start = starting_with(head)
    meta_grad = adjoint(problem, without_steps(start), 0, last=0, kept=0, sets=0)
    return MetaAlgorithm(init, solved(start), meta_grad, problem=problem if cosine else None)
