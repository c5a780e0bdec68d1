"""Divergence is seen in its own step, told with what may help, and moves nothing."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache

import pytest
import torch
from tiny import Log, tiny

from metarun.assemble import Experiment
from metarun.engine.cost import Flops
from metarun.errors import DivergedError
from metarun.gradients.metagradient import MetaGradient
from metarun.numerics.chunks import map_meta
from metarun.numerics.divergence import Diagnosis, diagnose
from metarun.numerics.outer import OuterOptimizer
from metarun.problem import Meta
from metarun.signals import Stop
from metarun.state import State
from metarun.tasks import Tasks
from metarun.train import train

BAD_STEP, BAD_TASK = 3, 2

pytestmark = pytest.mark.usefixtures("undrawn")


def poisoned(experiment: Experiment, where: str, steps: set[int]) -> Experiment:
    """Return the experiment with one bad task in some steps: in its support, query or gradient."""
    source, batch = experiment.source, experiment.outer.batch

    class Poisoned:
        """The source with an infinity in task BAD_TASK of the poisoned steps' batches."""

        def __getattr__(self, name: str):
            return getattr(source, name)

        def tasks(self, split: str, first: int, count: int, **kwargs) -> Tasks:
            found = source.tasks(split, first, count, **kwargs)
            bad = [step * batch + BAD_TASK - first for step in steps]
            bad = [place for place in bad if split == "train" and 0 <= place < count]
            if where == "gradient":
                return replace(found, mode=found.mode.index_fill(0, torch.tensor(bad).long(), 99))
            values = getattr(found, where).clone()
            values[bad] = float("inf")
            return replace(found, **{where: values})

    inner = experiment.algorithm.meta_grad
    assert inner is not None

    def meta_grad(meta: Meta, tasks: Tasks, step: int) -> MetaGradient:
        found = inner(meta, tasks, step)
        if not (tasks.mode == 99).any():
            return found
        return found._replace(gradient=map_meta(lambda v: v * float("nan"), found.gradient))

    algorithm = experiment.algorithm._replace(meta_grad=meta_grad)
    return replace(experiment, algorithm=algorithm, source=Poisoned())


PLACES = ["support_x", "support_y", "query_x", "query_y", "gradient"]


EARLY = {  # before the first step they make something of the support
    "support_x": ("anil", "mixture", "mmaml", "r2d2"),
    "support_y": ("mixture", "mmaml", "r2d2"),
}
FAMILIES = ("maml", "fomaml", "imaml", "clustered")
OTHERS = [
    "adapters",
    "alfa",
    "anil",
    "boil",
    "cavia",
    "es_maml",
    "mamlpp",
    "metacurvature",
    "metasgd",
    "mixture",
    "mmaml",
]
OTHERS += ["multi_maml", "r2d2", "reptile", "signmaml", "truncated"]  # all that take regression
POISONED = [(where, algo) for where in PLACES for algo in (*FAMILIES, *OTHERS)]
POISONED.remove(("gradient", "multi_maml"))  # it reads the modes, of which this place makes a mark


@cache
def healthy(algo: str) -> tuple[Experiment, Meta]:
    """Return an experiment, and its meta-parameters before the step that will be bad."""
    experiment = tiny(f"algo={algo}", "outer.schedule=constant", "outer.lr_min=0")
    short = replace(experiment, budget=replace(experiment.budget, total=BAD_STEP))
    return experiment, train(short, State(short.initial()), Log(), Stop(), Flops()).meta


@pytest.mark.parametrize(
    ("where", "algo"),
    [pytest.param(*each, marks=[pytest.mark.slow] * (each[1] in OTHERS)) for each in POISONED],
)
def test_divergence_stops_in_its_own_step_with_the_state_untouched(where: str, algo: str) -> None:
    plain, expected = healthy(algo)
    experiment = poisoned(plain, where, {BAD_STEP})
    state, log = State(experiment.initial()), Log()
    with pytest.raises(
        DivergedError, match=f"at meta-step {BAD_STEP}: .*(inner_lr|outer.lr)"
    ) as caught:
        train(experiment, state, log, Stop(), Flops())
    assert "\n" not in str(caught.value)
    assert state.step == BAD_STEP
    for group, params in expected.items():
        for name, value in params.items():
            assert torch.equal(state.meta[group][name], value)
    kind, step, figures = log.records[-1]
    assert (kind, step) == ("diverged", BAD_STEP)
    if where != "gradient":
        assert figures["tasks"] == [BAD_TASK]
    if where.startswith("support"):
        assert figures["inner_step"] == (0 if algo in EARLY.get(where, ()) else 1)
        assert re.match(r"params/", figures["tensor"])


def test_steps_that_training_does_not_take_are_not_blamed() -> None:
    experiment = tiny("algo=maml", "algo.steps=1", "algo.inner_lr=1e20")
    log = Log()
    with pytest.raises(DivergedError, match=r"not finite in the query pass of task 0"):
        train(experiment, State(experiment.initial()), log, Stop(), Flops())
    (figures,) = (figures for kind, _, figures in log.records if kind == "diverged")
    assert figures["inner_step"] is None


def test_a_shift_that_is_not_finite_moves_nothing() -> None:
    """Running averages move without a gradient; a guard that looks at gradients alone is late."""
    experiment = tiny("algo=reptile")
    inner = experiment.algorithm.meta_grad
    assert inner is not None

    def meta_grad(meta: Meta, tasks: Tasks, step: int) -> MetaGradient:
        found = inner(meta, tasks, step)
        spoilt = (
            map_meta(lambda v: v * float("nan"), found.shift) if step == BAD_STEP else found.shift
        )
        return found._replace(shift=spoilt)

    broken = replace(experiment, algorithm=experiment.algorithm._replace(meta_grad=meta_grad))
    state = State(broken.initial())
    with pytest.raises(DivergedError, match=f"at meta-step {BAD_STEP}: "):
        train(broken, state, Log(), Stop(), Flops())
    assert all(v.isfinite().all() for params in state.meta.values() for v in params.values())


def test_advice_is_what_is_not_set_yet() -> None:
    other = ("outer.on_divergence=drop_tasks", "outer.max_skips=0", "outer.clip=3")
    for settings, absent in (((), []), (other, ["drop_tasks", "outer.clip"])):
        experiment = poisoned(tiny(*settings), "query_x", {3})
        meta_grad = experiment.algorithm.meta_grad
        assert meta_grad is not None
        tasks = experiment.batch(3)
        found = meta_grad(experiment.initial(), tasks, 3)
        what = diagnose(experiment.algorithm, experiment.initial(), tasks, found, 3, 1)
        said = str(what.error(experiment.outer, experiment.parts["algo"].values))
        for word in ("algo.inner_lr", "drop_tasks", "outer.clip"):
            assert (word in said) is (word not in absent), (settings, word)


def test_a_skipped_step_leaves_the_state_and_is_counted() -> None:
    experiment = poisoned(tiny("outer.on_divergence=skip_step"), "query_x", {3, 4})
    state = train(experiment, State(experiment.initial()), Log(), Stop(), Flops())
    assert (state.step, state.skipped, state.skipped_in_a_row) == (12, 2, 0)
    assert (state.nonfinite, state.clipped) == (2, 0)


def test_too_many_skips_in_a_row_end_the_run() -> None:
    settings = ("outer.on_divergence=skip_step", "outer.max_skips=2")
    experiment = poisoned(tiny(*settings), "query_x", set(range(3, 9)))
    with pytest.raises(DivergedError, match=r"skipped in a row: 3, .* outer.max_skips is 2"):
        train(experiment, State(experiment.initial()), Log(), Stop(), Flops())


@pytest.mark.parametrize("where", PLACES)
def test_dropping_a_bad_task_is_as_if_it_had_not_been_there(where: str) -> None:
    plain = tiny("hardware.dtype=float64", "outer.on_divergence=drop_tasks", "budget.total=1")
    experiment = poisoned(plain, where, {0})
    state = train(experiment, State(experiment.initial()), Log(), Stop(), Flops())
    assert (state.skipped, state.dropped) == (0, 1)
    meta_grad = plain.algorithm.meta_grad
    assert meta_grad is not None
    kept = plain.batch(0)[torch.tensor([0, 1, 3])]
    expected = train(_only(plain, kept), State(plain.initial()), Log(), Stop(), Flops())
    for name, value in expected.meta["params"].items():
        torch.testing.assert_close(state.meta["params"][name], value, rtol=1e-12, atol=1e-14)


def _only(experiment: Experiment, tasks: Tasks) -> Experiment:
    inner = experiment.algorithm.meta_grad
    assert inner is not None
    fixed = experiment.algorithm._replace(meta_grad=lambda meta, _, step: inner(meta, tasks, step))
    return replace(experiment, algorithm=fixed)


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd", "rmsprop"])
def test_how_a_gradient_lies_in_memory_does_not_matter(optimizer: str) -> None:
    """A convolution's comes with its channels innermost; torch's fused optimisers misread it."""
    outer = tiny(f"outer.optimizer={optimizer}").outer
    gradient = torch.randn(8, 4, 3, 3)
    moved: list[torch.Tensor] = []
    for layout in (torch.contiguous_format, torch.channels_last):
        meta: Meta = {"params": {"weight": torch.zeros(8, 4, 3, 3)}}
        given = gradient.contiguous(memory_format=layout)
        OuterOptimizer(outer, meta).step({"params": {"weight": given}}, {}, 0.0)
        moved.append(meta["params"]["weight"])
    torch.testing.assert_close(*moved)


@pytest.mark.parametrize(
    ("words", "advice"),
    [
        (("algo=maml",), "a smaller inner rate (algo.inner_lr), outer.clip=1 or outer.on_"),
        (("algo=metasgd",), "a smaller inner rate (algo.inner_lr), algo.transform=exp, outer.clip"),
        (("algo=metasgd", "algo.transform=exp", "outer.clip=1"), "(algo.inner_lr) or outer.on_"),
        (
            ("algo=r2d2",),
            "; a smaller outer.lr, outer.clip=1 or outer.on_divergence=drop_tasks may",
        ),
    ],
)
def test_what_may_help_is_what_can_be_set(words: tuple[str, ...], advice: str) -> None:
    experiment = tiny(*words)
    what = Diagnosis(3, [1], 0, "params/w")
    error = what.error(experiment.outer, experiment.parts["algo"].values)
    assert advice in str(error)
