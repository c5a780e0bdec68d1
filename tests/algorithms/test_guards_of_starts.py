"""What else keeps starts from collapsing: ranks, temperatures, entropies, and one shared body."""

from __future__ import annotations

from math import exp, log
from typing import Any

import pytest
import torch
from families import CLUSTERED, MIXTURE, begin, last, regression, two_levels
from oracles import DOUBLE, distance, finite_difference, image_tasks, norm, problem
from torch import Tensor

from metarun.algorithms.clustered import clustered, neural_gas, rank_changes
from metarun.algorithms.mixture import mixture
from metarun.algorithms.parts.softness import entropy, pressure
from metarun.algorithms.parts.usage import USAGE
from metarun.errors import ConfigError
from metarun.gradients.metagradient import MetaGradient, query_losses
from metarun.numerics.chunks import in_chunks
from metarun.problem import Meta

GATE = {**MIXTURE, "weights": "gate"}
SHARE = torch.tensor([0.7, 0.2, 0.1], dtype=DOUBLE)


def uneven(meta: Meta) -> Meta:
    """Return a gate that has made up its mind, and starts of unequal shares."""
    generator = torch.Generator().manual_seed(3)
    code = meta["encoder"]["code.weight"]
    drawn = torch.randn(code.shape, dtype=DOUBLE, generator=generator)
    encoder = meta["encoder"] | {"code.weight": 3 * drawn}
    return meta | {"encoder": encoder, USAGE: meta[USAGE] | {"share": SHARE}}


def test_the_ranges_of_neural_gas_end_with_the_best_alone() -> None:
    assert neural_gas(5, 0.0) == pytest.approx([exp(-rank) for rank in range(5)])
    assert neural_gas(5, 0.5) == pytest.approx([1, exp(-(10**0.5)), exp(-2 * 10**0.5)])
    assert neural_gas(5, 1.0) == [1.0]
    assert neural_gas(1, 0.0) == [1.0]


@pytest.mark.parametrize("warm_up", [0, 1, 7, 1000])
def test_meta_steps_from_which_fewer_ranks_count_are_all_named(warm_up: int) -> None:
    counts = [len(neural_gas(5, step / warm_up)) for step in range(warm_up)] + [1]
    expected = [step for step in range(1, len(counts)) if counts[step] < counts[step - 1]]
    assert list(rank_changes(5, warm_up)) == expected
    assert rank_changes(1, warm_up) == ()
    assert len(rank_changes(5, 10**12)) == 4


def test_a_task_moves_its_next_best_starts_by_their_ranks() -> None:
    """Against a plain sum over starts, each with the weight of its rank for each task."""
    on, tasks = regression(), two_levels()
    ranked = clustered(on, **{**CLUSTERED, "warm_up": 10, "warm_up_by": "rank"})
    meta = begin(ranked, on)
    meta["usage"]["bias"] = torch.tensor([0.0, 0.4, 0.1], dtype=DOUBLE)
    each = ranked.each(meta, tasks.support_x, tasks.support_y, 2)
    ends = [list(path)[-1] for path in each]
    scores = []
    for start, end in enumerate(ends):
        fits = [
            on.loss({n: v[t] for n, v in end.items()}, tasks.support_x[t], tasks.support_y[t])
            for t in range(len(tasks))
        ]
        scores.append(torch.stack(fits) + meta["usage"]["bias"][start])
    rank = torch.stack(scores, 1).argsort(1).argsort(1)  # [T, M]
    assert len(rank[:, 0].unique()) > 1
    one = clustered(on, **{**CLUSTERED, "starts": 1})
    for step in (0, 5, 10):
        weights = neural_gas(3, step / 10) if step < 10 else [1.0]
        weights += [0.0] * (3 - len(weights))
        found = ranked.meta_grad(meta, tasks, step)
        for start in range(3):
            alone = {n: v[start : start + 1] for n, v in meta["params"].items()}
            state = begin(one, on) | {"params": alone}
            total = {n: torch.zeros_like(v) for n, v in alone.items()}
            for t in range(len(tasks)):
                own = one.meta_grad(state, tasks[t : t + 1], 0).gradient["params"]
                for name, value in own.items():
                    total[name] += weights[int(rank[t, start])] * value / len(tasks)
            for name, value in total.items():
                torch.testing.assert_close(
                    found.gradient["params"][name][start], value[0], rtol=1e-10, atol=1e-13
                )
        first = clustered(on, **CLUSTERED).meta_grad(meta, tasks, 0)
        assert torch.equal(found.losses, first.losses), "they are those of the best start"


def test_a_start_from_which_adaptation_diverges_gets_no_rank() -> None:
    on, tasks = regression(), two_levels()
    ranked = clustered(on, **{**CLUSTERED, "warm_up": 10, "warm_up_by": "rank"})
    meta = begin(ranked, on)
    for value in meta["params"].values():
        value[1] = float("nan")
    found = ranked.meta_grad(meta, tasks, 0)
    for value in found.gradient["params"].values():
        assert value.isfinite().all()
        assert not value[1].any()


@pytest.mark.parametrize("weights", ["em", "gate"])
def test_a_temperature_falls_geometrically_and_is_that_of_the_test_too(weights: str) -> None:
    on, tasks = regression(), two_levels()
    given = {**MIXTURE, "weights": weights, "temperature": 2.0}
    cooling = mixture(on, **{**given, "temperature_end": 0.5, "temperature_steps": 4})
    meta = begin(cooling, on)
    seen: list[float] = []
    for step in range(7):
        found, _ = in_chunks(cooling.meta_grad, meta, tasks, step, 5)
        seen.append(float(found.figures["temperature"].mean()))
        now = mixture(on, **{**given, "temperature": float(meta[USAGE]["temperature"])})
        expected = last(now, meta, tasks)
        for name, value in last(cooling, meta, tasks).items():
            torch.testing.assert_close(value, expected[name], rtol=1e-6, atol=1e-9)
        usage = {name: value + found.shift[USAGE][name] for name, value in meta[USAGE].items()}
        meta = meta | {USAGE: meta[USAGE] | {"temperature": usage["temperature"]}}
    assert seen == pytest.approx([2.0, 2**0.5, 1.0, 0.5**0.5, 0.5, 0.5, 0.5], rel=1e-6)


def test_the_terms_of_a_gate_are_their_formulas() -> None:
    weights = torch.tensor([[0.5, 0.5, 0.0], [0.1, 0.2, 0.7]], dtype=DOUBLE)
    assert entropy(weights)[0] == pytest.approx(log(2))
    sharp = pressure(weights, SHARE, balance=0.0, sharpness=2.0)
    torch.testing.assert_close(sharp, 2 * entropy(weights))
    # At weights whose mean the shares are, the term and its slope are the divergence's own.
    given = SHARE.clone().requires_grad_()
    ours = pressure(given[None], SHARE, balance=1.0, sharpness=0.0).sum()
    there = SHARE.clone().requires_grad_()
    divergence = (there * (3 * there).log()).sum()
    torch.testing.assert_close(ours, divergence)
    pulls = [torch.autograd.grad(f, v)[0] for f, v in ((ours, given), (divergence, there))]
    apart = pulls[1] - pulls[0]  # a constant, which rows that add up to one do not feel
    assert float(apart.max() - apart.min()) < 1e-12


@pytest.mark.parametrize("terms", [(0.5, 0.0), (0.0, 0.5), (0.4, 0.3)])
@pytest.mark.parametrize("combine", ["predictions", "parameters"])
def test_a_gate_s_terms_are_in_its_gradient_and_not_in_its_losses(
    combine: str, terms: tuple[float, float]
) -> None:
    on, tasks = regression(), two_levels()
    words = {**GATE, "combine": combine, "balance_loss": terms[0], "entropy_loss": terms[1]}
    plain, algorithm = mixture(on, **{**GATE, "combine": combine}), mixture(on, **words)
    meta = uneven(begin(algorithm, on))
    found = algorithm.meta_grad(meta, tasks, 0)
    torch.testing.assert_close(found.losses, plain.meta_grad(meta, tasks, 0).losses)
    assert not algorithm.exact
    assert plain.exact

    def objective(there: Meta) -> MetaGradient:
        seen = algorithm.meta_grad(there, tasks, 0)
        return seen._replace(losses=seen.losses + seen.figures["pressure"])

    assert finite_difference(objective, meta, found.gradient) < 1e-7
    parts, _ = in_chunks(algorithm.meta_grad, meta, tasks, 0, 5)
    assert distance(parts.gradient, found.gradient) < 1e-12


def shares_after(term: str, weight: float) -> tuple[Tensor, float]:
    """Train a gate alone by its terms; return the mean weights and the mean entropy of a task's."""
    on, tasks = regression(), two_levels()
    with torch.random.fork_rng():
        torch.manual_seed(0)  # of the encoder
        algorithm = mixture(on, **{**GATE, term: weight, "share_rate": 0.3})
    meta = uneven(begin(algorithm, on))
    for step in range(60):
        found = algorithm.meta_grad(meta, tasks, step)
        base = mixture(on, **GATE).meta_grad(meta, tasks, step).gradient["encoder"]
        for name, value in found.gradient["encoder"].items():
            meta["encoder"][name] = meta["encoder"][name] - 0.5 * (value - base[name])
        share = meta[USAGE]["share"] + found.shift[USAGE]["share"]
        meta = meta | {USAGE: meta[USAGE] | {"share": share}}
    return meta[USAGE]["share"], float(found.figures["starts_a_task"].mean())


def test_one_term_evens_out_the_shares_and_the_other_makes_choices_sharp() -> None:
    untouched, loose = shares_after("balance_loss", 0.0)
    even, _ = shares_after("balance_loss", 1.0)
    _, sharp = shares_after("entropy_loss", 1.0)
    assert float(untouched.max()) > 0.7
    assert float(even.max()) < 0.45
    assert sharp < 1.05 < loose


@pytest.mark.parametrize("build", [clustered, mixture], ids=["clustered", "mixture"])
def test_starts_that_share_a_body_keep_one_and_move_it_by_all_tasks(build: Any) -> None:
    on, tasks = regression(), two_levels()
    settings = CLUSTERED if build is clustered else MIXTURE
    parted, whole = build(on, **{**settings, "own": "head"}), build(on, **settings)
    meta = begin(parted, on)
    assert all(name.startswith("head.") for name in meta["params"])
    assert all(value.shape[0] == 3 for value in meta["params"].values())
    for name, value in meta["shared"].items():
        assert torch.equal(value, on.initial()[name])
    stacked = {n: torch.stack([v] * 3) for n, v in meta["shared"].items()} | meta["params"]
    other = begin(whole, on) | {"params": stacked}
    found, expected = (a.meta_grad(m, tasks, 0) for a, m in ((parted, meta), (whole, other)))
    torch.testing.assert_close(found.losses, expected.losses)
    for name, value in expected.gradient["params"].items():
        if name in meta["shared"]:
            torch.testing.assert_close(found.gradient["shared"][name], value.sum(0))
        else:
            torch.testing.assert_close(found.gradient["params"][name], value)
    for name, value in last(parted, meta, tasks).items():
        torch.testing.assert_close(value, last(whole, other, tasks)[name])


def test_a_shared_body_that_dies_does_not_begin_again() -> None:
    """A start that nobody chooses gets another head; the body is everybody's."""
    on, tasks = regression(), two_levels()
    algorithm = clustered(on, **{**CLUSTERED, "own": "head", "restart": 0.5})
    meta = begin(algorithm, on)
    meta["usage"]["share"] = torch.tensor([0.9, 0.09, 0.01], dtype=DOUBLE)
    shift = algorithm.meta_grad(meta, tasks, 0).shift
    assert sorted(shift) == ["params", USAGE]
    assert sorted(shift["params"]) == sorted(meta["params"])
    assert norm({"params": shift["params"]}) > 0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"balance_loss": 0.1}, "algo.balance_loss: no gradient .* use algo.weights=gate"),
        ({"entropy_loss": 0.1}, "algo.entropy_loss: no gradient .* use algo.weights=gate"),
        (
            {"weights": "gate", "balance_loss": 0.1, "share_rate": 0.0},
            "algo.balance_loss: algo.share_rate=0 .* set it above 0",
        ),
        ({"temperature_end": 2.0}, "algo.temperature_end: 2 is above algo.temperature=1;"),
        ({"own": "norm"}, 'algo.own: "norm" matches no parameter'),
    ],
)
def test_what_means_nothing_is_refused_in_one_line(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        mixture(regression(), **{**MIXTURE, **changes})
    assert "\n" not in str(caught.value)


def test_heads_of_their_own_work_on_images_too() -> None:
    on, tasks = problem("conv4-batch"), image_tasks("conv4-batch", 3)
    algorithm = clustered(on, **{**CLUSTERED, "own": "head"})
    meta = begin(algorithm, on)
    chosen = algorithm.assign(meta, tasks.support_x, tasks.support_y)
    params = last(algorithm, meta, tasks)
    losses = algorithm.meta_grad(meta, tasks, 0).losses
    torch.testing.assert_close(losses, query_losses(on, params, tasks).detach())
    assert chosen.shape == (3,)
