"""The table of algorithms; a new one joins the contract by adding a row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from oracles import maml

from metarun.algorithms.adapters import adapters
from metarun.algorithms.alfa import alfa
from metarun.algorithms.base import MetaAlgorithm
from metarun.algorithms.baselinepp import baselinepp
from metarun.algorithms.cavia import cavia
from metarun.algorithms.centroid import centroid
from metarun.algorithms.clustered import clustered
from metarun.algorithms.logreg import logreg
from metarun.algorithms.mamlpp import mamlpp
from metarun.algorithms.metacurvature import metacurvature
from metarun.algorithms.mixture import mixture
from metarun.algorithms.mmaml import mmaml
from metarun.algorithms.multi_maml import multi_maml
from metarun.algorithms.protomaml import protomaml
from metarun.algorithms.protonet import protonet
from metarun.algorithms.r2d2 import r2d2
from metarun.algorithms.reptile import reptile
from metarun.algorithms.scratch import scratch
from metarun.algorithms.signmaml import signmaml
from metarun.algorithms.transfer import transfer
from metarun.algorithms.tsamaml import tsamaml
from metarun.gradients.estimators import Evolution, Implicit, Truncated
from metarun.problem import Problem


@dataclass(frozen=True)
class Case:
    """One algorithm with settings.

    `exact`: is meta_grad the true gradient of its losses' mean? `noise`: what rounding may come
    to in a parameter; more where an update divides by a gradient that ought to be zero.
    """

    name: str
    factory: Callable[..., MetaAlgorithm]
    settings: dict[str, Any]
    exact: bool
    noise: float = 1e-12

    def build(self, on: Problem) -> MetaAlgorithm:
        return self.factory(on, **self.settings)


STEPS = dict(inner_lr=0.1, steps=3)
LOOP = dict(**STEPS, proximal=0.0)
SPLIT = dict(starts=2, own="all", spread=0.3, balance=0.1, share_rate=0.1, restart=0.5)
HARD = dict(**SPLIT, folds=2, graded_by="support", warm_up=0, warm_up_by="mean")
MIXED = dict(
    **LOOP,
    **SPLIT,
    estimator="adjoint",
    score="holdout",
    temperature=1.0,
    temperature_end=None,
    temperature_steps=5,
    balance_loss=0.0,
    entropy_loss=0.0,
    width=5,
)
GATE = dict(weights="gate", combine="predictions")
RANKED = dict(warm_up=50, warm_up_by="rank")
TWICE = dict(cluster_on="body", cluster_steps=2)
PULLED = dict(inner_lr=0.05, proximal=10.0)
SOLVER = dict(tolerance=0.0, damping=0.0)
WALK = dict(inner_lr=0.01, steps=4, batch=5, beta2=0.999)
PLUS = dict(
    rates="tensor",
    per_step=True,
    transform="raw",
    multi_step_until=100,
    per_step_norm=True,
    first_order_until=0,
)
GRID = [0.05, 0.4]
COSINES = dict(scale=2.0, many_scale=10.0, lr_grid=GRID)
CASES = [
    Case("maml", maml, {**STEPS, "estimator": "adjoint"}, exact=True),
    Case("maml-recompute", maml, {**STEPS, "estimator": "recompute"}, exact=True),
    Case("maml-unrolled", maml, {**STEPS, "estimator": "unrolled"}, exact=True),
    Case("fomaml", maml, {**STEPS, "estimator": "first_order"}, exact=False),
    *(
        Case(name, maml, {**STEPS, "estimator": "adjoint", **settings}, exact=True)
        for name, settings in {
            "anil": dict(adapt="head"),
            "boil": dict(adapt="body"),
            "maml-last-block": dict(adapt="last_block", learn="head"),
            "metasgd": dict(rates="parameter"),
            "maml-exp-rates": dict(rates="tensor", per_step=True, transform="exp"),
            "maml-softplus-rate": dict(rates="global", transform="softplus"),
        }.items()
    ),
    Case("anil-first-order", maml, {**STEPS, "estimator": "first_order", "adapt": "head"}, False),
    Case("mamlpp", mamlpp, {**STEPS, **PLUS, "estimator": "adjoint"}, exact=True),
    Case("alfa", alfa, {**STEPS, "estimator": "adjoint", "decay": 0.05}, exact=True),
    Case("metacurvature", metacurvature, {**STEPS, "estimator": "adjoint"}, exact=True),
    Case("cavia", cavia, {**LOOP, "estimator": "adjoint", "context": 4}, exact=True),
    *(
        Case(
            f"adapters-{kind}",
            adapters,
            {**LOOP, "estimator": "adjoint", "kind": kind, "rank": 2, **masks},
            exact=True,
        )
        for kind, masks in {
            "film": dict(adapt=["adapters", "head"], learn=["adapters", "head"]),
            "residual": dict(adapt="adapters", learn="all"),
            "lora": dict(adapt=["adapters", "head"], learn="all"),
        }.items()
    ),
    Case("maml-truncated", maml, {**STEPS, "estimator": Truncated(last=1)}, exact=False),
    Case("es_maml", maml, {**STEPS, "estimator": Evolution(pairs=3, sigma=0.05)}, exact=False),
    *(
        Case(
            name,
            maml,
            {**PULLED, **loop, "estimator": Implicit(solver=solver, iterations=count, **SOLVER)},
            exact=name == "imaml-solved",
        )
        for name, loop, solver, count in (
            ("imaml", dict(inner_lr=0.02, steps=3), "cg", 1),
            ("imaml-solved", dict(steps=80), "cg", 25),
            ("imaml-neumann", dict(steps=3), "neumann", 1),
        )
    ),
    Case("reptile", reptile, {**WALK, "optimizer": "adam"}, exact=False, noise=1e-7),
    Case("reptile-fresh", reptile, {**WALK, "optimizer": "adam_fresh"}, exact=False, noise=1e-7),
    Case("reptile-sgd", reptile, {**WALK, "optimizer": "sgd"}, exact=False),
    Case("signmaml", signmaml, {"inner_lr": 0.01, "steps": 3}, exact=True),
    Case(
        "clustered",
        clustered,
        {**LOOP, **HARD, "estimator": "adjoint", "assign": "after"},
        exact=True,
    ),
    Case(
        "clustered-holdout",
        clustered,
        {**LOOP, **HARD, "estimator": "adjoint", "assign": "holdout"},
        exact=True,
    ),
    Case(
        "clustered-one-out",
        clustered,
        {**LOOP, **HARD, "estimator": "adjoint", "assign": "holdout", "folds": None},
        exact=True,
    ),
    Case(
        "clustered-graded",
        clustered,
        {**LOOP, **HARD, "estimator": "adjoint", "assign": "after", "graded_by": "query"},
        exact=True,
    ),
    Case(
        "clustered-heads",
        clustered,
        {**LOOP, **HARD, "estimator": "adjoint", "assign": "after", "own": "head"},
        exact=True,
    ),
    Case(
        "clustered-ranked",
        clustered,
        {**LOOP, **HARD, "estimator": "adjoint", "assign": "after", **RANKED},
        exact=False,
    ),
    Case("multi_maml", multi_maml, {**LOOP, "estimator": "adjoint", "starts": 2}, exact=True),
    Case(
        "mmaml", mmaml, {**LOOP, "estimator": "adjoint", "width": 5, "inner_clip": 0.1}, exact=True
    ),
    Case("mixture-em", mixture, {**MIXED, "weights": "em", "combine": "predictions"}, False),
    Case("mixture-em-start", mixture, {**MIXED, "weights": "em", "combine": "parameters"}, False),
    Case("mixture-gate", mixture, {**MIXED, "weights": "gate", "combine": "predictions"}, True),
    Case(
        "mixture-gate-start", mixture, {**MIXED, "weights": "gate", "combine": "parameters"}, True
    ),
    Case("mixture-gate-heads", mixture, {**MIXED, **GATE, "own": "head"}, True),
    Case("mixture-gate-cooled", mixture, {**MIXED, **GATE, "temperature_end": 0.1}, True),
    Case(
        "tsamaml",
        tsamaml,
        {**LOOP, "estimator": "adjoint", "starts": 2, "warm_up": 1, "tasks": 4, **TWICE},
        exact=True,
    ),
    Case("scratch", scratch, {"lr_grid": GRID}, exact=False),
    Case("protonet", protonet, {"distance": "euclidean", "scale": 1.0}, exact=True),
    Case("protonet-cosine", protonet, {"distance": "cosine", "scale": 5.0}, exact=True),
    Case("protomaml", protomaml, {**LOOP, "estimator": "adjoint"}, exact=True),
    Case("protomaml-unrolled", protomaml, {**LOOP, "estimator": "unrolled"}, exact=True),
    Case("protomaml-first", protomaml, {**LOOP, "estimator": "first_order"}, exact=False),
    Case("r2d2", r2d2, {"ridge": 0.5, "scale": 3.0}, exact=True),
    *(
        Case(f"transfer-{part}", transfer, {"finetune": part, "head": head, "lr_grid": GRID}, True)
        for part, head in (("all", "imprinted"), ("last_block", "zeros"), ("head", "zeros"))
    ),
    *(
        Case(f"baselinepp-{head}", baselinepp, {**COSINES, "finetune": part, "head": head}, True)
        for part, head in (("all", "imprinted"), ("head", "random"))
    ),
    Case("logreg", logreg, {"penalty_grid": [1.0], "iterations": 99, "tolerance": 1e-8}, True),
    Case("centroid", centroid, {"centre_grid": [1.0], "unit_grid": [1.0], "mean_rate": 0.1}, True),
]
