"""`metarun verify` finds a model that is not what it says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import oracles
import pytest
import torch
from oracles import maml
from tiny import tiny

from metarun import verify
from metarun.algorithms.baselinepp import baselinepp
from metarun.algorithms.clustered import clustered
from metarun.algorithms.protomaml import protomaml
from metarun.algorithms.protonet import protonet
from metarun.algorithms.r2d2 import r2d2
from metarun.algorithms.scratch import scratch
from metarun.checks import Row, Subject, checks
from metarun.problem import Problem
from metarun.tasks import Tasks
from test_verify import WAYS, found, one_row, PLAIN, EXPERIMENT, TASKWISE, GRADIENT, subject


@dataclass(frozen=True)
class Transductive(Problem):
    """Says that the support gives the statistics, and takes the queries'."""

    def predict(self, params, support_x, query_x):
        return torch.func.functional_call(self.model, params, (query_x,))


def test_a_normalisation_that_is_not_the_one_named_is_found() -> None:
    on = oracles.problem("conv4-support")
    assert one_row("normalisation", maml, on).state == "ok"
    other = Transductive(on.model, on.kind, on.train_classes)
    assert one_row("normalisation", maml, other).state == "fail"


class Backward(torch.autograd.Function):
    """The identity, with a wrong derivative."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, slope):
        return 1.5 * slope


class SecondOrder(torch.autograd.Function):
    """The identity, whose derivative is right and whose second derivative is not."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, slope):
        return Backward.apply(slope)


def test_a_layer_with_a_wrong_second_derivative_is_found() -> None:
    on = oracles.problem("mlp")
    on.model.body.activation = lambda x: SecondOrder.apply(torch.tanh(x))
    rows = found(maml, PLAIN, on)
    assert rows["Hessian symmetric"].state == "fail"
    assert rows["finite differences"].state == "fail"
    assert rows["estimators agree"].state == "ok"  # they agree on the wrong
