"""Adapters and context: the identity at the start, and a frozen body that nothing touches."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import pytest
import torch
from oracles import DOUBLE, MODELS, PLAIN, distance, image_tasks, maml, problem
from torch.func import functional_call

from metarun.algorithms.adapters import adapters
from metarun.algorithms.base import plain_learner
from metarun.algorithms.cavia import cavia
from metarun.algorithms.parts.masks import matched
from metarun.engine.cost import Flops
from metarun.errors import ConfigError
from metarun.gradients.estimators import estimate
from metarun.inner import Learner
from metarun.models.adapters import with_adapters, with_context
from metarun.problem import Params, Problem
from metarun.signals import Stop
from metarun.state import State
from metarun.train import train

sys.path.insert(0, str(Path(__file__).parents[1] / "train"))

from tiny import Log, tiny

SETTINGS = dict(inner_lr=0.3, steps=3, estimator="adjoint", proximal=0.0)
KINDS = ("film", "residual", "lora")


def shaken(params: Params) -> Params:
    generator = torch.Generator().manual_seed(4)
    return {
        name: value + 0.1 * torch.randn(value.shape, generator=generator, dtype=value.dtype)
        for name, value in params.items()
    }


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("added", [*KINDS, "context"])
def test_it_is_exactly_the_model_at_the_start_and_another_when_moved(
    added: str, model: str
) -> None:
    on, x = problem(model), image_tasks(model).query_x[0]
    net = with_context(on.model, 4) if added == "context" else with_adapters(on.model, added, 2)
    wrapped = Problem(net, on.kind)
    initial = wrapped.initial()
    own = set(initial) - set(on.initial())
    assert own
    assert not own & set(dict(on.model.named_parameters()))
    for name, value in on.initial().items():
        assert torch.equal(initial[name], value)
    plain = functional_call(on.model, on.initial(), (x,))
    assert torch.equal(functional_call(net, initial, (x,)), plain)
    moved = initial | shaken({name: initial[name] for name in own})
    if model != "conv4-group":  # whose last groups are one number, that it normalises to 0
        assert not torch.allclose(functional_call(net, moved, (x,)), plain)
    assert torch.equal(on.model(x), plain)  # the model given is left alone


@pytest.mark.parametrize("model", ["mlp", "conv4-batch", "conv4-max-pool", "resnet12"])
@pytest.mark.parametrize("kind", ["residual", "lora"])
def test_an_adapter_is_a_change_of_the_weight(kind: str, model: str) -> None:
    """A 1x1 beside a 3x3 is its middle; up @ down is added to the flattened weight."""
    on, x = problem(model), image_tasks(model).query_x[0]
    net = with_adapters(on.model, kind, 2)
    params = shaken(Problem(net, on.kind).initial())
    merged = {name: value.clone() for name, value in params.items() if "adapter_" not in name}
    for name, value in params.items():
        layer = name.rpartition(".")[0]
        weight = merged.get(f"{layer}.weight")
        if name.endswith("adapter_up"):
            weight += (value @ params[f"{layer}.adapter_down"]).view_as(weight)
        elif name.endswith("adapter_mix") and weight.dim() == 2:
            weight += value
        elif name.endswith("adapter_mix"):
            middle = weight.shape[2] // 2
            weight[:, :, middle, middle] += value
    expected = functional_call(on.model, merged, (x,))
    torch.testing.assert_close(functional_call(net, params, (x,)), expected)


def test_lora_moves_only_up_in_the_first_step() -> None:
    on, task = problem("conv4-batch"), image_tasks("conv4-batch", 1)
    masks = dict(adapt="adapters", learn="adapters")
    algorithm = adapters(on, **SETTINGS, kind="lora", rank=2, **masks)
    meta = algorithm.init(algorithm.problem.initial())
    first, second = list(algorithm.adapt(meta, task.support_x, task.support_y, 2))[:2]
    for name in meta["params"]:
        assert torch.equal(first[name], second[name]) is name.endswith("adapter_down")


def test_without_adapting_them_adapters_change_nothing() -> None:
    on, tasks = problem("conv4-batch"), image_tasks("conv4-batch")
    algorithm = adapters(
        on, **SETTINGS, kind="film", rank=1, adapt=["head", "body.*.conv.*"], learn="all"
    )
    plain = maml(on, **SETTINGS, adapt=["head", "body.*.conv.*"])
    found = algorithm.meta_grad(algorithm.init(algorithm.problem.initial()), tasks, 0)
    expected = plain.meta_grad(plain.init(on.initial()), tasks, 0)
    assert torch.equal(found.losses, expected.losses)
    shared = {n: found.gradient["params"][n] for n in expected.gradient["params"]}
    assert distance({"params": shared}, expected.gradient) < 1e-12


def test_adapters_and_norms_are_told_apart() -> None:
    on = problem("conv4-batch")
    own = Problem(with_adapters(on.model, "film", 1), on.kind)
    norms, added = (matched("algo.adapt", part, own) for part in ("norm", "adapters"))
    assert {name.rpartition(".")[2] for name in norms} == {"weight", "bias"}
    assert {name.rpartition(".")[2] for name in added} == {"adapter_scale", "adapter_shift"}
    assert len(norms) == len(added) == 8


def digest(params: Params) -> str:
    whole = hashlib.sha256()
    for name in sorted(params):
        whole.update(name.encode() + params[name].contiguous().numpy().tobytes())
    return whole.hexdigest()


@pytest.mark.parametrize(
    ("kind", "optimizer"), [("film", "adamw"), ("residual", "sgd"), ("lora", "adam")]
)
def test_a_frozen_body_is_untouched_by_training(kind: str, optimizer: str) -> None:
    experiment = tiny(
        "algo=adapters",
        f"algo.kind={kind}",
        "algo.learn=[adapters,head]",
        f"outer.optimizer={optimizer}",
        "outer.weight_decay=0.1",
    )
    state, log = State(experiment.initial()), Log()
    body = {
        n for n in experiment.problem.initial() if n.startswith("body.") and ".adapter_" not in n
    }
    assert set(state.meta["frozen"]) == body
    before, learned = digest(state.meta["frozen"]), digest(state.meta["params"])
    train(experiment, state, log, Stop(), Flops())
    assert digest(state.meta["frozen"]) == before
    assert digest(state.meta["params"]) != learned
    assert len([kind for kind, _, _ in log.records if kind == "train"]) == 12


@pytest.mark.parametrize(
    "words",
    [
        ("algo=maml", "algo.learn=head"),
        ("algo=anil", "algo.learn=last_block", "model.hidden=[8,8]"),
        ("algo=boil", "algo.learn=norm", "model.norm=layer"),
        ("algo=cavia", "algo.context=3"),
        ("algo=metasgd", "algo.learn=head"),
    ],
    ids=" ".join,
)
def test_whatever_is_not_learned_keeps_its_bytes(words: tuple[str, ...]) -> None:
    experiment = tiny(*words, "outer.optimizer=adamw", "outer.weight_decay=0.1")
    state = State(experiment.initial())
    before, learned = digest(state.meta["frozen"]), digest(state.meta["params"])
    assert set(state.meta["frozen"]) | set(state.meta["params"]) == set(
        experiment.problem.initial()
    )
    train(experiment, state, Log(), Stop(), Flops())
    assert digest(state.meta["frozen"]) == before
    assert digest(state.meta["params"]) != learned


def test_the_context_of_a_perceptron_is_further_inputs() -> None:
    on, x = problem("mlp"), image_tasks("mlp").query_x[0]
    net = with_context(on.model, 4)
    params = Problem(net, on.kind).initial()
    context = torch.linspace(-1, 1, 4, dtype=DOUBLE)
    first = "body.linears.0"
    found = functional_call(net, {**params, f"{first}.context": context}, (x,))
    both = torch.cat([x.flatten(1), context.expand(len(x), 4)], 1)
    weight = torch.cat([params[f"{first}.weight"], params[f"{first}.context_weight"]], 1)
    h = torch.tanh(both @ weight.T + params[f"{first}.bias"])
    h = torch.tanh(h @ params["body.linears.1.weight"].T + params["body.linears.1.bias"])
    torch.testing.assert_close(found, h @ params["head.weight"].T + params["head.bias"])


@pytest.mark.parametrize(
    ("model", "layer"),
    [
        ("conv4-batch", "body.blocks.2.norm"),
        ("conv4-none", "body.blocks.2.norm"),
        ("mlp-batch", "body.norms.1"),
        ("mlp", "body.linears.0"),
    ],
)
def test_a_context_acts_on_the_third_normalisation_or_the_last_or_the_input(
    model: str, layer: str
) -> None:
    net = with_context(problem(model).model, 4)
    assert net.adapted == {f"{layer}.context"}


@pytest.mark.parametrize("model", ["mlp", "conv4-batch", "resnet12"])
def test_cavia_is_maml_with_rates_of_zero_elsewhere(model: str) -> None:
    on, tasks = problem(model), image_tasks(model)
    algorithm = cavia(on, **SETTINGS, context=4)
    own = algorithm.problem
    meta = algorithm.init(own.initial())
    assert [name.rpartition(".")[2] for name in meta["frozen"]] == ["context"]
    assert not any(value.any() for value in meta["frozen"].values())
    found = algorithm.meta_grad(meta, tasks, 0)

    def update(meta, step, params, gradient):
        rates = {n: SETTINGS["inner_lr"] * n.endswith(".context") for n in params}
        return {n: v - rates[n] * gradient[n] for n, v in params.items()}

    learner: Learner = plain_learner(own, update)._replace(adapted=frozenset(own.initial()))
    whole = {"params": own.initial()}
    masked = estimate("unrolled", own, learner, SETTINGS["steps"])(whole, tasks, 0)
    torch.testing.assert_close(found.losses, masked.losses, rtol=1e-12, atol=0)
    expected = {n: masked.gradient["params"][n] for n in found.gradient["params"]}
    assert set(found.gradient) == {"params"}
    assert distance(found.gradient, {"params": expected}) < 1e-12


def test_adapters_need_a_model_that_has_them() -> None:
    with pytest.raises(ConfigError, match=r"algo.adapt: \"adapters\" matches no parameter"):
        maml(problem("mlp"), **{**PLAIN, **SETTINGS, "adapt": "adapters"})
