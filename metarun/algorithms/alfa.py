"""ALFA: a small network sets each layer's rate and decay, at every inner step anew."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from metarun.algorithms.base import Count, MetaAlgorithm, Rate, adapting, plain_learner
from metarun.algorithms.parts.rates import at_step
from metarun.gradients.estimators import Estimator, estimate, is_exact, refuse_implicit
from metarun.problem import Meta, Params, Problem


def alfa(
    problem: Problem,
    *,
    inner_lr: Rate,
    steps: Count,
    estimator: Estimator,
    decay: Annotated[float, Field(ge=0)],
) -> MetaAlgorithm:
    """Learn a start, and the rule that adapts it.

    Baik et al., 2020, arXiv:2011.00209, section 3.2: a step is beta * phi - alpha * g with an
    alpha and a beta for each parameter tensor, which two layers compute from the means of every
    phi and g. As in their code, alpha = a * u and beta = 1 - b * v, where a and b are learned
    for each step and tensor, and begin at `inner_lr` and `decay * inner_lr`, and u and v are the
    network's. Here these begin at 1, whatever the state, so that with `decay` 0 training begins
    at MAML; theirs begin at random.
    """
    refuse_implicit(estimator, "the rule that adapts (algo=alfa)")
    adapted = [name for name in problem.initial() if name in problem.model.adapted]
    count = len(adapted)

    hidden = torch.nn.Linear(2 * count, 2 * count)  # drawn here, where the run's seed rules

    def init(params: Params) -> Meta:
        some = params[adapted[0]]
        network = {
            "hidden.weight": hidden.weight.detach().to(some),
            "hidden.bias": hidden.bias.detach().to(some),
            "out.weight": some.new_zeros(2 * count, 2 * count),
            "out.bias": some.new_ones(2 * count),
        }
        rates = {name: some.new_full((steps,), inner_lr) for name in adapted}
        decays = {name: some.new_full((steps,), decay * inner_lr) for name in adapted}
        return {"params": params, "rule": network, "rates_base": rates, "rates_decay": decays}

    def generated(rule: Params, params: Params, gradient: Params) -> Tensor:
        """Return every tensor's u, then every tensor's v, [2 * count]."""
        state = [tree[name].mean() for tree in (gradient, params) for name in adapted]
        hidden = F.relu(F.linear(torch.stack(state), rule["hidden.weight"], rule["hidden.bias"]))
        return F.linear(hidden, rule["out.weight"], rule["out.bias"])

    def update(meta: Meta, step: int, params: Params, gradient: Params) -> Params:
        both = generated(meta["rule"], params, gradient)
        moved: Params = {}
        for place, name in enumerate(adapted):
            alpha = both[place] * at_step(meta["rates_base"][name], step)
            beta = 1 - both[count + place] * at_step(meta["rates_decay"][name], step)
            moved[name] = beta * params[name] - alpha * gradient[name]
        return moved

    learner = plain_learner(problem, update)
    return MetaAlgorithm(
        init,
        adapting(learner),
        estimate(estimator, problem, learner, steps),
        exact=is_exact(estimator),
    )
