"""The pieces of work that are measured: shapes, steps, rates, and random tasks of that shape."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fnmatch import fnmatch
from typing import Literal

import torch

from metarun.tasks import Tasks


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """One meta-update: what is adapted how, on tasks of which shape."""

    name: str
    title: str
    algorithm: Literal["maml", "anil", "imaml"] = "maml"
    net: Literal["conv4", "mlp"] = "conv4"
    features: tuple[int, ...] = (1, 28, 28)
    filters: int = 64
    tasks: int = 32
    ways: int = 5
    shots: int = 1
    queries: int = 15  # a class
    steps: int = 1
    inner_lr: float = 0.4
    second_order: bool = True
    reference: str = "learn2learn"  # ratios are against it where it runs the work
    must: float | None = None  # the ratio that the project promises
    aim: float | None = None
    proximal: float = 2.0  # implicit MAML only, as its CG steps
    cg_steps: int = 5

    @property
    def outputs(self) -> int:
        return 1 if self.net == "mlp" else self.ways


_W1 = Work(name="w1", title="Omniglot shape, 1 step, second order", must=2.0, aim=3.0)
_W2 = replace(
    _W1, name="w2", title="Omniglot shape, 5 steps, second order", steps=5, inner_lr=0.1, must=1.8
)
_W3 = Work(
    name="w3",
    title="Sinusoid perceptron, 5 steps, second order",
    net="mlp",
    features=(1,),
    tasks=25,
    ways=1,
    shots=10,
    queries=10,
    steps=5,
    inner_lr=0.01,
    must=14.0,
    aim=20.0,
)
_W4 = Work(
    name="w4",
    title="miniImageNet shape, 5-shot, 5 steps, second order",
    features=(3, 84, 84),
    filters=32,
    tasks=4,
    shots=5,
    steps=5,
    inner_lr=0.01,
    must=1.6,
    aim=2.5,
)
_FIRST = dict(second_order=False, must=None, aim=None)
_ALL = (
    _W1,
    replace(_W1, name="w1-first", title="Omniglot shape, 1 step, first order", second_order=False),
    replace(_W1, name="w1-1query", title="Omniglot shape, 1 step, 1 query", queries=1, must=1.7),
    _W2,
    replace(_W2, name="w2-first", title="Omniglot shape, 5 steps, first order", **_FIRST),
    _W3,
    replace(_W3, name="w3-first", title="Sinusoid, 5 steps, first order", **_FIRST),
    replace(
        _W3, name="w3-1step", title="Sinusoid, 1 step, second order", steps=1, must=None, aim=None
    ),
    _W4,
    replace(_W4, name="w4-first", title="miniImageNet shape, 5 steps, first order", **_FIRST),
    replace(
        _W2,
        name="w5",
        title="Omniglot shape, ANIL, 5 steps, second order",
        algorithm="anil",
        must=2.5,
        aim=4.0,
    ),
    replace(
        _W2,
        name="w6",
        title="Omniglot shape, implicit MAML, 16 steps, 5 CG steps",
        algorithm="imaml",
        steps=16,
        inner_lr=0.1,
        reference="torchopt",
        must=1.7,
        aim=3.0,
    ),
)
WORKS = {work.name: work for work in _ALL}


def chosen(patterns: str) -> list[Work]:
    """Return the works that comma-separated names or patterns (`w1*`) name, in their own order.

    Raises:
        SystemExit: a pattern names nothing.
    """
    found: set[str] = set()
    for pattern in patterns.split(","):
        names = {name for name in WORKS if fnmatch(name, pattern)}
        if not names:
            raise SystemExit(f"--works: {pattern} names none of {', '.join(WORKS)}")
        found |= names
    return [work for name, work in WORKS.items() if name in found]


def batch(work: Work, dtype: torch.dtype, device: torch.device, seed: int = 0) -> Tasks:
    """Return the work's random tasks: a pattern a class in noise, or sinusoids."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    count, mode = work.tasks, torch.zeros(work.tasks, dtype=torch.long)
    if work.net == "mlp":
        height, phase = 0.1 + 4.9 * uniform(count, 1, 1), torch.pi * uniform(count, 1, 1)
        xs = [10 * uniform(count, rows, 1) - 5 for rows in (work.shots, work.queries)]
        ys = [height * torch.sin(x - phase) for x in xs]
    else:
        patterns = uniform(count, work.ways, *work.features)
        labels = torch.arange(work.ways).repeat(count, 1)
        ys = [labels.repeat(1, each) for each in (work.shots, work.queries)]
        rows = torch.arange(count)[:, None]
        xs = [patterns[rows, y] + 0.5 * uniform(*y.shape, *work.features) for y in ys]
    tasks = Tasks(xs[0], ys[0], xs[1], ys[1], mode).to(dtype)
    return Tasks(
        *(t.to(device) for t in (tasks.support_x, tasks.support_y, tasks.query_x, tasks.query_y)),
        mode.to(device),
    )
