"""Families of curves, and regression tasks that are points of one curve each.

Letters in shapes: T tasks, P points.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from metarun.data.counter import Key, normal, uniform
from metarun.data.source import Split
from metarun.errors import ConfigError
from metarun.tasks import Tasks

LOW, HIGH = -5.0, 5.0  # of x, in every family


class Family(NamedTuple):
    """Curves of one form, told apart by parameters that are uniform within ranges."""

    name: str
    curve: Callable[..., Tensor]  # of x [T, P] and each parameter [T, 1]
    ranges: tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class RegressionSource:
    """Task i is a random curve of family i modulo their number: every mode is equally frequent."""

    families: tuple[Family, ...]
    noise: float  # standard deviation, on every target but those of test queries
    test_noise: bool  # on those as well
    test_grid: bool  # test queries lie evenly over the whole range instead of at random
    device: torch.device

    kind: ClassVar[Literal["classification", "regression"]] = "regression"
    features: ClassVar[tuple[int, ...]] = (1,)
    targets: ClassVar[int] = 1
    train_classes: ClassVar[int] = 0
    fingerprint: ClassVar[Mapping[Split, str]] = {}

    @property
    def modes(self) -> tuple[str, ...]:
        """Names of the families."""
        return tuple(family.name for family in self.families)

    def tasks(
        self,
        split: Split,
        first: int,
        count: int,
        *,
        ways: int,
        shots: int,
        queries: int,
        seed: int,
    ) -> Tasks:
        """Return tasks first..first+count-1 with `shots` and `queries` points, x in [-5, 5]."""
        task = torch.arange(first, first + count)[:, None]
        support_x = _places((seed, split, "support"), task, shots)
        query_x = _places((seed, split, "query"), task, queries)
        if split == "test" and self.test_grid:
            query_x = torch.linspace(LOW, HIGH, queries, dtype=torch.float64).expand(count, -1)
        y = self._targets((seed, split, "curve"), first, task, torch.cat([support_x, query_x], 1))
        support_y, query_y = y[:, :shots], y[:, shots:]
        if self.noise:
            support_y += self._noise((seed, split, "support"), task, shots)
            if split != "test" or self.test_noise:
                query_y += self._noise((seed, split, "query"), task, queries)
        return Tasks(
            self._given(support_x),
            self._given(support_y),
            self._given(query_x),
            self._given(query_y),
            (task[:, 0] % len(self.families)).to(self.device),
        )

    def examples(self, first: int, count: int, *, seed: int) -> tuple[Tensor, Tensor]:
        """Return noisy points, each of another curve: what one regression over all tasks sees."""
        task = torch.arange(first, first + count)[:, None]
        key = (seed, "examples")
        x = _places(key, task, 1)
        y = self._targets((*key, "curve"), first, task, x)
        if self.noise:
            y += self._noise(key, task, 1)
        return self._given(x)[:, 0], self._given(y)[:, 0]

    def check(self, *, ways: int, shots: int, queries: int) -> None:
        """Raise ConfigError unless there is one way."""
        if ways != 1:
            raise ConfigError(
                f"task.ways={ways}: regression has no classes; set task.ways=1, and "
                "task.shots to the number of points"
            )

    def to(self, device: torch.device) -> RegressionSource:
        """Return the same source with its tensors on a device."""
        return replace(self, device=device)

    def _targets(self, key: Key, first: int, task: Tensor, x: Tensor) -> Tensor:
        """Evaluate the curves of tasks first, first + 1, ... at their places, [T, P]; float64."""
        modes = len(self.families)
        if modes == 1:
            return _curves(self.families[0], key, task, x)
        y = torch.empty_like(x)
        for mode, family in enumerate(self.families):
            mine = slice((mode - first) % modes, None, modes)
            y[mine] = _curves(family, key, task[mine], x[mine])
        return y

    def _noise(self, key: Key, task: Tensor, points: int) -> Tensor:
        return normal(key, task, torch.arange(points)).mul_(self.noise)

    def _given(self, values: Tensor) -> Tensor:
        # Made on the CPU always, for a sine is not the same to the last bit on every device.
        values = values.to(torch.float32, memory_format=torch.contiguous_format)
        return values[..., None].to(self.device)


def _curves(family: Family, key: Key, task: Tensor, x: Tensor) -> Tensor:
    draws = uniform(key, task, torch.arange(len(family.ranges))).unbind(1)
    parameters = [
        low + (high - low) * draw[:, None]
        for draw, (low, high) in zip(draws, family.ranges, strict=True)
    ]
    return family.curve(x, *parameters)


def _places(key: Key, task: Tensor, points: int) -> Tensor:
    return uniform((*key, "x"), task, torch.arange(points)).mul_(HIGH - LOW).add_(LOW)
