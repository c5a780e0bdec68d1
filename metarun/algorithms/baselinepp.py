"""Baseline++: transfer learning with a head of cosines, in pre-training and on each task."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from metarun.algorithms.base import MetaAlgorithm, Rate, RateGrid
from metarun.algorithms.parts.heads import Cosine, only_classes, with_head
from metarun.algorithms.transfer import Finetuned, finetuning, imprinted
from metarun.problem import Params, Problem

MANY = 200  # classes from which on the cosines of the head are scaled by `many_scale`


def baselinepp(
    problem: Problem,
    *,
    finetune: Finetuned,
    head: Literal["random", "imprinted"],
    scale: Rate,
    many_scale: Rate,
    lr_grid: RateGrid,
) -> MetaAlgorithm:
    """Pre-train under a cosine head, then fine-tune a new one on each task.

    Chen et al., 2019, arXiv:1904.04232, section 3.2; `many_scale` is for a head of more than 200
    classes, as in their code. A task's head starts at random, the same for all tasks, or at the
    class means of the support's features (`imprinted`; Qi et al., 2018, arXiv:1712.07136).
    """
    ways, classes = only_classes(problem, "baselinepp"), problem.train_classes
    problem = with_head(problem, Cosine(problem.model.width, ways, _scale(ways, scale, many_scale)))
    base = Cosine(problem.model.width, classes, _scale(classes, scale, many_scale))

    def fresh(params: Params, x: Tensor, y: Tensor) -> Params:
        if head == "random":
            return {}  # pre-training leaves the head of the model as it was drawn
        weight = imprinted(problem, params, x, y, ways)
        return {"head.weight": weight, "head.norm": torch.ones_like(params["head.norm"])}

    return finetuning(problem, base, fresh, finetune, lr_grid)


def _scale(classes: int, few: float, many: float) -> float:
    return few if classes <= MANY else many
