"""Several models that answer together, each as much as it weighs.

Letters in shapes: T tasks, M models.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from metarun.problem import Params, Problem

WEIGHT = "mixture"  # the entry of a task's parameters that says how much each model counts


@dataclass(frozen=True)
class Mixed(Problem):
    """Several models' parameters, each [M, ...], and what their answers weigh, [M].

    The loss is the sum over the models, so that each follows its own gradient.
    """

    single: Any = None  # the problem of one model

    def loss(self, params: Params, x: Tensor, y: Tensor) -> Tensor:
        return over_starts(lambda one: self.single.loss(one, x, y), params).sum()

    def predict(self, params: Params, support_x: Tensor, query_x: Tensor) -> Tensor:
        outputs = over_starts(lambda one: self.single.predict(one, support_x, query_x), params)
        weight = params[WEIGHT].view(-1, 1, 1)
        if self.kind == "classification":  # probabilities are averaged
            return torch.logsumexp(weight.log() + outputs.log_softmax(2), 0)
        return (weight * outputs).sum(0)

    def query_loss(
        self, params: Params, support_x: Tensor, query_x: Tensor, query_y: Tensor
    ) -> Tensor:
        def one(params: Params) -> Tensor:
            return self.single.query_loss(params, support_x, query_x, query_y)

        return (params[WEIGHT] * over_starts(one, params)).sum()


def over_starts(function: Callable[[Params], Tensor], params: Params) -> Tensor:
    """Apply a function of one model's parameters to each of several, [M, ...]; one runs plainly."""
    stacked = {name: value for name, value in params.items() if name != WEIGHT}
    if len(next(iter(stacked.values()))) == 1:
        return function({name: value[0] for name, value in stacked.items()})[None]
    return torch.vmap(function)(stacked)


def seated(stacked: Params, weight: Tensor) -> Params:
    """Return the starts [T, M, ...] of tasks for which they count so much, [T, M].

    The task's first start sits in the place of one that counts nothing: that may have diverged,
    and nothing times what is not a number is none either, in answers and in gradients.
    """
    absent, first = weight == 0, weight.argmax(1)

    def placed(value: Tensor) -> Tensor:
        ones = (1,) * (value.dim() - 1)
        return torch.where(absent.view(*absent.shape, *ones), value.detach()[first, None], value)

    return {name: placed(value) for name, value in stacked.items()}
