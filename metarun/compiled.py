"""The meta-step as one compiled graph: traced whole, with its inner loop and derivatives in it.

Small networks spend their time in calls, not in numbers; one graph has none. What is compiled is
the function of meta-parameters and tasks, never the module.
"""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from math import inf
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx  # pyright: ignore[reportUnknownVariableType]

from metarun.files import code_cache
from metarun.metagradient import MetaGrad, MetaGradient
from metarun.models.net import Net
from metarun.problem import Meta
from metarun.settings import Budget
from metarun.tasks import Tasks

# Products of a pass over a batch: up to 4 M a graph is 4 to 12 times as fast, at 16 M 3, at 80 M
# it may be slower, since its tasks share no threads.
SMALL = 4_000_000
LONG = {"meta_steps": 20_000, "seconds": 300}  # budgets that win back up to a minute of building
STEPS = (0, 1, 10**9)  # meta-steps at which the graph must be one and the same

Names = tuple[tuple[str, tuple[str, ...]], ...]


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


def compiled(meta_grad: MetaGrad, meta: Meta, tasks: Tasks) -> MetaGrad:
    """Return the meta-gradient compiled for these shapes; for others it runs as it is.

    Raises:
        NotCompiledError: it depends on numbers on the way or on the meta-step, or the compiler
            fails.
    """
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(code_cache() / "inductor"))
    names = _names(meta)
    layout: list[_Layout] = []

    def flat(step: int) -> Callable[..., list[Tensor]]:
        def function(*tensors: Tensor) -> list[Tensor]:
            count = len(tensors) - len(_tensors(tasks))
            found = meta_grad(_named(names, tensors[:count]), Tasks(*tensors[count:]), step)
            layout[:] = [_Layout(_names(found.gradient), tuple(found.figures), _names(found.shift))]
            figures = list(found.figures.values())
            return [*_values(found.gradient), found.losses, *figures, *_values(found.shift)]

        return function

    inputs = [*_values(meta), *_tensors(tasks)]
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore", DeprecationWarning)  # between torch's own parts
            fast = _graph(flat, inputs)
            fast(*inputs)
    except NotCompiledError:
        raise
    except Exception as error:  # whatever a tracer or a compiler can raise
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise NotCompiledError(f"{type(error).__name__}: {lines[0][:120]}") from error
    shapes, parts, alone = _shapes(inputs), layout[0], threading.Lock()

    def fastest(meta: Meta, tasks: Tasks, step: int) -> MetaGradient:
        given = [*_values(meta), *_tensors(tasks)]
        if _names(meta) != names or _shapes(given) != shapes:
            return meta_grad(meta, tasks, step)
        with torch.no_grad(), alone:
            found = [value.clone() for value in fast(*given)]
        gradient, rest = _split(parts.gradient, found)
        losses, *rest = rest
        figures = dict(zip(parts.figures, rest, strict=False))
        shift, _ = _split(parts.shift, rest[len(figures) :])
        return MetaGradient(gradient, losses, figures, shift)

    return fastest


def _graph(
    flat: Callable[[int], Callable[..., list[Tensor]]], inputs: Sequence[Tensor]
) -> Callable[..., Sequence[Tensor]]:
    traced: Iterator[GraphModule] = (make_fx(flat(step))(*inputs) for step in STEPS)
    graph = next(traced)
    if any(_is_random(node.target) for node in graph.graph.nodes):
        raise NotCompiledError("it draws random numbers")
    if any(_text(other) != _text(graph) for other in traced):
        raise NotCompiledError("it depends on the meta-step")
    return torch.compile(graph)  # pyright: ignore


def _names(meta: Meta) -> Names:
    return tuple((group, tuple(params)) for group, params in meta.items())


def _values(meta: Meta) -> list[Tensor]:
    return [value for params in meta.values() for value in params.values()]


def _tensors(tasks: Tasks) -> list[Tensor]:
    return [tasks.support_x, tasks.support_y, tasks.query_x, tasks.query_y, tasks.mode]


def _named(names: Names, values: Sequence[Tensor]) -> Meta:
    return _split(names, values)[0]


def _split(names: Names, values: Sequence[Tensor]) -> tuple[Meta, list[Tensor]]:
    left = iter(values)
    meta = {group: {name: next(left) for name in params} for group, params in names}
    return meta, list(left)


def _shapes(tensors: Sequence[Tensor]) -> list[Any]:
    return [(t.shape, t.dtype, t.device) for t in tensors]


def _is_random(operation: Any) -> bool:
    """Tell random operations: a graph does not show which generator they draw from."""
    return torch.Tag.nondeterministic_seeded in getattr(operation, "tags", ())


def _text(graph: GraphModule) -> tuple[str, list[Any]]:
    """Return a graph's code and the numbers that were written into it."""
    constants = sorted((n, v.tolist()) for n, v in vars(graph).items() if isinstance(v, Tensor))
    return graph.code, constants
