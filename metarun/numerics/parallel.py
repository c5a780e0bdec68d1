"""Chunks of tasks side by side: one Python thread a core, each computing on one core alone.

Tensors of one task are too small for several cores to share, and waiting for each other after
every operation costs more than they gain; two chunks need not wait.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

Item = TypeVar("Item")
Found = TypeVar("Found")


class Workers:
    """Threads that compute chunks; results come in the order of the chunks, whoever is first."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._pool = None
        if count > 1:
            self._pool = ThreadPoolExecutor(count, "metarun", torch.set_num_threads, (1,))

    def map(self, function: Callable[[Item], Found], items: Iterable[Item]) -> Iterator[Found]:
        """Yield the function's values in order; at most a few items more than needed are drawn."""
        if self._pool is None:
            yield from map(function, items)
            return
        ahead: list[Future[Found]] = []
        for item in items:
            ahead.append(self._pool.submit(function, item))
            if len(ahead) > self.count:
                yield ahead.pop(0).result()
        for future in ahead:
            yield future.result()
