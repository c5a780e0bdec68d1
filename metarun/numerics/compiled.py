"""The meta-step as one compiled graph: traced whole, with its inner loop and derivatives in it.

Small networks spend their time in calls, not in numbers; one graph has none. What is compiled is
the function of meta-parameters and tasks, never the module.
"""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, contextmanager
from math import inf
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx  # pyright: ignore[reportUnknownVariableType]

from metarun.gradients.metagradient import MetaGrad, MetaGradient
from metarun.models.net import Net
from metarun.numerics.buildfolder import FOLDER, building
from metarun.problem import Meta
from metarun.settings.sections import Budget
from metarun.tasks import Tasks

# Products of a pass over a batch: up to 4 M a graph is 4 to 12 times as fast, at 16 M 3, at 80 M
# it may be slower, since its tasks share no threads.
SMALL = 4_000_000
LONG = {"meta_steps": 20_000, "seconds": 300}  # budgets that win back up to a minute of building
STEPS = (0, 1, 10**9)  # meta-steps at which the graph must be one and the same

Names = tuple[tuple[str, tuple[str, ...]], ...]
Called = Callable[..., Sequence[Tensor]]


def pays(model: Net, rows: int, budget: Budget, device: torch.device) -> bool:
    """Tell whether one graph is worth its building: for a small perceptron's long training.

    `rows` are those of a batch, support and query. On a GPU it was never measured: no.
    """
    shapes = [value.shape for value in model.parameters()]
    plain = device.type == "cpu" and all(len(shape) < 3 for shape in shapes)
    products = rows * sum(shape.numel() for shape in shapes)
    return plain and products <= SMALL and budget.total >= LONG.get(budget.unit, inf)


class NotCompiledError(Exception):
    """The meta-step cannot be one graph; the text says why."""


class _Layout(NamedTuple):
    """What a flat list of results is made of."""

    gradient: Names
    figures: tuple[str, ...]
    shift: Names


class Graph:
    """A meta-gradient traced for some shapes; called, it runs compiled, for others as it is.

    Raises:
        NotCompiledError: it depends on numbers on the way or on the meta-step.
    """

    def __init__(self, meta_grad: MetaGrad, meta: Meta, tasks: Tasks) -> None:
        self.plain, self._names = meta_grad, _names(meta)
        self._inputs = [*_values(meta), *tasks.tensors()]
        self._given, self._alone = _shapes(self._inputs), threading.Lock()
        self._layout = _Layout((), (), ())
        self._graph = _traced(self._flat, self._inputs)
        self._fast: Called | None = None

    def __call__(self, meta: Meta, tasks: Tasks, step: int) -> MetaGradient:
        inputs = [*_values(meta), *tasks.tensors()]
        if _names(meta) != self._names or _shapes(inputs) != self._given:
            return self.plain(meta, tasks, step)
        with torch.no_grad(), self._alone:
            if self._fast is None:
                self._fast = built(self._graph, self._inputs)
            return self._found([value.clone() for value in self._fast(*inputs)])

    def as_it_is(self) -> None:
        """Call the plain function from now on, for all shapes."""
        self._given = []

    def traced(self, meta: Meta, tasks: Tasks, step: int) -> MetaGradient:
        """Do what the graph does one operation after the other: to be part of a larger graph."""
        return self._found(self._graph(*_values(meta), *tasks.tensors()))

    def _flat(self, step: int) -> Called:
        def function(*tensors: Tensor) -> list[Tensor]:
            meta, rest = split(self._names, tensors)
            found = self.plain(meta, Tasks(*rest), step)
            parts = _names(found.gradient), tuple(found.figures), _names(found.shift)
            self._layout = _Layout(*parts)
            figures = list(found.figures.values())
            return [*_values(found.gradient), found.losses, *figures, *_values(found.shift)]

        return function

    def _found(self, values: Sequence[Tensor]) -> MetaGradient:
        gradient, (losses, *rest) = split(self._layout.gradient, values)
        figures = dict(zip(self._layout.figures, rest, strict=False))
        shift, _ = split(self._layout.shift, rest[len(figures) :])
        return MetaGradient(gradient, losses, figures, shift)


def built(graph: GraphModule, inputs: Sequence[Tensor]) -> Called:
    """Compile a graph for inputs like these, from the cache where it is there.

    Straight to the compiler: what torch.compile puts before each call costs a fifth of a small
    network's meta-step.

    Raises:
        NotCompiledError: the compiler fails.
    """
    import torch._inductor  # which takes as long as torch itself

    try:
        with building(), quiet(), _cached():
            return torch._inductor.compile(graph, list(inputs))  # pyright: ignore
    except Exception as error:  # whatever a compiler can raise
        advice = f"if what was built before is damaged, delete {os.environ.get(FOLDER)}"
        raise NotCompiledError(f"{first_line(error)}; {advice}") from error


def _cached() -> AbstractContextManager[Any]:
    """Give the compiler the surroundings without which it does not look into its cache."""
    from torch._guards import TracingContext, tracing
    from torch._subclasses import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    return tracing(TracingContext(FakeTensorMode(shape_env=ShapeEnv())))


def first_line(error: Exception) -> str:
    """Return what a driver, a tracer or a compiler says, short."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    if "value out of a tracing tensor" in lines[0]:  # as outer.diagnose does
        return "it looks at numbers on the way"
    return f"{type(error).__name__}: {lines[0][:120]}"


@contextmanager
def quiet() -> Generator[None]:
    """Trace and compile: nothing is differentiated, and torch's parts may deprecate each other.

    Nor is it told that the GPU could round products, which `hardware.precision` decides.
    """
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.filterwarnings("ignore", "TensorFloat32 tensor cores", UserWarning)
        yield


def _traced(flat: Callable[[int], Called], inputs: Sequence[Tensor]) -> GraphModule:
    try:
        with quiet():
            graph, *others = (make_fx(flat(step))(*inputs) for step in STEPS)
    except Exception as error:  # whatever a tracer can raise
        raise NotCompiledError(first_line(error)) from error
    if any(_is_random(node.target) for node in graph.graph.nodes):
        raise NotCompiledError("it draws random numbers")
    if any(_text(other) != _text(graph) for other in others):
        raise NotCompiledError("it depends on the meta-step")
    return graph


def _names(meta: Meta) -> Names:
    return tuple((group, tuple(params)) for group, params in meta.items())


def _values(meta: Meta) -> list[Tensor]:
    return [value for params in meta.values() for value in params.values()]


def split(names: Names, values: Sequence[Tensor]) -> tuple[Meta, list[Tensor]]:
    """Give the first of a flat list of tensors their names back; return the others too."""
    left = iter(values)
    meta = {group: {name: next(left) for name in params} for group, params in names}
    return meta, list(left)


def _shapes(tensors: Sequence[Tensor]) -> list[Any]:
    return [(t.shape, t.dtype, t.device) for t in tensors]


def _is_random(operation: Any) -> bool:
    """Tell random operations: a graph does not show which generator they draw from."""
    return torch.Tag.nondeterministic_seeded in getattr(operation, "tags", ())


def _text(graph: GraphModule) -> tuple[str, list[tuple[str, str]]]:
    """Return a graph's code and the numbers that were written into it."""
    return graph.code, sorted((n, str(v.tolist())) for n, v in graph.named_buffers())
