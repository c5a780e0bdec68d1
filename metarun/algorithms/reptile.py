"""Reptile: move the start towards where ordinary training on each task ends.

Letters in shapes: T tasks, D rows of a task's data.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from metarun.algorithms.base import Count, MetaAlgorithm, Rate, plain_start
from metarun.gradients.metagradient import MetaGradient
from metarun.inner import leaves, over_tasks
from metarun.precision import refuse_rounding
from metarun.problem import Meta, Params, Problem
from metarun.tasks import Tasks

EPS = 1e-8  # of Adam


class _Point(NamedTuple):
    params: Params  # [T, ...]
    squares: Params  # [T, ...] running means of squared gradients; empty for plain descent


def reptile(
    problem: Problem,
    *,
    optimizer: Literal["adam", "adam_fresh", "sgd"],
    inner_lr: Rate,
    steps: Count,
    batch: Count,
    beta2: Annotated[float, Field(gt=0, lt=1)],
) -> MetaAlgorithm:
    """Learn a start by the direction from it to the parameters after training on a task.

    Nichol et al., 2018, arXiv:1803.02999, algorithm 2. A task's data are its support and its
    query together, for Reptile has no query; they are walked through in mini-batches of `batch`
    rows, shuffled anew each pass and meta-step; adaptation sees the support alone. The inner
    optimiser is plain descent or Adam without momentum, whose squared gradients start at zero
    for each task (`adam_fresh`) or, as the authors' code has it, are carried from task to task
    (`adam`): here as the mean over a meta-step's tasks, so that their order does not matter. The
    losses are of all of a task's data after training on it.
    """
    refuse_rounding(problem.precision, "algo=reptile")

    def init(params: Params) -> Meta:
        meta: Meta = {"params": params}
        if optimizer == "adam":
            meta["squares"] = {n: torch.zeros_like(v) for n, v in params.items()}
            meta["clock"] = {"steps": torch.zeros(())}
        return meta

    def path(meta: Meta, x: Tensor, y: Tensor, batches: Iterable[Tensor]) -> Iterator[_Point]:
        count = len(x)
        params = {n: v.detach() for n, v in plain_start(meta, x, y).items()}
        names = [n for n in params if n in problem.model.adapted]
        past = meta.get("squares", {n: torch.zeros_like(v) for n, v in meta["params"].items()})
        before = meta["clock"]["steps"] if optimizer == "adam" else x.new_zeros(())
        squares = {} if optimizer == "sgd" else {n: past[n].expand_as(params[n]) for n in names}
        yield _Point(params, squares)
        loss = over_tasks(problem.loss, shared=0, count=count)
        for step, rows in enumerate(batches, 1):
            there = leaves(params)
            with torch.enable_grad():
                losses = loss(there, x[:, rows], y[:, rows])
                gradient = torch.autograd.grad(losses.sum(), [there[n] for n in names])
            moves = dict(zip(names, gradient, strict=True))
            if optimizer != "sgd":
                squares = {n: beta2 * squares[n] + (1 - beta2) * moves[n] ** 2 for n in names}
                unbiased = 1 - beta2 ** (before + step)
                moves = {n: g / ((squares[n] / unbiased).sqrt() + EPS) for n, g in moves.items()}
            params = params | {n: params[n] - inner_lr * g for n, g in moves.items()}
            yield _Point(params, squares)

    def adapt(meta: Meta, x: Tensor, y: Tensor, steps: int) -> Iterator[Params]:
        for point in path(meta, x, y, _batches(x.shape[1], batch, steps, 0, x.device)):
            yield point.params

    def meta_grad(meta: Meta, tasks: Tasks, step: int) -> MetaGradient:
        x = torch.cat([tasks.support_x, tasks.query_x], 1)  # [T, D, ...]
        y = torch.cat([tasks.support_y, tasks.query_y], 1)
        *_, end = path(meta, x, y, _batches(x.shape[1], batch, steps, step, x.device))
        with torch.no_grad():
            losses = over_tasks(problem.loss, shared=0, count=len(x))(end.params, x, y)
        apart = {n: (v - end.params[n]).mean(0) for n, v in plain_start(meta, x, y).items()}
        shift: Meta = {}
        if optimizer == "adam":
            shift["squares"] = {n: v.mean(0) - meta["squares"][n] for n, v in end.squares.items()}
            shift["clock"] = {"steps": torch.full_like(meta["clock"]["steps"], steps)}
        return MetaGradient({"params": apart}, losses, shift=shift)

    return MetaAlgorithm(init, adapt, meta_grad, exact=False)


def _batches(
    rows: int, batch: int, steps: int, seed: int, device: torch.device
) -> Iterator[Tensor]:
    """Yield the rows of each step's mini-batch, the same for every task; all where few."""
    if batch >= rows:
        yield from [torch.arange(rows, device=device)] * steps
        return
    generator = torch.Generator().manual_seed(seed)
    passes = -(-steps * batch // rows)
    order = torch.cat([torch.randperm(rows, generator=generator) for _ in range(passes)])
    yield from order[: steps * batch].to(device).split(batch)
