"""The whole meta-step recorded once on a GPU and replayed: tasks, gradient, guard, optimiser.

A replay is one call of the host, which then reads one number: whether all was finite. Where it was
not, nothing has moved, and the meta-step is taken again as it is without a recording.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields

import torch
from torch import Tensor

from metarun.ahead import Ahead
from metarun.batching import COMPILED
from metarun.chunks import map_meta
from metarun.divergence import finite
from metarun.metagradient import MetaGrad, MetaGradient
from metarun.outer import OuterOptimizer, gradient_norm, learning_rate
from metarun.tasks import Tasks
from metarun.trees import apart

WARMING = 3  # runs before the recording, in which libraries allocate what they keep
Replay = Callable[[], None]


def on_cuda(device: torch.device, function: Replay) -> Replay:
    """Record what a function does on an NVIDIA GPU; return what does it again."""
    with torch.cuda.device(device):
        aside, here = torch.cuda.Stream(), torch.cuda.current_stream()
        aside.wait_stream(here)
        with torch.cuda.stream(aside):
            for _ in range(WARMING):
                function()
        here.wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            function()
    return graph.replay


RECORDERS = {"cuda": on_cuda}  # by type of device


class NotRecordedError(Exception):
    """The meta-step cannot be recorded; the text says why."""


class Recorded:
    """A meta-step that is replayed, for meta-gradients that do not depend on the meta-step.

    The recording moves the meta-parameters and the optimiser's moments in place.
    """

    def __init__(self, meta_grad: MetaGrad, optimizer: OuterOptimizer, ahead: Ahead) -> None:
        self.meta_grad, self.optimizer, self.ahead = meta_grad, optimizer, ahead
        self.block, drawn = 0, _stacked(ahead.block(0))
        self.drawn = drawn  # [B, T, ...] the batches of a block of meta-steps
        device = drawn.mode.device
        self.index = torch.zeros((), dtype=torch.long, device=device)
        self.rate = torch.zeros((), device=device)
        self.moves = torch.zeros((), dtype=torch.bool, device=device)  # not while warming up
        fresh = not optimizer.torch.state
        try:
            self.replay = RECORDERS[device.type](device, self._step)
        except Exception as error:  # whatever a driver, a compiler or an allocator can raise
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise NotRecordedError(f"{type(error).__name__}: {lines[0][:120]}") from error
        if fresh:  # the moments that warming up made are those of no step
            for moment in optimizer.moments_in_place():
                moment.zero_()
        self._check()
        self.moves.fill_(True)

    def take(self, step: int, done: float) -> tuple[MetaGradient, Tensor] | None:
        """Take a meta-step; return what was found and its norm, or None where nothing moved."""
        block, index = divmod(step, self.ahead.steps)
        if block != self.block:
            self._load(block)
        self.index.fill_(index)
        self.rate.fill_(learning_rate(self.optimizer.settings, done))
        self.replay()
        return (self.found, self.norm) if self.fine else None

    def _step(self) -> None:
        """Do what is recorded; all that it reads and leaves keeps its place in memory."""
        found = self.meta_grad(self.optimizer.meta, self._tasks(), 0)
        norm = gradient_norm(found.gradient)
        self.fine = finite(found, norm)
        go = self.fine & self.moves
        values = [self.optimizer.meta[g][n] for g, some in found.gradient.items() for n in some]
        moments = self.optimizer.moments_in_place()
        before = [value.clone() for value in (*values, *moments)]
        self.optimizer.move(self._clipped(found, norm), 1.0)
        for value, old in zip(values, before, strict=False):
            # Every optimiser moves a parameter in proportion to its rate, which changes.
            value.copy_(torch.where(go, torch.lerp(old, value, self.rate.to(value.dtype)), old))
        for moment, old in zip(moments, before[len(values) :], strict=True):
            moment.copy_(torch.where(go, moment, old))
        for group, params in found.shift.items():
            for name, value in params.items():
                self.optimizer.meta[group][name] += torch.where(go, value, 0.0)
        self.found, self.norm = found, norm

    def _clipped(self, found: MetaGradient, norm: Tensor) -> dict[str, dict[str, Tensor]]:
        largest = self.optimizer.settings.clip
        if largest is None:
            return found.gradient
        factor = (largest / norm).clamp(max=1.0)
        return map_meta(lambda value: value * factor.to(value.dtype), found.gradient)

    def _tasks(self) -> Tasks:
        index = self.index.view(1)
        return Tasks(*(tensor.index_select(0, index)[0] for tensor in _tensors(self.drawn)))

    def _load(self, block: int) -> None:
        for static, tensor in zip(
            _tensors(self.drawn), _tensors(_stacked(self.ahead.block(block))), strict=True
        ):
            static.copy_(tensor)
        self.block = block

    def _check(self) -> None:
        """Replay another meta-step than was recorded, and compare it with one that was not."""
        other = min(1, self.ahead.steps - 1)
        self.index.fill_(other)
        self.replay()
        plain = self.meta_grad(self.optimizer.meta, self.ahead.batch(other), other)
        difference = apart(self.found.gradient, plain.gradient)
        if not difference <= COMPILED[plain.losses.dtype]:
            raise NotRecordedError(f"its meta-gradient is {difference:.1e} from the other's")


def _tensors(tasks: Tasks) -> list[Tensor]:
    return [getattr(tasks, field.name) for field in fields(tasks)]


def _stacked(batches: list[Tasks]) -> Tasks:
    return Tasks(*(torch.stack(parts) for parts in zip(*map(_tensors, batches), strict=True)))
