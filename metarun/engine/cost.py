"""What a method costs: operations, memory, parameters; counted, not guessed."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from math import inf
from typing import Any, NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from metarun.algorithms.base import Turn
from metarun.assemble import Experiment
from metarun.models.layers import without_kernels
from metarun.numerics.chunks import in_chunks, turned
from metarun.numerics.compiled import Graph
from metarun.problem import Meta


class Flops(NamedTuple):
    """Floating-point operations of training, phase by phase; by default none."""

    begins: tuple[int, ...] = (0,)  # the meta-step with which each phase begins
    each: tuple[int, ...] = (0,)  # of a meta-step in that phase
    turn: tuple[float, int] = (inf, 0)  # before which meta-step there is one, and its operations

    def until(self, step: int) -> int:
        """Return the operations of the meta-steps before this one."""
        ends = [min(step, end) for end in (*self.begins, step)]
        spent = sum(n * (b - a) for n, (a, b) in zip(self.each, pairwise(ends), strict=True))
        before, once = self.turn
        return spent + once * (step > before)


def flops_of_training(experiment: Experiment, meta: Meta) -> Flops:
    """Count the floating-point operations of the matrix products and convolutions in training.

    A multiplication and an addition are two. One task is run plainly in every phase of the
    algorithm and counts for all: they have equal shapes.

    Raises:
        MemoryExhaustedError: the task does not fit.
    """
    algorithm = experiment.algorithm
    meta_grad = algorithm.meta_grad
    if meta_grad is None:
        return Flops()
    if isinstance(meta_grad, Graph):  # whose products are invisible to the counter
        meta_grad = meta_grad.plain
    tasks, turn, each = experiment.batch(0), algorithm.turn, list[int]()
    changes, later, before, once = {0, *algorithm.changes}, meta, inf, 0
    with without_kernels(experiment.problem.model):  # likewise
        if turn is not None:
            before = turn.step
            changes.add(turn.step)
            later, once = _turned(experiment, turn, meta)
        for step in sorted(changes):
            with FlopCounterMode(display=False, custom_mapping=GROUPED) as counter:
                in_chunks(meta_grad, later if step >= before else meta, tasks[:1], step, 1)
            each.append(counter.get_total_flops() * len(tasks))
    return Flops(tuple(sorted(changes)), tuple(each), (before, once))


def _turned(experiment: Experiment, turn: Turn, meta: Meta) -> tuple[Meta, int]:
    """Return the meta-parameters after a turn on a batch, and the operations of a whole one."""
    tasks = experiment.batch(0)
    at_once = min(experiment.tasks_at_once(), len(tasks))
    with FlopCounterMode(display=False, custom_mapping=GROUPED) as counter:
        later = meta | turned(turn, meta, tasks.chunks, at_once)
    return later, counter.get_total_flops() * turn.tasks // len(tasks)


def flops_per_adaptation(experiment: Experiment, meta: Meta, steps: int) -> int:
    """Count the same of adapting to one test task in so many inner steps, queries left out."""
    algorithm, task = experiment.algorithm, experiment.tasks("test", 0, 1)
    adapt = algorithm.oracle(task.mode) if algorithm.oracle else algorithm.adapt
    with (
        without_kernels(experiment.problem.model),
        FlopCounterMode(display=False, custom_mapping=GROUPED) as counter,
    ):
        for _ in adapt(meta, task.support_x, task.support_y, steps):
            pass  # a step at a time, as the test takes them
    return int(counter.get_total_flops())


CONV_BACKWARD = torch.ops.aten.convolution_backward


def _conv_backward(*args: Any, out_shape: Any) -> int:
    """Count a convolution's backward pass.

    Torch 2.13 counts the gradient of the weights as if every group saw every channel, and several
    starts run side by side are groups.
    """
    *given, groups, (inputs, weights, bias) = args
    counted: Callable[..., int] = flop_registry[CONV_BACKWARD]
    of_inputs = counted(*given, groups, (inputs, False, bias), out_val=out_shape)
    of_weights = counted(*given, groups, (False, weights, bias), out_val=out_shape)
    return of_inputs + of_weights // groups


GROUPED = {CONV_BACKWARD: _conv_backward}


def count(meta: Meta) -> int:
    """Return how many numbers the tensors hold that training moves."""
    learned = [params for group, params in meta.items() if group != "frozen"]
    return sum(value.numel() for params in learned for value in params.values())
