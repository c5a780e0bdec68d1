"""The outer rate over the budget, and what a record says of a figure's tail."""

from __future__ import annotations

from dataclasses import replace

import oracles
import pytest
import torch

from metarun.numerics.outer import OuterOptimizer, learning_rate
from metarun.settings.sections import Outer
from metarun.train import _spread

RATE, LEAST, PARTS = 0.02, 0.003, 8


def settings(schedule: str) -> Outer:
    return replace(oracles.outer("sgd", RATE), schedule=schedule, lr_min=LEAST)


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_rates_are_those_of_torch_s_schedules(schedule: str) -> None:
    value = torch.nn.Parameter(torch.zeros(1))
    other = torch.optim.SGD([value], lr=RATE)
    theirs = {
        "constant": lambda: torch.optim.lr_scheduler.ConstantLR(other, 1.0),
        "linear": lambda: torch.optim.lr_scheduler.LinearLR(other, 1.0, LEAST / RATE, PARTS),
        "cosine": lambda: torch.optim.lr_scheduler.CosineAnnealingLR(other, PARTS, LEAST),
    }[schedule]()
    for part in range(PARTS + 1):
        assert learning_rate(settings(schedule), part / PARTS) == pytest.approx(
            other.param_groups[0]["lr"], rel=1e-9
        )
        other.step()
        theirs.step()
    end = learning_rate(settings(schedule), 1.0)
    assert learning_rate(settings(schedule), 1.1) == end  # a budget in seconds is overrun


def test_a_step_moves_by_the_rate_of_what_is_spent() -> None:
    for done, rate in ((0.0, RATE), (0.5, (RATE + LEAST) / 2), (1.0, LEAST)):
        meta = {"params": {"phi": torch.zeros(2)}}
        OuterOptimizer(settings("cosine"), meta).step({"params": {"phi": torch.ones(2)}}, {}, done)
        torch.testing.assert_close(meta["params"]["phi"], torch.full((2,), -rate))


def test_a_figure_s_tail_is_told_by_its_quantiles() -> None:
    found = _spread("ratio", torch.arange(101.0).flip(0).double())
    assert found == {"ratio_median": 50.0, "ratio_p95": 95.0, "ratio_max": 100.0}
