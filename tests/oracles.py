"""Problems with known answers, and small real ones, for the tests of gradients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Literal

import torch
from torch import Tensor

from metarun.algorithms.maml import maml as whole_maml
from metarun.gradients.estimators import Implicit
from metarun.gradients.metagradient import MetaGradient
from metarun.models.conv4 import conv4
from metarun.models.mlp import mlp
from metarun.models.net import Net
from metarun.models.resnet12 import resnet12
from metarun.problem import Meta, Params, Problem
from metarun.settings.sections import Outer
from metarun.tasks import Tasks

DOUBLE = torch.float64
SMOOTH = dict(bn_mode="transductive", adapt_norm=True, activation="tanh")
PLAIN = dict(
    inner_optimizer="sgd",
    proximal=0.0,
    adapt="all",
    learn="all",
    rates="none",
    per_step=False,
    transform="raw",
)
maml = partial(whole_maml, **PLAIN)  # of the whole model, by the given rate


def imaml(problem, *, solver="cg", iterations, tolerance=0.0, damping=0.0, **settings):
    """Build MAML with an implicit gradient, which stops at no residual unless told."""
    options = dict(iterations=iterations, tolerance=tolerance, damping=damping)
    return maml(problem, estimator=Implicit(solver=solver, **options), **settings)


CONV = dict(filters=4, downsample="stride", spatial="mean")


@dataclass(frozen=True)
class Quadratic:
    """The problem whose loss is (phi - y)' x (phi - y) / 2, with one parameter, `phi`.

    The support's x and y are a task's A and a, the query's are B and b: the closed forms of
    the reference need nothing else.
    """

    size: int
    kind: str = "regression"
    precision: str = "full"

    @property
    def model(self) -> SimpleNamespace:
        return SimpleNamespace(adapted=frozenset({"phi"}))

    def initial(self) -> Params:
        return {"phi": torch.linspace(-1, 1, self.size, dtype=DOUBLE)}

    def loss(self, params: Params, x: Tensor, y: Tensor) -> Tensor:
        apart = params["phi"] - y
        return 0.5 * apart @ x @ apart

    def query_loss(self, params: Params, support_x: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return self.loss(params, x, y)


def outer(optimizer: Literal["sgd", "adam"], lr: float) -> Outer:
    """Return an outer optimiser without anything more."""
    return Outer(
        optimizer=optimizer,
        lr=lr,
        schedule="constant",
        lr_min=0.0,
        batch=1,
        momentum=0.0,
        eps=1e-8,
        weight_decay=0.0,
        clip=None,
        on_divergence="raise",
        max_skips=0,
        diagnose=False,
    )


def quadratic_tasks(count: int, size: int, seed: int = 0) -> Tasks:
    """Return tasks with random symmetric positive A and B of eigenvalues between 0.2 and 1.5."""
    generator = torch.Generator().manual_seed(seed)

    def matrices() -> Tensor:
        q, _ = torch.linalg.qr(torch.randn(count, size, size, dtype=DOUBLE, generator=generator))
        eigenvalues = 0.2 + 1.3 * torch.rand(count, size, dtype=DOUBLE, generator=generator)
        return q @ torch.diag_embed(eigenvalues) @ q.mT

    def points() -> Tensor:
        return torch.randn(count, size, dtype=DOUBLE, generator=generator)

    return Tasks(matrices(), points(), matrices(), points(), torch.zeros(count, dtype=torch.long))


MODELS: dict[str, Callable[[], Net]] = {
    "mlp": lambda: mlp((1, 8, 8), 3, hidden=[6, 5], norm="none", init="default", **SMOOTH),
    "mlp-batch": lambda: mlp((1, 8, 8), 3, hidden=[6, 5], norm="batch", init="small", **SMOOTH),
    **{
        f"conv4-{norm}": lambda norm=norm: conv4((1, 8, 8), 3, **CONV, norm=norm, **SMOOTH)
        for norm in ("batch", "layer", "none")
    },
    "conv4-group": lambda: conv4(
        (1, 8, 8), 3, **{**CONV, "filters": 8, "spatial": "flatten"}, norm="group", **SMOOTH
    ),
    **{
        f"conv4-{mode}": lambda mode=mode: conv4(
            (1, 8, 8), 3, **CONV, norm="batch", **{**SMOOTH, "bn_mode": mode}
        )
        for mode in ("support", "one_by_one")
    },
    "conv4-held-norm": lambda: conv4(
        (1, 8, 8), 3, **CONV, norm="batch", **{**SMOOTH, "adapt_norm": False}
    ),
    "conv4-max-pool": lambda: conv4(
        (1, 16, 16), 3, **{**CONV, "downsample": "max_pool"}, norm="batch", **SMOOTH
    ),
    "resnet12": lambda: resnet12((1, 8, 8), 3, widths=[4, 5], norm="batch", **SMOOTH),
}


def problem(model: str, dtype: torch.dtype = DOUBLE) -> Problem:
    """Return a 3-way classification problem on a small smooth model with fixed weights."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        net = MODELS[model]().to(dtype)
        with torch.no_grad():  # small initial weights would make a test weak
            for parameter in net.parameters():
                parameter += 0.1 * torch.randn_like(parameter)
    return Problem(net, "classification", train_classes=7)


def image_tasks(model: str, count: int = 3, shots: int = 2, dtype: torch.dtype = DOUBLE) -> Tasks:
    """Return random 3-way tasks with images that the model takes."""
    side = 16 if model == "conv4-max-pool" else 8
    generator = torch.Generator().manual_seed(5)

    def images(rows: int) -> Tensor:
        return torch.rand(count, rows, 1, side, side, dtype=dtype, generator=generator)

    labels = torch.arange(3).repeat(count, 1)
    return Tasks(
        images(3 * shots),
        labels.repeat(1, shots),
        images(6),
        labels.repeat(1, 2),
        torch.arange(count) % 2,
    )


def norm(tree: Meta) -> float:
    """Return the Euclidean norm over the whole tree."""
    return float(torch.stack([v.norm() for p in tree.values() for v in p.values()]).norm())


def distance(a: Meta, b: Meta) -> float:
    """Return the norm of the difference, relative to b's.

    Leaf by leaf would be noise: a bias before a batch normalisation has a gradient of zero.
    """
    apart = {g: {n: a[g][n] - b[g][n] for n in params} for g, params in b.items()}
    return norm(apart) / norm(b)


def finite_difference(
    objective: Callable[[Meta], MetaGradient], meta: Meta, gradient: Meta, h: float = 1e-6
) -> float:
    """Return the worst relative error of `gradient` along 5 random unit directions."""
    generator = torch.Generator().manual_seed(11)
    worst = 0.0
    for _ in range(5):
        direction = {
            group: {
                n: torch.randn(v.shape, dtype=DOUBLE, generator=generator)
                for n, v in params.items()
            }
            for group, params in gradient.items()
        }
        length = norm(direction)

        def moved(by: float, direction: Meta = direction, length: float = length) -> float:
            there = {
                group: {
                    n: v + (by / length) * direction[group][n] if group in direction else v
                    for n, v in params.items()
                }
                for group, params in meta.items()
            }
            return float(objective(there).losses.mean())

        numeric = (moved(h) - moved(-h)) / (2 * h)
        exact = sum(
            float((direction[g][n] * v).sum()) / length
            for g, params in gradient.items()
            for n, v in params.items()
        )
        worst = max(worst, abs(numeric - exact) / norm(gradient))
    return worst
