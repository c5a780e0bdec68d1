"""A pretended accelerator: its tensors have a device of their own, and a CPU computes them.

It refuses what a GPU refuses: tensors of two devices in one operation, and traffic with the host
while operations are recorded. It counts how often the host waits for it. So all that runs on a GPU
but its kernels can be tested where there is none. Import it before anything computes a gradient, in
a process of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._mode_utils import no_dispatch
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "pretended"
_setup_privateuseone_for_python_backend(NAME)
DEVICE = torch.device(NAME, 0)

aten = torch.ops.aten
COPIES = (aten._to_copy.default, aten.copy_.default)
READS = (aten._local_scalar_dense.default,)
SIZED = (  # whose result is as large as the numbers say, or who check them: the host waits to know
    *(aten.nonzero.default, aten.masked_select.default, aten.repeat_interleave.Tensor),
    *(aten._unique2.default, aten.unique_dim.default, aten.unique_consecutive.default),
    *(aten.bincount.default, aten.equal.default, aten._linalg_check_errors.default),
)
INDEXED = (
    *(aten.index.Tensor, aten.index_put.default, aten.index_put_.default),
    aten._index_put_impl_.default,
)
PRODUCTS = (aten.mm.default, aten.bmm.default, aten.addmm.default, aten.baddbmm.default)


class Waits:
    """How often the host read a number or a tensor of the device."""

    count = 0


class Graph:
    """Operations recorded while it is `now`, to be done again on the same memory."""

    now: ClassVar[Graph | None] = None

    def __init__(self) -> None:
        self.done: list[tuple[Any, Any, Any, Any]] = []

    def replay(self) -> None:
        """Do all again: results go where the first ones lie, views and places stay."""
        for op, args, kwargs, found in self.done:
            memory = {
                leaf.untyped_storage().data_ptr()
                for leaf in pytree.tree_leaves((args, kwargs))
                if isinstance(leaf, Tensor)
            }
            again = op(*args, **kwargs)
            for place, value in zip(*map(pytree.tree_leaves, (found, again)), strict=True):
                if isinstance(place, Tensor) and place.untyped_storage().data_ptr() not in memory:
                    place.copy_(value)


def record(
    step: Callable[..., list[Tensor]], inputs: Sequence[Tensor]
) -> Callable[[], Sequence[Tensor]]:
    """Stand in for `metarun.engine.recorded.on_cuda`."""
    step(*inputs)
    graph = Graph.now = Graph()
    try:
        found = step(*inputs)
    finally:
        Graph.now = None

    def replay() -> list[Tensor]:
        graph.replay()
        return found

    return replay


class There(Tensor):
    """A tensor of the pretended device; `here` holds its numbers."""

    here: Tensor

    @staticmethod
    def __new__(cls, here: Tensor) -> There:
        found = Tensor._make_wrapper_subclass(
            cls, here.shape, here.stride(), here.storage_offset(), dtype=here.dtype, device=DEVICE
        )
        found.here = here
        return found

    def __repr__(self) -> str:
        return f"There({self.here})"

    def tolist(self) -> Any:
        """Return the numbers, which torch refuses to subclasses."""
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(cls, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(op, args, kwargs or {})


def compute(op: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Compute an operation on the numbers behind its tensors."""
    given = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    there = _is_there(op, given, kwargs.get("device"))
    _check(op, given, there, kwargs.get("generator"))
    if torch.Tag.inplace_view in op.tags:  # changes a shape and no number
        op(args[0].here, *args[1:], **kwargs)
        with no_dispatch():
            op(*args, **kwargs)
        return args[0]
    own = {id(_here(tensor)): tensor for tensor in given}
    args, kwargs = pytree.tree_map_only(Tensor, _here, (args, kwargs))
    if kwargs.get("device") is not None:
        kwargs["device"] = torch.device("cpu")
    found = op(*args, **kwargs)
    if Graph.now is not None:
        Graph.now.done.append((op, args, kwargs, found))

    def back(tensor: Tensor) -> Tensor:
        same = own.get(id(tensor))
        return same if same is not None else There(tensor) if there else tensor

    return pytree.tree_map_only(Tensor, back, found)


def _is_there(op: Any, given: list[Tensor], asked: Any) -> bool:
    if asked is not None:
        return torch.device(asked).type == NAME
    if op is aten.copy_.default:
        return isinstance(given[0], There)
    return any(isinstance(tensor, There) for tensor in given) or not given


def _check(op: Any, given: list[Tensor], there: bool, generator: Any = None) -> None:
    here = not any(isinstance(tensor, There) for tensor in given)
    masked = op in INDEXED and any(t.dtype in (torch.bool, torch.uint8) for t in given[1:])
    reads = op in READS or (op in COPIES and not there)
    reads = reads or (not here and (masked or op in SIZED))
    writes = op in COPIES and there and not all(isinstance(tensor, There) for tensor in given)
    if Graph.now is not None and (reads or writes):
        raise RuntimeError(f"{op}: operation not permitted when stream is capturing")
    if there and generator is not None:
        raise RuntimeError(f"{op}: expected a generator of {DEVICE}, but found one of the CPU")
    if not here and op in PRODUCTS and not given[0].is_floating_point():
        raise RuntimeError(f"{op}: not implemented for {given[0].dtype}")
    if reads:
        Waits.count += 1
    if op not in READS and op not in COPIES:
        for tensor in given:  # of a CPU's, an operation takes scalars, as it does on a GPU
            if not isinstance(tensor, There) and tensor.dim():
                raise RuntimeError(f"{op}: a tensor on {tensor.device} beside those on {DEVICE}")


def _here(tensor: Tensor) -> Tensor:
    return tensor.here if isinstance(tensor, There) else tensor


def _empty(size: Any, *, dtype: Any = None, memory_format: Any = None, **rest: Any) -> There:
    return There(torch.empty(size, dtype=dtype, memory_format=memory_format))


def _empty_strided(size: Any, stride: Any, *, dtype: Any = None, **rest: Any) -> There:
    return There(torch.empty_strided(size, stride, dtype=dtype))


_every = torch.library.Library("_", "IMPL")
_every.fallback(lambda op, *args, **kwargs: compute(op, args, kwargs), "PrivateUse1")
_aten = torch.library.Library("aten", "IMPL")
_aten.impl("empty.memory_format", _empty, "PrivateUse1")
_aten.impl("empty_strided", _empty_strided, "PrivateUse1")

_tensor = torch.tensor


def _on_device(data: Any, *, device: Any = None, **rest: Any) -> Tensor:
    """Stand in for torch.tensor, which cannot make tensors of such a device itself."""
    found = _tensor(data, **rest)
    return found if device is None else found.to(device)


torch.tensor = _on_device  # pyright: ignore[reportAttributeAccessIssue]


@contextmanager
def waits() -> Generator[Waits]:
    """Count, inside the block, how often the host waits for the device."""
    before, counted = Waits.count, Waits()
    yield counted
    counted.count = Waits.count - before
