"""`metarun verify` finds a model that is not what it says."""

from __future__ import annotations

from dataclasses import dataclass

import oracles
import torch
from oracles import maml
from test_verify import PLAIN, found, one_row

from metarun.problem import Problem


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
    assert "kink" not in rows["finite differences"].detail, "none is as wrong"
    assert rows["estimators agree"].state == "ok"  # they agree on the wrong


def test_what_is_no_number_is_no_derivative() -> None:
    on = oracles.problem("mlp")
    on.model.body.activation = lambda x: torch.tanh(x) * float("nan")
    row = one_row("finite differences", maml, on)
    assert (row.state, "relative error nan" in row.detail) == ("fail", True)
