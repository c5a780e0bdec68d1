"""Small problems of several modes, and settings of the families that are made for them."""

from __future__ import annotations

from typing import Any

import torch
from oracles import DOUBLE

from metarun.algorithms.base import MetaAlgorithm
from metarun.algorithms.clustered import clustered
from metarun.algorithms.mixture import mixture
from metarun.algorithms.mmaml import mmaml
from metarun.algorithms.tsamaml import tsamaml
from metarun.models.mlp import mlp
from metarun.numerics.chunks import map_meta
from metarun.problem import Meta, Params, Problem
from metarun.tasks import Tasks

PLAIN: dict[str, Any] = dict(inner_lr=0.3, steps=2, estimator="adjoint", proximal=0.0)
MIXTURE: dict[str, Any] = dict(
    **PLAIN,
    starts=3,
    own="all",
    weights="em",
    combine="predictions",
    score="after",
    temperature=1.0,
    temperature_end=None,
    temperature_steps=10,
    balance_loss=0.0,
    entropy_loss=0.0,
    width=5,
    share_rate=0.1,
    restart=0.0,
    spread=0.4,
    balance=0.0,
)
CLUSTERED: dict[str, Any] = dict(
    **PLAIN,
    starts=3,
    own="all",
    assign="after",
    folds=2,
    graded_by="support",
    share_rate=0.1,
    restart=0.0,
    spread=0.4,
    balance=0.0,
    warm_up=0,
    warm_up_by="mean",
)
TSA: dict[str, Any] = dict(
    **PLAIN, starts=2, warm_up=3, tasks=12, cluster_on="body", cluster_steps=5
)
MANY = {
    "clustered": lambda on: clustered(on, **CLUSTERED),
    "mixture-em": lambda on: mixture(on, **MIXTURE),
    "mixture-em-start": lambda on: mixture(on, **{**MIXTURE, "combine": "parameters"}),
    "mixture-gate": lambda on: mixture(on, **{**MIXTURE, "weights": "gate"}),
    "mmaml": lambda on: mmaml(on, **PLAIN, width=5, inner_clip=None),
    "tsamaml": lambda on: tsamaml(on, **TSA),
    "tsamaml-features": lambda on: tsamaml(on, **{**TSA, "cluster_on": "features"}),
}


def regression() -> Problem:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        small = dict(hidden=[6, 5], norm="none", bn_mode="transductive", adapt_norm=True)
        net = mlp((1,), 1, **small, activation="tanh", init="default")
    return Problem(net.double(), "regression")


def two_levels(count: int = 12) -> Tasks:
    """Return regression tasks whose targets lie around 2 or, every other one, around -2."""
    generator = torch.Generator().manual_seed(1)
    mode = torch.arange(count) % 2
    x = torch.randn(count, 8, 1, dtype=DOUBLE, generator=generator)
    noise = 0.2 * torch.randn(count, 8, 1, dtype=DOUBLE, generator=generator)
    y = 2.0 - 4.0 * mode.double().view(-1, 1, 1) + noise
    return Tasks(x[:, :5], y[:, :5], x[:, 5:], y[:, 5:], mode)


def begin(algorithm: MetaAlgorithm, on: Any) -> Meta:
    return map_meta(lambda v: v.to(DOUBLE), algorithm.init(on.initial()))


def turned(algorithm: MetaAlgorithm, meta: Meta, tasks: Tasks, size: int = 5) -> Meta:
    assert algorithm.turn is not None
    return meta | algorithm.turn.change(meta, tasks.chunks(size))


def last(algorithm: MetaAlgorithm, meta: Meta, tasks: Tasks, steps: int = 2) -> Params:
    return list(algorithm.adapt(meta, tasks.support_x, tasks.support_y, steps))[-1]
