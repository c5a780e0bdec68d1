"""Transfer learning: train one network on everything, then fine-tune it on each task."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from metarun.algorithms.base import MetaAlgorithm, Rate, adapting, shared_params
from metarun.algorithms.scratch import chosen_rate_descent, rate_grid
from metarun.estimators import MetaGradient
from metarun.inner import Learner, over_tasks
from metarun.problem import Meta, Params, Problem
from metarun.tasks import Tasks


def transfer(
    problem: Problem,
    *,
    finetune: Literal["all", "last_block", "head"],
    head: Literal["zeros", "imprinted"],
    lr_grid: list[Rate],
) -> MetaAlgorithm:
    """Pre-train on all meta-training classes (or all points, for regression), then fine-tune.

    Chen et al., 2019, arXiv:1904.04232, section 3.1, with the step count and the rate chosen on
    validation tasks. A task's N-way head starts at zero, or at the class means of the support's
    features (`imprinted`, scaled to unit length; Qi et al., 2018, arXiv:1712.07136). Regression
    keeps the pre-trained head.
    """
    classify = problem.kind == "classification"

    def init(params: Params) -> Meta:
        meta = {**shared_params(params), "rates": {"inner_lr": torch.tensor(lr_grid[0])}}
        if classify:
            base = torch.nn.Linear(problem.model.width, problem.train_classes)
            meta["base"] = {n: v.detach().clone() for n, v in base.named_parameters()}
        return meta

    def meta_grad(meta: Meta, tasks: Tasks, step: int) -> MetaGradient:
        body, base = dict(meta["params"]), dict(meta.get("base", {}))

        def mean_loss(body: Params, base: Params) -> tuple[Tensor, Tensor]:
            losses = torch.stack([loss(body, base, t) for t in tasks.chunks(1)])
            return losses.mean(), losses.detach()

        gradient, (_, losses) = torch.func.grad_and_value(mean_loss, (0, 1), has_aux=True)(
            body, base
        )
        found = {"params": gradient[0]} | ({"base": gradient[1]} if base else {})
        return MetaGradient(found, losses)

    def loss(body: Params, base: Params, task: Tasks) -> Tensor:
        x, y = task.query_x[0], task.query_y[0]
        if classify:
            features = problem.features(body, x)
            return F.cross_entropy(F.linear(features, base["weight"], base["bias"]), y)
        return problem.loss(body, x, y)

    def fresh_head(meta: Meta, x: Tensor, y: Tensor) -> Params:
        params = dict(meta["params"])
        if not classify:
            return params
        weight = torch.zeros_like(params["head.weight"])
        if head == "imprinted":
            member = F.one_hot(y, weight.shape[0]).to(x.dtype)  # [S, N]
            weight = F.normalize(member.T @ F.normalize(problem.features(params, x)))
        return params | {
            "head.weight": weight,
            "head.bias": torch.zeros_like(params["head.bias"]),
        }

    def start(meta: Meta, x: Tensor, y: Tensor) -> Params:
        return over_tasks(fresh_head, shared=1, count=len(x))(meta, x, y)

    def support_loss(meta: Meta, params: Params, x: Tensor, y: Tensor) -> Tensor:
        return problem.loss(params, x, y)

    adapted = frozenset(n for n in problem.model.adapted if n in tuned_names(problem, finetune))
    learner = Learner(start, support_loss, chosen_rate_descent, adapted)
    return MetaAlgorithm(
        init, adapting(learner), meta_grad, batches="examples", tuned=rate_grid(lr_grid)
    )


def tuned_names(problem: Problem, part: Literal["all", "last_block", "head"]) -> frozenset[str]:
    """Return the parameters that fine-tuning moves: all, the head, or head and last block."""
    names = problem.initial()
    head = frozenset(name for name in names if name.startswith("head."))
    if part != "last_block":
        return head if part == "head" else frozenset(names)
    body = [name for name in names if name.startswith("body.")]
    block = body[-1].split(".")[:3]  # body.blocks.3: parameters are listed from input to output
    return head | {name for name in body if name.split(".")[:3] == block}
