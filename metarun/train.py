"""The outer loop: meta-steps, validation, records, checkpoints."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, Protocol

from torch import Tensor

from metarun.algorithms.base import Turn
from metarun.assemble import Experiment
from metarun.engine.cost import Flops
from metarun.engine.crew import Crew
from metarun.engine.metastep import MetaSteps
from metarun.evaluate import Chosen, Scores, choose
from metarun.gradients.metagradient import MetaGradient
from metarun.numerics.chunks import turned
from metarun.numerics.outer import OuterOptimizer
from metarun.problem import Meta
from metarun.report.clusters import agreement
from metarun.signals import Stop, nothing_to_save
from metarun.state import State
from metarun.tasks import Tasks


class Log(Protocol):
    """Where training says what happens; the run keeps it."""

    def record(self, kind: str, step: int, figures: dict[str, Any]) -> None:
        """Append to the truth about the run."""
        ...

    def progress(self, done: float, figures: dict[str, float]) -> None:
        """Show how far it is."""
        ...

    def save(self, state: State) -> None:
        """Write a checkpoint to go on from."""
        ...

    def save_best(self, state: State) -> None:
        """Keep these meta-parameters as the best on validation."""
        ...


def train(
    experiment: Experiment,
    state: State,
    log: Log,
    stop: Stop,
    flops: Flops,
    crew: Crew | None = None,
) -> State:
    """Train until the budget is spent, from wherever `state` stands; return the last state.

    Where there is a crew, it shares out every meta-step's tasks.

    Raises:
        DivergedError: a number stopped being finite and the policy or its limit says stop.
        PreemptedError, KeyboardStopError: asked to stop; a checkpoint was written.
    """
    algorithm, validation = experiment.algorithm, experiment.validation
    if algorithm.meta_grad is None:
        return state
    stop.check()
    with nothing_to_save():  # compiling takes a minute in which nobody looks at the flag
        steps = MetaSteps(experiment, state, log.record, crew)
    optimizer = steps.optimizer
    every = max(1, validation.every // 25)
    while (done := spent(experiment, state, flops)) < 1:
        if state.step % validation.every == 0 and state.validated < state.step:
            log.save(with_moments(state, optimizer))  # a stop while validating repeats no step
            validate(experiment, state, log, stop)
        try:
            stop.check()
        except Exception:
            log.save(with_moments(state, optimizer))
            raise
        begun = time.perf_counter()
        if algorithm.turn is not None and state.step == algorithm.turn.step:
            _take_turn(experiment, algorithm.turn, state)
        found = steps.take(done)
        state.step += 1
        state.seconds += time.perf_counter() - begun
        if found is not None and (state.step % every == 0 or state.step == 1):
            figures = _figures(experiment, state, *found)
            log.record("train", state.step, figures)
            log.progress(spent(experiment, state, flops), figures)
        if state.step % experiment.checkpoints.every == 0:
            log.save(with_moments(state, optimizer))
    log.save(with_moments(state, optimizer))
    if state.validated < state.step:
        validate(experiment, state, log, stop)
        log.save(with_moments(state, optimizer))
    return state


def with_moments(state: State, optimizer: OuterOptimizer) -> State:
    """Put the optimiser's moments into the state, for a checkpoint."""
    state.moments = optimizer.moments()
    return state


def spent(experiment: Experiment, state: State, flops: Flops) -> float:
    """Return the fraction of the budget that is spent."""
    used = {
        "meta_steps": state.step,
        "examples": state.step * experiment.examples_a_step(),
        "flops": flops.until(state.step),
        "seconds": state.seconds,
    }
    return used[experiment.budget.unit] / experiment.budget.total


def validate(experiment: Experiment, state: State, log: Log, stop: Stop) -> None:
    """Score the fixed validation tasks; keep the meta-parameters when they are the best so far.

    As they would be used: with the rates that suit them best, where these are chosen at the end.
    """
    chosen, _ = validated(experiment, state.meta, stop, state.chunk)
    state.validated = state.step
    scores, rates = chosen.scores, {"rates": chosen.rates} if chosen.rates else {}
    log.record("validate", state.step, summary(scores, chosen.steps) | agreement(scores) | rates)
    if state.best is None or chosen.goodness > state.best:
        state.best = chosen.goodness
        log.save_best(state)


def validated(
    experiment: Experiment, meta: Meta, stop: Stop, chunk: int | None
) -> tuple[Chosen, Meta]:
    """Return what validation tasks decide for these meta-parameters, and these with its rates."""
    settings = experiment.validation

    def scored(candidate: Meta) -> Scores:
        return experiment.evaluate(
            candidate, "validation", settings.tasks, settings.steps, stop, chunk
        )

    return choose(experiment.algorithm, meta, scored)


def summary(scores: Scores, step: int) -> dict[str, Any]:
    """Return mean, 95 % interval and adaptation curve, under the metric's name."""
    values = scores.values
    half = 1.96 * values.std(0) / len(values) ** 0.5
    means = values.mean(0)
    return {
        scores.metric: {
            "mean": float(means[step]),
            "ci95": float(half[step]),
            "tasks": len(values),
            "step": step,
            "by_step": means.tolist(),
            "ci95_by_step": half.tolist(),
        }
    }


def _take_turn(experiment: Experiment, turn: Turn, state: State) -> None:
    """Let the algorithm change its meta-parameters, in place: the optimiser holds them."""
    first = state.step * experiment.outer.batch

    def draw(size: int) -> Iterator[Tasks]:
        for done in range(0, turn.tasks, size):
            yield experiment.tasks("train", first + done, min(size, turn.tasks - done))

    at_once = min(state.chunk or experiment.tasks_at_once(), turn.tasks)
    for group, params in turned(turn, state.meta, draw, at_once).items():
        for name, value in params.items():
            state.meta[group][name].copy_(value)


def _figures(
    experiment: Experiment, state: State, found: MetaGradient, norm: Tensor
) -> dict[str, Any]:
    figures: dict[str, float] = {}
    for name, value in found.figures.items():
        figures |= {name: float(value.double().mean()), **_spread(name, value.double())}
    return {
        "loss": float(found.losses.double().mean()),
        "grad_norm": float(norm),
        "clipped": state.clipped,
        "nonfinite": state.nonfinite,
        "seconds": state.seconds,
        "tasks_per_second": state.step * experiment.outer.batch / max(state.seconds, 1e-9),
        **figures,
    }


def _spread(name: str, value: Tensor) -> dict[str, float]:
    """Describe a figure's tail over the tasks, which its mean hides."""
    found = {"median": value.nanquantile(0.5), "p95": value.nanquantile(0.95), "max": value.max()}
    return {f"{name}_{what}": float(figure) for what, figure in found.items()}
