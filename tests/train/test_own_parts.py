"""Data, networks and algorithms of one's own: what they are not is said before a run begins."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from math import prod, sin
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import tiny_config
from torch import Tensor, nn
from torch.nn import functional as F

from metarun.algorithms.base import MetaAlgorithm, adapting, plain_learner, shared_params
from metarun.assemble import assemble
from metarun.config import check
from metarun.contract import as_algorithm, as_meta, as_net, as_source, check_examples, check_tasks
from metarun.data.source import Split
from metarun.errors import ConfigError, DataError
from metarun.evaluate import counted
from metarun.inner import Learner, adapt, gradient_descent
from metarun.models.net import Net
from metarun.problem import Problem
from metarun.settings.sections import TaskShape
from metarun.tasks import Tasks

SHAPE = TaskShape(ways=3, shots=2, queries=2, test_queries=4)
FEATURES = (1, 4, 4)


@dataclass
class Dots:
    """Random dots in three classes; `spoil` is done to every batch of tasks."""

    spoil: Callable[[Tasks], Any] = lambda tasks: tasks
    kind = "classification"
    features = FEATURES
    targets = 0
    modes = ("all",)
    train_classes = 3
    fingerprint = {}  # noqa: RUF012

    def tasks(
        self,
        split: Split,
        first: int,
        count: int,
        *,
        ways: int,
        shots: int,
        queries: int,
        seed: int,
    ) -> Any:
        def inputs(part: int, rows: int) -> Tensor:
            task = torch.arange(first, first + count, dtype=torch.float32).view(-1, 1, 1, 1, 1)
            grid = torch.arange(rows * prod(FEATURES)).view(1, rows, *FEATURES)
            return torch.sin(100 * (grid + 1) * (task + 1) + part + seed + len(split))

        label = torch.arange(ways)
        return self.spoil(
            Tasks(
                inputs(0, ways * shots),
                label.repeat_interleave(shots).expand(count, -1),
                inputs(1, ways * queries),
                label.repeat_interleave(queries).expand(count, -1),
                torch.zeros(count, dtype=torch.long),
            )
        )

    def examples(self, first: int, count: int, *, seed: int) -> tuple[Tensor, Tensor]:
        one = self.tasks("train", first, 1, ways=3, shots=count, queries=1, seed=seed)
        return one.support_x[0, :count], one.support_y[0, ::count][:count]

    def check(self, *, ways: int, shots: int, queries: int) -> None: ...
    def to(self, device: torch.device) -> Dots:
        return self


def looked_at(spoil: Callable[[Tasks], Any]) -> None:
    check_tasks("dataset=own", as_source("dataset=own", Dots(spoil)), SHAPE, 0)


def test_tasks_as_they_should_be() -> None:
    looked_at(lambda tasks: tasks)
    looked_at(lambda tasks: replace(tasks, query_x=tasks.query_x.double()))
    looked_at(lambda t: replace(t, query_x=t.query_x + 1e-7 * len(t)))  # rounded otherwise
    check_examples("dataset=own", as_source("dataset=own", Dots()), 0)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda t: t.tensors(), "a tuple; must be Tasks"),
        (lambda t: replace(t, support_x=t.support_x.byte()), r"support_x is torch.uint8; must"),
        (
            lambda t: replace(t, query_x=t.query_x[..., None]),
            r"query_x is .*4, 4, 1\]; must be \[2",
        ),
        (
            lambda t: replace(t, support_y=t.support_y + 1),
            r"support_y holds 1 to 3; must be 0 to 2",
        ),
        (lambda t: replace(t, query_y=t.query_y.float()), r"query_y is torch.float32; must be"),
        (lambda t: replace(t, query_y=F.one_hot(t.query_y)), r"query_y is \[2, 6, 3\]; must be"),
        (
            lambda t: replace(t, query_x=t.query_x[:, 1:], query_y=t.query_y[:, 1:]),
            r"query_x is \[2, 5, 1, 4, 4\]; must be \[2, 6",
        ),
        (lambda t: replace(t, query_x=t.query_x / 0), "query_x holds values that are not finite"),
        (lambda t: replace(t, mode=t.mode + 1), r"mode holds 1 to 1; must be 0 to 0 \(modes: 1\)"),
        (
            lambda t: replace(t, support_x=t.support_x + torch.randn_like(t.support_x)),
            "asked for again, the same ones are others; draw them from",
        ),
        (
            lambda t: replace(t, support_x=t.support_x - t.support_x.mean()),
            "asked for alone, the same ones are others",
        ),
    ],
)
def test_tasks_that_are_none(spoil: Callable[[Tasks], Any], said: str) -> None:
    with pytest.raises(DataError, match=rf"^dataset=own: tasks of the train split: {said}"):
        looked_at(spoil)


def test_members_of_a_data_set() -> None:
    class Half:
        kind = "classification"
        features = FEATURES

    with pytest.raises(ConfigError, match=r"gave a Half without targets, modes, .*, to; must be a"):
        as_source("dataset=own", Half())
    with pytest.raises(ConfigError, match="kind 'classify'; must be classification or regression"):
        as_source("dataset=own", type("Other", (Dots,), {"kind": "classify"})())
    images = type("Other", (Dots,), {"train_classes": 1})()
    with pytest.raises(DataError, match="examples y holds 0 to 1; must be 0 to 0"):
        check_examples("dataset=own", images, 0)


class Body(nn.Module):
    """A linear layer of eight features, and a layer more."""

    def __init__(self, more: nn.Module | None = None) -> None:
        super().__init__()
        self.first = nn.Linear(prod(FEATURES), 8)
        self.more = more or nn.Identity()

    def forward(self, x: Tensor, reference: int | None = None) -> Tensor:
        return self.more(F.relu(self.first(x.flatten(1))))


class Counting(nn.Module):
    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x * (1 + sin(self.calls))


class Unused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.extra = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return x


def net(body: nn.Module, width: int = 8, outputs: int = 3) -> Net:
    return Net(body, width, outputs, norm="none", bn_mode="transductive", adapt_norm=True)


def tied() -> Net:
    layer = nn.Linear(8, 8)
    return net(Body(nn.Sequential(layer, nn.ReLU(), layer)))


@pytest.mark.parametrize("more", [nn.LayerNorm(8), nn.Dropout(0.0), nn.Dropout(0.5).eval()])
def test_networks_as_they_should_be(more: nn.Module) -> None:
    for model in (net(Body(more)), net(Body(more).double())):
        before = torch.random.get_rng_state()
        assert as_net("model=own", model, FEATURES, 3) is model
        assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: None, "its factory gave None; must be a Net"),
        (lambda: nn.Linear(2, 2), "its factory gave a Linear; must be a Net"),
        (lambda: net(Body(nn.BatchNorm1d(8))), r"body.more \(BatchNorm1d\) keeps averages .*; use"),
        (lambda: net(Body(nn.Dropout(0.1))), r"body.more \(Dropout\) draws at random, .* to 0$"),
        (lambda: net(Body(nn.MultiheadAttention(8, 2, 0.1))), "MultiheadAttention.* at random"),
        (lambda: net(Body(nn.LazyLinear(8))), "body.more.weight has no shape yet; say how wide"),
        (lambda: net(Body(nn.Linear(8, 8).requires_grad_(False))), "body.more.weight requires no"),
        (tied, "body.more.0.weight and body.more.2.weight are one tensor; keep it once"),
        (lambda: net(nn.Sequential(nn.Flatten())), r"\(Sequential\) takes no reference; must be f"),
        (lambda: net(Body(), 9), r"its body gives \[2, 8\] for 2 inputs of .*; must give \[2, 9\]"),
        (lambda: net(Body(), 8, 4), r"it gives \[2, 4\] for 2 inputs of .*; must give \[2, 3\]"),
        (lambda: net(Body(Counting())), "gives the same input another output the second time"),
        (lambda: net(Body(Unused())), "no output depends on body.more.extra.weight, body.more"),
    ],
)
def test_networks_that_are_none(build: Callable[[], Any], said: str) -> None:
    with pytest.raises(ConfigError, match=rf"^model=own: .*{said}"):
        as_net("model=own", build(), FEATURES, 3)


class Attention(nn.Module):
    """Self-attention among eight tokens of one number each, given four features."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(1, 4)
        self.inner = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, h: Tensor) -> Tensor:
        tokens = self.up(h[..., None])
        return self.inner(tokens, tokens, tokens, need_weights=False)[0].mean(2)


def test_attention_has_a_second_derivative() -> None:
    """Torch's fused one has none, on a CPU too; assembling has it computed by plain operations."""
    assemble(check(tiny_config("algo=maml")), Path("no-data-needed"))
    model = as_net("model=own", net(Body(Attention())), FEATURES, 3)
    problem = Problem(model, "classification")
    one = Dots().tasks("train", 0, 2, ways=3, shots=2, queries=2, seed=0)
    params = {n: v.expand(2, *v.shape).requires_grad_() for n, v in problem.initial().items()}
    losses = torch.vmap(problem.loss)(params, one.support_x, one.support_y)
    slopes = torch.autograd.grad(losses.sum(), list(params.values()), create_graph=True)
    twice = torch.autograd.grad(sum(s.square().sum() for s in slopes), list(params.values()))
    assert all(value.isfinite().all() for value in twice)


def learner(**changed: Any) -> tuple[Problem, Learner]:
    problem = Problem(net(Body()), "classification")
    return problem, plain_learner(problem, gradient_descent(0.1))._replace(**changed)


def steps_of(count: int, **changed: Any) -> None:
    """Adapt `count` tasks for a step."""
    problem, of = learner(**changed)
    one = Dots().tasks("train", 0, count, ways=3, shots=2, queries=2, seed=0)
    meta = shared_params(problem.initial())
    assert len(list(adapt(of, meta, one.support_x, one.support_y, 1))) == 2


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (
            {"loss": lambda meta, p, x, y: p["head.bias"]},
            r"loss is of shape \[3\]; must be a tensor",
        ),
        ({"loss": lambda meta, p, x, y: None}, "loss is None; must be a tensor of one number"),
        ({"update": lambda meta, k, p, g: list(p)}, "update gave a list; must be the parameters"),
        (
            {"update": lambda meta, k, p, g: {n: v[None] for n, v in p.items()}},
            r"update gave .* of shape \[1, 8, 16\]; must be \[8, 16\], as before",
        ),
    ],
)
def test_what_a_learner_gives(changed: dict[str, Any], said: str, count: int) -> None:
    steps_of(count)
    with pytest.raises(ConfigError, match=said):
        steps_of(count, **changed)


def test_what_an_algorithm_gives() -> None:
    problem, of = learner()
    whole = as_algorithm("algo=own", MetaAlgorithm(shared_params, adapting(of), None))
    with pytest.raises(ConfigError, match="algo=own: its factory gave None; must be a MetaAlgo"):
        as_algorithm("algo=own", None)
    assert as_meta("algo=own", whole.init(problem.initial()))
    for wrong, said in (
        (problem.initial(), "gave a Tensor for body.first.weight; must be groups"),
        ({"rates": {"all": 0.1}}, "gave a float for rates/all; must be groups of named tensors"),
        (torch.zeros(2), "gave a Tensor; must be groups"),
    ):
        with pytest.raises(ConfigError, match=said):
            as_meta("algo=own", wrong)


def test_an_adaptation_is_the_start_and_each_step() -> None:
    of = partial(counted, steps=2)
    assert len(list(of(iter([{}, {}, {}])))) == 3
    for adapted in ([{}], [{}] * 4):
        with pytest.raises(
            ConfigError, match=r"gave \d sets of parameters for 2 inner steps; must"
        ):
            list(of(iter(adapted)))
    with pytest.raises(ConfigError, match="its adapt gave a str"):
        list(of(iter(["head.bias"])))  # pyright: ignore[reportArgumentType]
