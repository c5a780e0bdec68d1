"""Transfer learning: train one network on everything, then fine-tune it on each task."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from metarun.algorithms.base import MetaAlgorithm, RateGrid, adapting, masked_learner
from metarun.algorithms.parts.heads import class_means, unit
from metarun.algorithms.parts.masks import matched
from metarun.algorithms.scratch import chosen_rate_descent, rate_grid
from metarun.gradients.metagradient import MetaGrad, MetaGradient
from metarun.inner import over_tasks
from metarun.precision import products
from metarun.problem import Meta, Params, Problem
from metarun.tasks import Tasks

Finetuned = Literal["all", "last_block", "head"]


def transfer(
    problem: Problem,
    *,
    finetune: Finetuned,
    head: Literal["zeros", "imprinted"],
    lr_grid: RateGrid,
) -> MetaAlgorithm:
    """Pre-train on all meta-training classes (or all points, for regression), then fine-tune.

    Chen et al., 2019, arXiv:1904.04232, section 3.1, with the step count and the rate chosen on
    validation tasks. A task's N-way head starts at zero, or at the class means of the support's
    features (`imprinted`, scaled to unit length; Qi et al., 2018, arXiv:1712.07136). Regression
    keeps the pre-trained head.
    """
    ways = problem.model.outputs
    classify = problem.kind == "classification"

    def fresh(params: Params, x: Tensor, y: Tensor) -> Params:
        if not classify:
            return {}
        weight = torch.zeros_like(params["head.weight"])
        if head == "imprinted":
            weight = imprinted(problem, params, x, y, ways)
        return {"head.weight": weight, "head.bias": torch.zeros_like(params["head.bias"])}

    base = nn.Linear(problem.model.width, problem.train_classes) if classify else None
    return finetuning(problem, base, fresh, finetune, lr_grid)


def finetuning(
    problem: Problem,
    base: nn.Module | None,
    fresh: Callable[[Params, Tensor, Tensor], Params],
    part: Finetuned,
    lr_grid: list[float],
) -> MetaAlgorithm:
    """Pre-train with the head `base`, then descend from the head that `fresh` gives a task.

    The rate and the number of steps are chosen on validation tasks.
    """
    trained = pretraining(problem, base, rate_grid(lr_grid))

    def start(meta: Meta, support_x: Tensor, support_y: Tensor) -> Params:
        def one(meta: Meta, x: Tensor, y: Tensor) -> Params:
            return dict(meta["params"]) | fresh(meta["params"], x, y)

        return over_tasks(one, shared=1, count=len(support_x))(meta, support_x, support_y)

    adapted = problem.model.adapted & matched("algo.finetune", part, problem)
    learner = masked_learner(problem, chosen_rate_descent, adapted, start, first_order=True)
    return MetaAlgorithm(
        trained.init,
        adapting(learner),
        trained.meta_grad,
        batches="examples",
        tuned=rate_grid(lr_grid),
        problem=problem,
    )


class Pretraining(NamedTuple):
    """The two functions of a MetaAlgorithm that training on labelled examples needs."""

    init: Callable[[Params], Meta]
    meta_grad: MetaGrad


def pretraining(
    problem: Problem,
    base: nn.Module | None,
    rates: Mapping[str, tuple[float, ...]],
    *,
    mean_rate: float | None = None,
) -> Pretraining:
    """Train the body under the head `base` that tells all training classes apart.

    Without one, all of the model is trained as it is (regression). `rates` go into meta["rates"]
    at their first values, for validation to choose. With `mean_rate`, meta["mean"]["features"]
    [W] follows the mean of the features of what is trained on, that fraction of the way a step.
    """

    def init(params: Params) -> Meta:
        meta = {"params": params}
        meta["rates"] = {name: torch.tensor(values[0]) for name, values in rates.items()}
        if base is not None:
            meta["base"] = {n: v.detach().clone() for n, v in base.named_parameters()}
        if mean_rate is not None:
            meta["mean"] = {"features": torch.zeros(problem.model.width)}
        return meta

    def loss(params: Params, head: Params, task: Tasks) -> tuple[Tensor, Tensor]:
        x, y = task.query_x[0], task.query_y[0]
        if base is None:
            found = problem.loss(params, x, y)
            return found, found.detach()
        features = problem.features(params, x)
        logits: Tensor = functional_call(base, head, (features,))
        return problem.error(logits, y), features.detach().mean(0)

    def meta_grad(meta: Meta, tasks: Tasks, step: int) -> MetaGradient:
        def mean_loss(params: Params, head: Params) -> tuple[Tensor, tuple[Tensor, Tensor]]:
            found = [loss(params, head, task) for task in tasks.chunks(1)]
            losses = torch.stack([one for one, _ in found])
            return losses.mean(), (losses.detach(), torch.stack([m for _, m in found]).mean(0))

        head = dict(meta.get("base", {}))
        differentiated = torch.func.grad_and_value(mean_loss, (0, 1), has_aux=True)
        with products(problem.precision, tasks.query_x.device.type):
            found, (_, (losses, mean)) = differentiated(dict(meta["params"]), head)
        gradient = {"params": found[0]} | ({"base": found[1]} if head else {})
        if mean_rate is None:
            return MetaGradient(gradient, losses)
        apart = mean - meta["mean"]["features"]
        return MetaGradient(gradient, losses, shift={"mean": {"features": mean_rate * apart}})

    return Pretraining(init, meta_grad)


def imprinted(problem: Problem, params: Params, x: Tensor, y: Tensor, ways: int) -> Tensor:
    """Return the directions [N, W] of the class means of unit features (arXiv:1712.07136)."""
    return unit(class_means(unit(problem.features(params, x)), y, ways))
