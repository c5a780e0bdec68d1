"""TorchOpt: MetaSGD with its state taken back after each task, and custom_root with its CG."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torchopt
from torch import Tensor

from benchmarks.contender import Contender, by_backward, each
from benchmarks.nets import error, features, module
from benchmarks.works import Work
from metarun.tasks import Tasks

NAME, DISTRIBUTION = "torchopt", "torchopt"


def build(work: Work, values: Sequence[Tensor], tasks: Tasks) -> Contender | None:
    if work.algorithm == "imaml":
        return _implicit(work, values, tasks)
    if work.algorithm != "maml" or not work.second_order:  # MetaSGD has no first order
        return None
    net, loss, count = module(work, values), error(work), len(tasks)
    params = list(net.parameters())

    def backward() -> None:
        inner = torchopt.MetaSGD(net, lr=work.inner_lr)
        weights = torchopt.extract_state_dict(net, by="reference", detach_buffers=True)
        state = torchopt.extract_state_dict(inner, by="reference")
        for xs, ys, xq, yq in each(tasks):
            for _ in range(work.steps):
                inner.step(loss(net(xs), ys))
            (loss(net(xq), yq) / count).backward()
            torchopt.recover_state_dict(net, weights)
            torchopt.recover_state_dict(inner, state)

    return by_backward(params, backward)


def _implicit(work: Work, values: Sequence[Tensor], tasks: Tasks) -> Contender:
    body, loss, count = features(work), error(work), len(tasks)
    params = [value.detach().clone().requires_grad_() for value in values]

    def net(fast: Sequence[Tensor], x: Tensor) -> Tensor:
        return torch.nn.functional.linear(body(fast, x), fast[-2], fast[-1])

    def objective(fast: tuple[Tensor, ...], start: tuple[Tensor, ...], x: Tensor, y: Tensor):
        apart = sum((f - s).square().sum() for f, s in zip(fast, start, strict=True))
        return loss(net(fast, x), y) + 0.5 * work.proximal * apart

    solver = torchopt.linear_solve.solve_cg(maxiter=work.cg_steps, rtol=0.0, atol=0.0)
    implicit: Callable[..., Callable[..., tuple[Tensor, ...]]] = torchopt.diff.implicit.custom_root(
        torch.func.grad(objective, argnums=0), argnums=1, solve=solver
    )

    @implicit
    def solve(
        fast: tuple[Tensor, ...], start: tuple[Tensor, ...], x: Tensor, y: Tensor
    ) -> tuple[Tensor, ...]:
        with torch.enable_grad():
            for _ in range(work.steps):
                fast = tuple(f.detach().requires_grad_() for f in fast)
                gradient = torch.autograd.grad(loss(net(fast, x), y), fast)
                parts = zip(fast, gradient, start, strict=True)
                fast = tuple(
                    f.detach() - work.inner_lr * (g + work.proximal * (f.detach() - s.detach()))
                    for f, g, s in parts
                )
        return fast

    def backward() -> None:
        for xs, ys, xq, yq in each(tasks):
            fast = solve(tuple(p.detach().clone() for p in params), tuple(params), xs, ys)
            (loss(net(fast, xq), yq) / count).backward()

    return by_backward(params, backward)
