"""What methods cost beside the published model of costs: operations, and bytes that graphs keep.

Conv-4 of 64 filters with all of its last block, 28 x 28, 5-way 1-shot: 113,221 parameters. The
unit of operations is F, one forward pass of the support; a query is rho times the support.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from metarun.assemble import Experiment, assemble
from metarun.config import check, compose_job
from metarun.engine.cost import Flops, count, flops_of_training, flops_per_adaptation
from metarun.models.layers import without_kernels

NETWORK = ("dataset=glyphs", "model=conv4", "model.spatial=flatten")
PLAIN = ("hardware=cpu", "hardware.threads=1", "hardware.batching=vmap")  # no kernels of our own
TASKS = 5
MIB = 2**20
GRADIENT, STEP, SECOND = 3.0, 9.4, 6.4  # F: a gradient, a step in second order, its latter half


def build(*words: str) -> Experiment:
    config = compose_job([*NETWORK, *PLAIN, f"outer.batch={TASKS}", *words])
    return assemble(check(config), Path("no-data-needed"))


def setting(name: str, config: dict[str, Any]) -> Any:
    """Return a setting of the algorithm, wherever its preset keeps it."""
    nested = [value for value in config.values() if isinstance(value, dict)]
    found = [config[name]] if name in config else [setting(name, inner) for inner in nested]
    return next((value for value in found if value is not None), None)


@cache
def forward_pass() -> int:
    experiment = build("algo=maml")
    task, params = experiment.batch(0), experiment.problem.initial()
    assert sum(value.numel() for value in params.values()) == 113_221
    with FlopCounterMode(display=False) as counter:
        experiment.problem.loss(params, task.support_x[0], task.support_y[0])
    return counter.get_total_flops()


@cache
def cost(preset: str, steps: int, rho: int) -> float:
    """Return the operations of one task's meta-gradient in the dearest phase, in F."""
    experiment = build(*preset.split(), f"algo.steps={steps}", f"task.queries={rho}")
    meta = experiment.initial()
    return max(flops_of_training(experiment, meta).each) / TASKS / forward_pass()


FORMULAS: dict[str, Callable[[int, int], float]] = {
    "algo=fomaml": lambda k, rho: 3 * k + 3 * rho,
    "algo=signmaml": lambda k, rho: 3 * k + 3 * rho,
    "algo=maml algo.estimator=unrolled": lambda k, rho: STEP * k + 3 * rho,
    "algo=maml algo.estimator=recompute": lambda k, rho: (STEP + 3) * k + 3 * rho,
    "algo=maml": lambda k, rho: STEP * k + 3 * max(k - 5, 0) + 3 * rho,  # keeps 5 graphs
    "algo=truncated": lambda k, rho: 3 * k + SECOND + 3 * rho,
    "algo=imaml algo.inner_optimizer=sgd": lambda k, rho: (
        3 * k + 3 * rho + 3 + SECOND * solver_steps()
    ),
    "algo=imaml algo.inner_optimizer=sgd algo.estimator.solver=neumann": lambda k, rho: (
        3 * k + 3 * rho + 3 + SECOND * (solver_steps() + 1)
    ),
    "algo=es_maml algo.estimator.pairs=9": lambda k, rho: (2 * 9 + 1) * (3 * k + rho),
    "algo=anil": lambda k, rho: 1 + 2 + 3 * rho,
    # Not in the table. Reptile learns from support and query as one, and looks at the end; each
    # of several starts is adapted and scored first; clusters are chosen after 20 steps.
    "algo=reptile": lambda k, rho: (3 * k + 1) * (1 + rho),
    "algo=multi_maml": lambda k, rho: STEP * k + 3 * rho,
    "algo=clustered algo.starts=3": lambda k, rho: 3 * (3 * k + 1) + STEP * k + 3 * rho,
    "algo=clustered algo.starts=3 algo.warm_up_by=rank": lambda k, rho: (
        3 * (3 * k + 1) + 3 * (STEP * k + 3 * rho)
    ),
    "algo=mixture algo.starts=3": lambda k, rho: 3 * (3 * k + 1 + STEP * k + 3 * rho),
    "algo=tsamaml algo.starts=3 algo.tasks=3": lambda k, rho: 3 * 20 + STEP * k + 3 * rho,
}
MANY_STEPS = ("algo=maml", "algo=maml algo.estimator=recompute")  # the last few are other ones


def solver_steps() -> int:
    return setting("iterations", compose_job([*NETWORK, "algo=imaml"])["algo"]["estimator"])


@pytest.mark.parametrize("preset", FORMULAS)
def test_operations_are_those_of_the_formulas(preset: str) -> None:
    steps = 7 if preset in MANY_STEPS else 2
    assert cost(preset, steps, 2) == pytest.approx(FORMULAS[preset](steps, 2), rel=0.05)


def test_every_phase_counts_as_long_as_it_lasts() -> None:
    training = Flops((0, 3, 10), (5, 2, 1), (3, 100))
    by_hand = [0, 5, 10, 15, *(117 + 2 * more for more in range(7)), 130, 131]
    assert [training.until(step) for step in range(len(by_hand))] == by_hand
    assert Flops().until(10**9) == 0


def phases(words: str) -> tuple[Flops, list[float]]:
    """Return what is counted of a training of 2 steps and 2 queries, and a task's part in F."""
    experiment = build(*words.split(), "algo.steps=2", "task.queries=2")
    found = flops_of_training(experiment, experiment.initial())
    return found, [each / TASKS / forward_pass() for each in found.each]


def test_phases_cost_what_they_would_by_themselves() -> None:
    found, each = phases("algo=mamlpp algo.multi_step_until=4 algo.first_order_until=9")
    assert found.begins == (0, 4, 9)
    single = "algo=mamlpp algo.multi_step_until=0 algo.first_order_until"
    many = phases("algo=mamlpp algo.multi_step_until=1 algo.first_order_until=1")[1][0]
    assert each == [many, phases(f"{single}=1")[1][0], phases(f"{single}=0")[1][0]]
    assert each[1] < each[0]
    assert each[1] < each[2]


def test_ranks_that_no_longer_count_cost_nothing() -> None:
    words = "algo=clustered algo.starts=3 algo.warm_up_by=rank algo.warm_up"
    found, each = phases(f"{words}=1000")
    assert each == pytest.approx([3 * 7 + ranks * (STEP * 2 + 6) for ranks in (3, 2, 1)], rel=0.05)
    assert found.begins == (0, 539, 840)  # exp(-rank / range) below a thousandth
    assert phases(f"{words}=0")[0].begins == (0,)


def test_a_turn_is_counted_once_with_all_of_its_tasks() -> None:
    found, each = phases("algo=tsamaml algo.starts=3 algo.tasks=40 algo.warm_up=6")
    assert found.begins == (0, 6)
    assert each == pytest.approx([2 * STEP + 6, 60 + 2 * STEP + 6], rel=0.05)
    before, once = found.turn
    assert before == 6
    assert once / forward_pass() == pytest.approx(40 * 60, rel=0.05)


def test_a_gradient_and_a_step_cost_what_was_measured() -> None:
    """2.96 F, not 3, for the images need no gradient; 9.40 F, of which 6.44 are second order."""
    exact = "algo=maml algo.estimator=unrolled"
    first, second = (cost(p, 2, 1) - cost(p, 1, 1) for p in ("algo=fomaml", exact))
    assert first == pytest.approx(2.96, abs=0.005)
    assert second == pytest.approx(9.40, abs=0.005)
    assert second - first == pytest.approx(6.44, abs=0.005)
    assert cost(exact, 1, 3) - cost(exact, 1, 1) == pytest.approx(2 * 2.96, abs=0.01)


@pytest.mark.parametrize(
    ("preset", "formula"),
    [
        ("algo=maml", lambda k: 3 * k),
        ("algo=scratch", lambda k: 3 * k),
        ("algo=anil", lambda _: 1),  # the head's own steps are next to nothing
        ("algo=protonet", lambda _: 1),
        ("algo=multi_maml", lambda k: 3 * k),
        ("algo=clustered algo.starts=3 algo.steps=1", lambda k: 3 * (3 + 1) + 3 * k),
    ],
)
@pytest.mark.parametrize("steps", [0, 2])
def test_adapting_to_a_new_task_takes_no_query(
    preset: str, formula: Callable[[int], float], steps: int
) -> None:
    experiment = build(*preset.split())
    found = flops_per_adaptation(experiment, experiment.initial(), steps) / forward_pass()
    assert found == pytest.approx(formula(steps), rel=0.05, abs=0.05)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rho", "ratios"),
    [(1, {1: 2.09, 5: 2.82, 10: 2.98}), (15, {1: 1.14, 5: 1.54, 10: 1.87})],
)
def test_how_much_dearer_maml_is_depends_on_steps_and_queries(
    rho: int, ratios: dict[int, float]
) -> None:
    for steps, expected in ratios.items():
        exact = cost("algo=maml algo.estimator=unrolled", steps, rho)
        assert exact / cost("algo=fomaml", steps, rho) == pytest.approx(expected, abs=0.006)


class Kept:
    """Counts the bytes of distinct tensors that autograd graphs keep, now and at most.

    Saved tensors are packed into receipts; a graph that is let go of lets go of its receipts.
    """

    def __init__(self) -> None:
        self.now = self.most = 0
        self.users: dict[int, int] = {}

    def measure(self, function: Callable[[], object]) -> int:
        with torch.autograd.graph.saved_tensors_hooks(lambda t: Receipt(self, t), Receipt.tensor):
            function()
        return self.most


class Receipt:
    def __init__(self, kept: Kept, saved: Tensor) -> None:
        self.kept, self.saved = kept, saved
        storage = saved.untyped_storage()
        self.key, self.bytes = storage.data_ptr(), storage.nbytes()
        kept.users[self.key] = kept.users.get(self.key, 0) + 1
        if kept.users[self.key] == 1:
            kept.now += self.bytes
            kept.most = max(kept.most, kept.now)

    def tensor(self) -> Tensor:
        return self.saved

    def __del__(self) -> None:
        self.kept.users[self.key] -= 1
        if not self.kept.users[self.key]:
            self.kept.now -= self.bytes


class Fused(nn.BatchNorm2d):
    """Torch's own batch normalisation, which is right for one task at a time."""

    def forward(self, x: Tensor, reference: int | None = None) -> Tensor:
        assert reference is None
        return super().forward(x)


def kept(preset: str, steps: int, *, fused: bool = False) -> float:
    """Return the MiB that graphs keep at most in one task's meta-gradient, by torch's layers."""
    experiment = build(*preset.split(), f"algo.steps={steps}", "task.queries=1")
    if fused:
        for block in experiment.problem.model.body.blocks:
            block.norm = Fused(64, track_running_stats=False)
    meta, task = experiment.initial(), experiment.batch(0)[torch.tensor([0])]  # not a view
    meta_grad = experiment.algorithm.meta_grad
    assert meta_grad is not None
    with without_kernels(experiment.problem.model):
        return Kept().measure(lambda: meta_grad(meta, task, 0)) / MIB


FORWARD, PARAMETERS = 1.094, 0.432  # MiB: the graph of one support's forward pass, a start


def test_bytes_of_a_start() -> None:
    assert 4 * count(build("algo=maml").initial()) / MIB == pytest.approx(PARAMETERS, abs=0.001)


@pytest.mark.parametrize(("fused", "a_step"), [(True, 1.728), (False, 2.376)])
def test_an_unrolled_graph_grows_by_the_same_bytes_at_every_step(
    fused: bool, a_step: float
) -> None:
    """1.74, 3.47, 8.65 and 17.28 MiB after 1, 2, 5 and 10 steps, and the query's own graph.

    Our normalisation, which is right under vmap where torch's is not, keeps more intermediates.
    """
    for steps in (1, 2, 5, 10):
        found = kept("algo=maml algo.estimator=unrolled", steps, fused=fused)
        assert found == pytest.approx(a_step * steps + FORWARD, rel=0.01)
    if fused:
        assert a_step == pytest.approx(1.2 * FORWARD + PARAMETERS, rel=0.05)


@pytest.mark.parametrize(
    ("preset", "most"),
    [
        ("algo=fomaml", FORWARD),
        ("algo=signmaml", FORWARD),
        ("algo=reptile", 2 * FORWARD),  # of support and query at once
        ("algo=maml algo.estimator=recompute", 3.2 * FORWARD),
        ("algo=truncated", 3.2 * FORWARD),
        ("algo=imaml", 3 * FORWARD),
        ("algo=imaml algo.inner_optimizer=sgd", 3 * FORWARD),
    ],
)
def test_other_graphs_do_not_grow_with_the_steps(preset: str, most: float) -> None:
    few, many = kept(preset, 1), kept(preset, 10)
    assert many == pytest.approx(few, rel=0.001)
    assert many <= 1.001 * most


def test_the_adjoint_keeps_no_more_than_five_graphs() -> None:
    five, ten = kept("algo=maml", 5), kept("algo=maml", 10)
    assert ten == pytest.approx(five, rel=0.001)
    assert five == pytest.approx(kept("algo=maml algo.estimator=unrolled", 5), rel=0.01)
