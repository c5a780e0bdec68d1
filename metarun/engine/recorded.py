"""The whole meta-step as one thing to call: tasks, gradient, guard, clip, optimiser.

On a GPU it is recorded once and replayed, on a CPU it is one compiled graph. After a call the host
reads one number: whether all was finite. Where it was not, nothing has moved, and the meta-step is
taken again as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx  # pyright: ignore[reportUnknownVariableType]

from metarun.engine.ahead import Ahead
from metarun.engine.batching import LOOKS, agreeing, tolerated
from metarun.gradients.metagradient import MetaGrad, MetaGradient
from metarun.numerics.chunks import map_meta
from metarun.numerics.compiled import NotCompiledError, built, first_line, quiet
from metarun.numerics.divergence import finite
from metarun.numerics.formulas import moved
from metarun.numerics.outer import OuterOptimizer, gradient_norm, learning_rate
from metarun.numerics.trees import apart
from metarun.problem import Meta
from metarun.tasks import Tasks

WARMING = 3  # runs before the recording, in which libraries allocate what they keep
Step = Callable[..., list[Tensor]]  # of tensors that keep their place, some of which it changes
Replay = Callable[[], Sequence[Tensor]]


def on_cuda(step: Step, inputs: Sequence[Tensor]) -> Replay:
    """Record what a function does on an NVIDIA GPU; return what does it again."""
    with torch.cuda.device(inputs[0].device):
        aside, here = torch.cuda.Stream(), torch.cuda.current_stream()
        aside.wait_stream(here)
        with torch.cuda.stream(aside):
            for _ in range(WARMING):
                step(*inputs)
        here.wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            found = step(*inputs)

    def replay() -> list[Tensor]:
        graph.replay()
        return found

    return replay


def on_cpu(step: Step, inputs: Sequence[Tensor]) -> Replay:
    """Compile what a function does on a CPU."""
    with quiet():
        graph = make_fx(step)(*inputs)
    fast = built(graph, inputs)

    def replay() -> Sequence[Tensor]:
        with torch.no_grad():
            return fast(*inputs)

    return replay


RECORDERS = {"cuda": on_cuda, "cpu": on_cpu}  # by type of device


class NotRecordedError(Exception):
    """The meta-step cannot be recorded; the text says why."""


class Recorded:
    """A meta-step that is replayed, for meta-gradients that do not depend on the meta-step.

    It moves the meta-parameters and the optimiser's moments in place. `plain` is the meta-gradient
    that the recorded one is compared with.
    """

    def __init__(
        self, meta_grad: MetaGrad, plain: MetaGrad, optimizer: OuterOptimizer, ahead: Ahead
    ) -> None:
        self.meta_grad, self.optimizer, self.ahead = meta_grad, optimizer, ahead
        first = ahead.experiment.initial()  # compared there: a run that goes on decides alike
        wanted = plain(first, ahead.batch(1), 1)  # another meta-step than is recorded
        self.names = [(g, n) for g, some in wanted.gradient.items() for n in some]
        self.figures = list(wanted.figures)
        self.moments = optimizer.moments_in_place(wanted.gradient)
        self.block, self.drawn = 0, Tasks(*(part.clone() for part in ahead.block(0).tensors()))
        device = self.drawn.support_x.device
        self.index = torch.zeros((), dtype=torch.long, device=device)
        self.rate = torch.zeros((), dtype=torch.float64, device=device)
        self.moves = torch.zeros((), dtype=torch.bool, device=device)  # not while recording
        try:
            self.replay = RECORDERS[device.type](self._step, self._inputs())
        except NotCompiledError as error:
            raise NotRecordedError(str(error)) from error
        except Exception as error:  # whatever a driver or an allocator can raise
            raise NotRecordedError(first_line(error)) from error
        with self._lent(first):
            enough = tolerated(ahead.experiment.hardware)
            difference = agreeing(self._differences(plain, first), enough)
        if not difference <= enough:
            raise NotRecordedError(f"its meta-gradient is {difference:.1e} from the other's")

    def _differences(self, plain: MetaGrad, meta: Meta) -> Iterator[float]:
        """Yield how far replays are from the meta-gradient that is called, by meta-step."""
        for step in range(1, 1 + LOOKS):
            wanted = plain(meta, self.ahead.batch(step), step)
            yield apart(self.look(step).gradient, wanted.gradient)

    def take(self, step: int, done: float) -> tuple[MetaGradient, Tensor] | None:
        """Take a meta-step; return what was found and its norm, or None where nothing moved."""
        self.rate.fill_(learning_rate(self.optimizer.settings, done))
        self.moves.fill_(True)
        fine, norm, found = self._found(step)
        return (found, norm) if fine else None

    def look(self, step: int) -> MetaGradient:
        """Return what a meta-step finds, and move nothing."""
        self.moves.fill_(False)
        return self._found(step)[2]

    @contextmanager
    def _lent(self, meta: Meta) -> Generator[None]:
        """Give the meta-parameters other values inside the block."""
        own = map_meta(torch.clone, self.optimizer.meta)
        try:
            _copy(meta, self.optimizer.meta)
            yield
        finally:
            _copy(own, self.optimizer.meta)

    def _found(self, step: int) -> tuple[Tensor, Tensor, MetaGradient]:
        block, index = divmod(step, self.ahead.steps)
        if block != self.block:
            for place, drawn in zip(
                self.drawn.tensors(), self.ahead.block(block).tensors(), strict=True
            ):
                place.copy_(drawn)
            self.block = block
        self.index.fill_(index)
        fine, norm, losses, *rest = self.replay()
        figures = dict(zip(self.figures, rest, strict=False))
        gradient = self._named(rest[len(figures) :])
        return fine, norm, MetaGradient(gradient, losses, figures)

    def _inputs(self) -> list[Tensor]:
        """Return all that the step reads and changes, each of which keeps its place in memory."""
        moments = [value for some in self.moments for value in some.values()]
        changing = [*self.optimizer.values, *moments]
        return [*changing, *self.drawn.tensors(), self.index, self.rate, self.moves]

    def _step(self, *inputs: Tensor) -> list[Tensor]:
        """Do what is recorded."""
        left = iter(inputs)
        meta = {g: {n: next(left) for n in some} for g, some in self.optimizer.meta.items()}
        moments = [{key: next(left) for key in some} for some in self.moments]
        *drawn, index, rate, moves = left
        tasks = Tasks(*(tensor.index_select(0, index.view(1))[0] for tensor in drawn))
        found = self.meta_grad(meta, tasks, 0)
        norm = gradient_norm(found.gradient)
        fine = finite(found, norm)
        go = fine & moves

        def put(place: Tensor, value: Tensor) -> None:
            place.copy_(torch.where(go, value, place))

        gradient = self._clipped(found, norm)
        for (group, name), own in zip(self.names, moments, strict=True):
            pull, place = gradient[group][name], meta[group][name]
            value, after = moved(self.optimizer.settings, place, pull, own, rate)
            put(place, value)
            for key, moment in after.items():
                put(own[key], moment)
        for group, params in found.shift.items():
            for name, value in params.items():
                put(meta[group][name], meta[group][name] + value)
        pulls = [found.gradient[group][name] for group, name in self.names]
        return [fine, norm, found.losses, *found.figures.values(), *pulls]

    def _clipped(self, found: MetaGradient, norm: Tensor) -> Meta:
        largest = self.optimizer.settings.clip
        if largest is None:
            return found.gradient
        factor = (largest / norm).clamp(max=1.0)
        return map_meta(lambda value: value * factor.to(value.dtype), found.gradient)

    def _named(self, pulls: Sequence[Tensor]) -> Meta:
        gradient: Meta = {}
        for (group, name), pull in zip(self.names, pulls, strict=True):
            gradient.setdefault(group, {})[name] = pull
        return gradient


def _copy(source: Meta, target: Meta) -> None:
    for group, params in source.items():
        for name, value in params.items():
            target[group][name].copy_(value)
