"""Masks: what is adapted, what is learned, and what a part costs."""

from __future__ import annotations

import pytest
import torch
from oracles import CONV, SMOOTH, distance, image_tasks, maml, problem
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from metarun.algorithms.base import plain_learner
from metarun.algorithms.parts.masks import matched
from metarun.errors import ConfigError
from metarun.gradients.estimators import estimate
from metarun.models.conv4 import conv4
from metarun.models.net import Net
from metarun.problem import Meta, Problem
from metarun.tasks import Tasks

SETTINGS = dict(inner_lr=0.3, steps=3, estimator="adjoint")
LAST = ["body.blocks.3.conv.weight", "body.blocks.3.conv.bias"]


@pytest.mark.parametrize(
    ("model", "mask", "names"),
    [
        ("conv4-none", "head", ["head.weight", "head.bias"]),
        ("conv4-none", "last_block", ["head.weight", "head.bias", *LAST]),
        ("conv4-none", "*.3.*.weight", LAST[:1]),
        ("conv4-none", ["head", "*.3.*.bias"], ["head.weight", "head.bias", LAST[1]]),
        ("mlp-batch", "norm", [f"body.norms.{i}.{n}" for i in (0, 1) for n in ("weight", "bias")]),
        (
            "mlp-batch",
            "last_block",
            ["head.weight", "head.bias"]
            + [f"body.{part}.1.{n}" for part in ("linears", "norms") for n in ("weight", "bias")],
        ),
    ],
)
def test_a_mask_matches_its_parameters(model: str, mask: str, names: list[str]) -> None:
    assert matched("algo.adapt", mask, problem(model)) == set(names)


class Two(nn.Module):
    """Layers that have names of their own, of which no inner part has a number."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.top = nn.Linear(4, 5), nn.Sequential()
        self.top.add_module("mix", nn.Linear(5, 6))


@pytest.mark.parametrize(
    ("body", "last"),
    [
        (nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 6)), "body.2."),
        (nn.ModuleDict({"net": nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 6))}), "body.net.1."),
        (Two(), "body.top.mix."),
        (nn.Linear(4, 6), "body."),
        (nn.Flatten(), "nothing"),
    ],
)
def test_the_last_block_of_a_model_of_one_s_own_is_found(body: nn.Module, last: str) -> None:
    own = Net(body, 6, 3, norm="none", bn_mode="transductive", adapt_norm=True)
    on = Problem(own, "classification")
    wanted = {name for name in on.initial() if name.startswith((last, "head."))}
    assert matched("algo.adapt", "last_block", on) == wanted


def test_body_and_head_are_all() -> None:
    on = problem("resnet12")
    parts = [matched("algo.adapt", part, on) for part in ("body", "head", "all")]
    assert parts[0] | parts[1] == parts[2] == set(on.initial())
    assert not parts[0] & parts[1]


@pytest.mark.parametrize(
    ("model", "mask", "said"),
    [
        ("mlp", "hed", r"algo.adapt: \"hed\" matches no parameter .*did you mean head\?"),
        ("mlp", ["head", "body.blocks.*"], r"algo.adapt: \"body.blocks.\*\" matches no"),
        ("mlp", "norm", r"\"norm\" matches no parameter of this model; must be all, head, body, l"),
        ("mlp", "adapter", r"\"adapter\" matches no .* model; must be .*, last_block, a pattern"),
        ("mlp", [], r"algo.adapt: \[\] names no parameter"),
        ("conv4-held-norm", "norm", r"held by the model .* model.adapt_norm=true"),
    ],
)
def test_a_mask_that_matches_nothing_is_refused_in_one_line(
    model: str, mask: str | list[str], said: str
) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        maml(problem(model), **SETTINGS, adapt=mask)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("model", ["conv4-support", "mlp-batch"])
@pytest.mark.parametrize("estimator", ["adjoint", "recompute", "unrolled", "first_order"])
@pytest.mark.parametrize(("part", "held"), [("head", "body."), ("body", "head.")])
def test_a_part_is_maml_with_rates_of_zero_elsewhere(
    model: str, estimator: str, part: str, held: str
) -> None:
    """The other path moves every parameter, by rates that are 0; no features are kept."""
    on, tasks = problem(model), image_tasks(model)
    algorithm = maml(on, **{**SETTINGS, "estimator": estimator}, adapt=part)
    meta = algorithm.init(on.initial())
    found = algorithm.meta_grad(meta, tasks, 0)

    def update(meta, step, params, gradient):
        rates = {n: 0.0 if n.startswith(held) else SETTINGS["inner_lr"] for n in params}
        return {n: v - rates[n] * gradient[n] for n, v in params.items()}

    learner = plain_learner(on, update)
    masked = estimate(estimator, on, learner, SETTINGS["steps"])(meta, tasks, 0)
    torch.testing.assert_close(found.losses, masked.losses, rtol=1e-12, atol=1e-12)
    assert distance(found.gradient, masked.gradient) < 1e-12


def test_rates_of_zero_can_be_learned_ones() -> None:
    on, tasks = problem("conv4-batch"), image_tasks("conv4-batch")
    anil, metasgd = maml(on, **SETTINGS, adapt="head"), maml(on, **SETTINGS, rates="parameter")
    meta = metasgd.init(on.initial())
    for name, rate in meta["rates_learned"].items():
        if name.startswith("body."):
            rate.zero_()
    found = anil.meta_grad(anil.init(on.initial()), tasks, 0).gradient["params"]
    masked = metasgd.meta_grad(meta, tasks, 0).gradient["params"]
    assert distance({"params": found}, {"params": masked}) < 1e-12


def paper_task() -> tuple[Problem, Tasks]:
    """Return the network of Finn et al. and one Omniglot-shaped 5-way 1-shot task."""
    model = conv4((1, 28, 28), 5, **{**CONV, "filters": 64}, norm="batch", **SMOOTH)
    labels = torch.arange(5)[None]
    x = torch.rand(2, 1, 5, 1, 28, 28)
    return Problem(model, "classification"), Tasks(x[0], labels, x[1], labels, torch.zeros(1))


def flops(steps: int, on: Problem | None = None, **settings: object) -> int:
    on, tasks = paper_task() if on is None else (on, image_tasks("conv4-batch", 1))
    algorithm = maml(on, **{**SETTINGS, "steps": steps, **settings})
    meta = algorithm.init(on.initial())
    with FlopCounterMode(display=False) as counter:
        algorithm.meta_grad(meta, tasks, 0)
    return counter.get_total_flops()


@pytest.mark.parametrize("estimator", ["adjoint", "first_order"])
def test_five_steps_of_a_head_cost_what_one_does(estimator: str) -> None:
    """The body runs once over the support; reference, section 2."""
    one, five = (flops(k, adapt="head", estimator=estimator) for k in (1, 5))
    assert one < five < 1.001 * one
    assert flops(5, estimator=estimator) > 2 * five


def test_what_is_frozen_costs_no_gradient_of_its_own() -> None:
    """Without gradients of weights a backward pass is half as dear; of the body, none at all."""
    head = flops(3, adapt="head", learn="head")
    assert head < 0.4 * flops(3, adapt="head")  # two forward passes of six
    assert flops(3, adapt="head", estimator="first_order") < 0.8 * flops(3, adapt="head")
    learned = flops(3, adapt="last_block", learn="last_block")
    assert learned < 0.8 * flops(3, adapt="last_block")


def test_adaptation_computes_the_features_once() -> None:
    on, tasks = paper_task()

    def cost(steps: int) -> int:
        algorithm = maml(on, **SETTINGS, adapt="head")
        meta = algorithm.init(on.initial())
        with FlopCounterMode(display=False) as counter:
            list(algorithm.adapt(meta, tasks.support_x, tasks.support_y, steps))
        return counter.get_total_flops()

    assert cost(10) < 1.01 * cost(1)


@pytest.mark.parametrize("adapt", ["all", "head", "body"])
def test_first_order_never_asks_for_a_second_order_graph(
    adapt: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []
    plain = torch.autograd.grad

    def watched(*args: object, **options: object) -> object:
        asked.append(bool(options.get("create_graph", False)))
        return plain(*args, **options)

    monkeypatch.setattr(torch.autograd, "grad", watched)
    flops(3, problem("conv4-batch"), adapt=adapt, estimator="first_order")
    assert len(asked) >= 4
    assert not any(asked)
    asked.clear()
    flops(3, problem("conv4-batch"), adapt=adapt)  # the control
    assert any(asked)


@pytest.mark.parametrize("estimator", ["adjoint", "recompute", "unrolled", "first_order"])
@pytest.mark.parametrize("adapt", ["all", "head", "body"])
@pytest.mark.parametrize("learn", ["head", "body"])
def test_what_is_not_learned_is_held(learn: str, adapt: str, estimator: str) -> None:
    """The gradient of what is learned is the whole's, whether the rest is adapted or not."""
    on, tasks = problem("mlp-batch"), image_tasks("mlp-batch")
    settings = {**SETTINGS, "estimator": estimator, "adapt": adapt}
    algorithm, whole = maml(on, **settings, learn=learn), maml(on, **settings)
    meta = algorithm.init(on.initial())
    assert set(meta["params"]) == {n for n in on.initial() if n.startswith(f"{learn}.")}
    assert set(meta["params"]) | set(meta["frozen"]) == set(on.initial())
    found = algorithm.meta_grad(meta, tasks, 0)
    expected = whole.meta_grad(whole.init(on.initial()), tasks, 0)
    assert set(found.gradient) == {"params"}
    part: Meta = {"params": {n: expected.gradient["params"][n] for n in meta["params"]}}
    assert distance(found.gradient, part) < 1e-12
    assert torch.equal(found.losses, expected.losses)
    assert not any(value.requires_grad for value in meta["frozen"].values())
