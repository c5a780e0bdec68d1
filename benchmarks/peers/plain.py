"""The loop over tasks that anyone would write with autograd: the yardstick, and the oracle."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from benchmarks.contender import Contender, by_backward, each
from benchmarks.nets import error, features
from benchmarks.works import Work
from metarun.tasks import Tasks

NAME, DISTRIBUTION = "plain loop", "torch"


def build(work: Work, values: Sequence[Tensor], tasks: Tasks) -> Contender:
    """Return a backward pass a task, on functions of lists of tensors: no module is called."""
    params = [value.detach().clone().requires_grad_() for value in values]
    one = {"maml": _maml, "anil": _anil, "imaml": _imaml}[work.algorithm](work, params)

    def backward() -> None:
        for task in each(tasks):
            one(task, len(tasks))

    return by_backward(params, backward)


Task = tuple[Tensor, Tensor, Tensor, Tensor]


def _maml(work: Work, params: list[Tensor]) -> Callable[[Task, int], None]:
    body, loss = features(work), error(work)

    def net(values: Sequence[Tensor], x: Tensor) -> Tensor:
        return torch.nn.functional.linear(body(values, x), values[-2], values[-1])

    def one(task: Task, count: int) -> None:
        xs, ys, xq, yq = task
        fast = params
        for _ in range(work.steps):
            inner = loss(net(fast, xs), ys)
            gradient = torch.autograd.grad(inner, fast, create_graph=work.second_order)
            fast = [p - work.inner_lr * g for p, g in zip(fast, gradient, strict=True)]
        (loss(net(fast, xq), yq) / count).backward()

    return one


def _anil(work: Work, params: list[Tensor]) -> Callable[[Task, int], None]:
    body, loss, linear = features(work), error(work), torch.nn.functional.linear

    def one(task: Task, count: int) -> None:
        xs, ys, xq, yq = task
        seen, (weight, bias) = body(params, xs), params[-2:]
        for _ in range(work.steps):
            inner = loss(linear(seen, weight, bias), ys)
            dw, db = torch.autograd.grad(inner, (weight, bias), create_graph=work.second_order)
            weight, bias = weight - work.inner_lr * dw, bias - work.inner_lr * db
        (loss(linear(body(params, xq), weight, bias), yq) / count).backward()

    return one


def _imaml(work: Work, params: list[Tensor]) -> Callable[[Task, int], None]:
    """Rajeswaran et al., 2019, arXiv:1909.04630; one kept graph for all Hessian products."""
    body, loss = features(work), error(work)

    def net(values: Sequence[Tensor], x: Tensor) -> Tensor:
        return torch.nn.functional.linear(body(values, x), values[-2], values[-1])

    def pull(fast: list[Tensor], x: Tensor, y: Tensor, graph: bool) -> list[Tensor]:
        found = torch.autograd.grad(loss(net(fast, x), y), fast, create_graph=graph)
        apart = zip(found, fast, params, strict=True)
        return [g + work.proximal * (f - p.detach()) for g, f, p in apart]

    def one(task: Task, count: int) -> None:
        xs, ys, xq, yq = task
        fast = [p.detach().requires_grad_() for p in params]
        for _ in range(work.steps):
            gradient = pull(fast, xs, ys, False)
            fast = [
                (f - work.inner_lr * g).detach().requires_grad_()
                for f, g in zip(fast, gradient, strict=True)
            ]
        target = torch.autograd.grad(loss(net(fast, xq), yq), fast)
        gradient = pull(fast, xs, ys, True)

        def product(vector: list[Tensor]) -> list[Tensor]:
            return list(torch.autograd.grad(gradient, fast, vector, retain_graph=True))

        solved = _conjugate_gradient(product, list(target), work.cg_steps)
        for p, s in zip(params, solved, strict=True):
            part = s * (work.proximal / count)
            p.grad = part if p.grad is None else p.grad + part

    return one


def _conjugate_gradient(
    product: Callable[[list[Tensor]], list[Tensor]], target: list[Tensor], steps: int
) -> list[Tensor]:
    def dot(a: list[Tensor], b: list[Tensor]) -> Tensor:
        return torch.stack([(x * y).sum() for x, y in zip(a, b, strict=True)]).sum()

    x, r, p = [torch.zeros_like(t) for t in target], target, target
    size = dot(r, r)
    for _ in range(steps):
        image = product(p)
        length = size / dot(p, image)
        x = [a + length * b for a, b in zip(x, p, strict=True)]
        r = [a - length * b for a, b in zip(r, image, strict=True)]
        new = dot(r, r)
        p = [a + new / size * b for a, b in zip(r, p, strict=True)]
        size = new
    return x
