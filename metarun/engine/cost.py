"""What a method costs: operations, memory, parameters; counted, not guessed."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from metarun.assemble import Experiment
from metarun.models.layers import without_kernels
from metarun.numerics.chunks import in_chunks, turned
from metarun.numerics.compiled import Graph
from metarun.problem import Meta

FIRST, LATE = 0, 10**9  # meta-steps: an algorithm may begin in another way than it ends


def flops_per_meta_step(experiment: Experiment, meta: Meta) -> int:
    """Count the floating-point operations of one meta-step's matrix products and convolutions.

    A multiplication and an addition are two. One task is run plainly and counts for all: they
    have equal shapes. Of an algorithm of several phases the dearest counts throughout.

    Raises:
        MemoryExhaustedError: the task does not fit.
    """
    algorithm = experiment.algorithm
    meta_grad = algorithm.meta_grad
    if meta_grad is None:
        return 0
    if isinstance(meta_grad, Graph):  # whose products are invisible to the counter
        meta_grad = meta_grad.plain
    tasks, found = experiment.batch(0), list[int]()
    phases = [meta]
    if algorithm.turn is not None:
        at_once = min(experiment.tasks_at_once(), len(tasks))
        phases.append(meta | turned(algorithm.turn, meta, tasks.chunks, at_once))
    with without_kernels(experiment.problem.model):  # likewise
        for phase, step in product(phases, (FIRST, LATE)):
            with FlopCounterMode(display=False, custom_mapping=GROUPED) as counter:
                in_chunks(meta_grad, phase, tasks[:1], step, 1)
            found.append(counter.get_total_flops())
    return max(found) * len(tasks)


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
