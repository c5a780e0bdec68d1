"""Models: shapes, normalisation modes as they say, and safety under vmap."""

from __future__ import annotations

import pytest
import torch
from oracles import CONV, DOUBLE, MODELS, SMOOTH, distance, image_tasks, problem
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from metarun.errors import ConfigError
from metarun.models.conv4 import conv4
from metarun.models.layers import Norm
from metarun.models.mlp import mlp
from metarun.models.net import alone_in_norm, set_running, use_running
from metarun.models.resnet12 import resnet12

PAPER = dict(norm="batch", bn_mode="transductive", adapt_norm=True, activation="relu")


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def test_parameter_counts_are_the_papers() -> None:
    """112,261 with gamma and beta for the strided network, 32,901 for miniImageNet's."""
    omniglot = conv4((1, 28, 28), 5, filters=64, downsample="stride", spatial="mean", **PAPER)
    assert count(omniglot) == 112_261
    flat = conv4((1, 28, 28), 5, filters=64, downsample="stride", spatial="flatten", **PAPER)
    assert count(flat) == 113_221
    mini = conv4((3, 84, 84), 5, filters=32, downsample="max_pool", spatial="flatten", **PAPER)
    assert count(mini) == 32_901
    sine = mlp((1,), 1, hidden=[40, 40], init="default", **{**PAPER, "norm": "none"})
    assert count(sine) == 1_761


@pytest.mark.parametrize("name", MODELS)
def test_outputs_have_one_row_an_input(name: str) -> None:
    on = problem(name)
    x = image_tasks(name).query_x[0]
    assert on.loss(on.initial(), x, torch.arange(6) % 3).shape == ()
    assert on.features(on.initial(), x).shape == (6, on.model.width)
    assert on.predict(on.initial(), x[:3], x).shape == (6, 3)


def test_normalisation_modes_depend_on_other_queries_only_where_they_say_so() -> None:
    for mode, depends in {"transductive": True, "support": False, "one_by_one": False}.items():
        on = problem("conv4-batch")
        on.model.bn_mode = mode
        task = image_tasks("conv4-batch")
        support, query = task.support_x[0], task.query_x[0]
        other = torch.cat([query[:1], 2 * query[1:]])
        first, second = (on.predict(on.initial(), support, q)[0] for q in (query, other))
        assert torch.allclose(first, second, rtol=1e-12) is not depends, mode


def test_one_by_one_is_the_support_and_that_query_in_one_batch() -> None:
    on = problem("conv4-one_by_one")
    task = image_tasks("conv4-one_by_one")
    support, query = task.support_x[0], task.query_x[0]
    together = torch.cat([support, query[4:5]])
    expected = functional_call(on.model, on.initial(), (together,))[-1]
    torch.testing.assert_close(on.predict(on.initial(), support, query)[4], expected)


def test_an_input_is_alone_where_nothing_else_gives_statistics() -> None:
    conv = dict(filters=4, downsample="stride", spatial="mean", **PAPER)
    flat = dict(hidden=[4], init="default", **PAPER)
    assert alone_in_norm(mlp((3,), 2, **flat), (3,))
    assert not alone_in_norm(mlp((3,), 2, **{**flat, "norm": "layer"}), (3,))
    assert not alone_in_norm(conv4((1, 28, 28), 5, **conv), (1, 28, 28))
    assert alone_in_norm(conv4((1, 8, 8), 5, **conv), (1, 8, 8))  # whose last block has one pixel


def test_running_averages_are_means_over_the_batches_given() -> None:
    model = MODELS["conv4-batch"]().to(DOUBLE)
    params = {n: p.detach() for n, p in model.named_parameters()}
    batches = [image_tasks("conv4-batch", 1).query_x[0] * scale for scale in (1.0, 3.0)]
    set_running(model, [(params, x) for x in batches])
    first = model.body.blocks[0]
    seen = [first.conv(x) for x in batches]
    mean = torch.stack([h.mean((0, 2, 3)) for h in seen]).mean(0)
    variance = torch.stack([h.var((0, 2, 3), correction=0) for h in seen]).mean(0)
    torch.testing.assert_close(first.norm.mean, mean)
    torch.testing.assert_close(first.norm.variance, variance)
    use_running(model, True)
    alone, among = model(batches[0][:1]), model(batches[0])
    torch.testing.assert_close(alone[0], among[0])
    use_running(model, False)
    assert not torch.allclose(model(batches[0]), among)


@pytest.mark.parametrize("kind", ["batch", "group", "layer"])
def test_norms_agree_with_torch(kind: str) -> None:
    x = torch.randn(4, 16, 5, 5, dtype=DOUBLE)
    theirs = {
        "batch": nn.BatchNorm2d(16),
        "group": nn.GroupNorm(8, 16),
        "layer": nn.GroupNorm(1, 16),
    }[kind].to(DOUBLE)
    ours = Norm(16, kind).to(DOUBLE)
    with torch.no_grad():
        for norm in (ours, theirs):
            norm.weight.copy_(torch.linspace(0.5, 2, 16))
            norm.bias.copy_(torch.linspace(-1, 1, 16))
    torch.testing.assert_close(ours(x), theirs(x))


def second_order_gap(norm: nn.Module) -> float:
    """Return how far MAML's gradient through vmap is from the one of a loop, relative."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 4, 3, stride=2, padding=1), norm, nn.Tanh(), nn.Flatten()]
    net = nn.Sequential(*layers, nn.Linear(16, 3)).to(DOUBLE)
    tasks = image_tasks("conv4-batch")
    params = {n: p.detach() for n, p in net.named_parameters()}

    def loss(p: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return nn.functional.cross_entropy(functional_call(net, p, (x,)), y)

    def after(p: dict[str, Tensor], x: Tensor, y: Tensor, qx: Tensor, qy: Tensor) -> Tensor:
        inner = grad(loss)(p, x[:, :, :4, :4], y)
        return loss({n: p[n] - 0.4 * inner[n] for n in p}, qx[:, :, :4, :4], qy)

    sets = (tasks.support_x, tasks.support_y, tasks.query_x, tasks.query_y)
    together = grad(lambda p: vmap(after, in_dims=(None, 0, 0, 0, 0))(p, *sets).mean())(params)
    one_by_one = [grad(after)(params, *(s[t] for s in sets)) for t in range(len(tasks))]
    loop = {n: torch.stack([found[n] for found in one_by_one]).mean(0) for n in params}
    return distance({"": together}, {"": loop})


def test_our_norm_is_right_under_vmap_and_the_fused_one_is_caught() -> None:
    """The control: torch's own batch normalisation is silently wrong here, and must be seen."""
    assert second_order_gap(Norm(4, "batch")) < 1e-12
    fused = nn.BatchNorm2d(4, track_running_stats=False)
    assert second_order_gap(fused) > 1e-5


def test_small_init_is_cut_normal_with_zero_biases() -> None:
    model = mlp((1,), 1, hidden=[40, 40], init="small", **{**PAPER, "norm": "none"})
    weights = torch.cat([p.flatten() for n, p in model.named_parameters() if "weight" in n])
    assert weights.abs().max() <= 0.02
    assert float(weights.detach().std()) == pytest.approx(0.0088, rel=0.1)
    assert all(not p.any() for n, p in model.named_parameters() if "bias" in n)


def test_models_refuse_inputs_that_they_cannot_take() -> None:
    with pytest.raises(ConfigError, match="use model=mlp"):
        conv4((1,), 5, **CONV, norm="batch", **SMOOTH)
    with pytest.raises(ConfigError, match="needs 16 x 16 pixels"):
        conv4((1, 8, 8), 5, **{**CONV, "downsample": "max_pool"}, norm="batch", **SMOOTH)
    for width in (4, 10, 12):  # by chance, the first layers' numbers can be dealt out
        with pytest.raises(ConfigError, match=rf"norm=group: {width} channels do not make 8 equal"):
            conv4((1, 28, 28), 5, **{**CONV, "filters": width}, norm="group", **SMOOTH)
    with pytest.raises(ConfigError, match="at least 16 pixels"):
        resnet12((1, 8, 8), 5, widths=[4] * 4, norm="batch", **SMOOTH)
