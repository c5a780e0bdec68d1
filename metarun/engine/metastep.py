"""A meta-step: tasks, meta-gradient, guard, optimiser; as it is, or replayed from a recording."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from torch import Tensor

from metarun import console
from metarun.assemble import Experiment
from metarun.engine.ahead import Ahead
from metarun.engine.crew import Crew
from metarun.engine.recorded import RECORDERS, NotRecordedError, Recorded
from metarun.errors import DivergedError
from metarun.gradients.metagradient import MetaGradient
from metarun.numerics.chunks import in_chunks
from metarun.numerics.compiled import Graph
from metarun.numerics.divergence import diagnose, is_finite, without_bad_tasks
from metarun.numerics.outer import OuterOptimizer, clipped, gradient_norm
from metarun.state import State
from metarun.tasks import Tasks

Record = Callable[[str, int, dict[str, Any]], None]


class MetaSteps:
    """Takes meta-steps, and knows the optimiser that they move."""

    def __init__(
        self, experiment: Experiment, state: State, record: Record, crew: Crew | None = None
    ) -> None:
        self.experiment, self.state, self.record = experiment, state, record
        self.crew = crew
        graph, device = experiment.hardware.graph, experiment.hardware.device.type
        there = graph and device != "cpu"  # where a recording counts the optimiser's steps
        self.optimizer = OuterOptimizer(experiment.outer, state.meta, capturable=there)
        self.optimizer.restore(state.moments)
        self.algorithm = experiment.algorithm
        self.ahead = Ahead(experiment)
        self.recorded = self._recorded() if graph and device in RECORDERS else None

    def take(self, done: float) -> tuple[MetaGradient, Tensor] | None:
        """Take the state's meta-step when the fraction `done` of the budget is spent.

        Returns what was found and its gradient's norm, or None where the meta-step was skipped.

        Raises:
            DivergedError: a number is not finite, and the policy or its limit says stop.
        """
        state, outer = self.state, self.experiment.outer
        found = self.recorded.take(state.step, done) if self.recorded else None
        if found is not None:
            state.skipped_in_a_row = 0
            state.clipped += outer.clip is not None and float(found[1]) > outer.clip
            return found
        found = self._meta_gradient(self.ahead.batch(state.step))
        if found is not None:
            gradient = clipped(found[0].gradient, found[1], outer.clip)
            state.clipped += gradient is not found[0].gradient
            self.optimizer.step(gradient, found[0].shift, done)
        return found

    def look(self) -> MetaGradient:
        """Return what the state's meta-step finds, and move nothing."""
        if self.recorded:
            return self.recorded.look(self.state.step)
        return self._in_chunks(self.ahead.batch(self.state.step))[0]

    def _recorded(self) -> Recorded | None:
        """Record a meta-step whose tasks all run at once; say in one line what cannot be."""
        experiment, begun, found = self.experiment, time.perf_counter(), None
        graph, hardware = experiment.algorithm.meta_grad, experiment.hardware
        assert isinstance(graph, Graph)
        on_cpu, instead = hardware.device.type == "cpu", "calling the graph each time"
        why, told = "a batch is more than the tasks at once", not on_cpu
        if (self.state.chunk or experiment.tasks_at_once()) >= experiment.outer.batch:
            if on_cpu:  # where the graph by itself was not compiled
                self.algorithm = self.algorithm._replace(meta_grad=graph.plain)
                instead = "running it as it is"
            try:
                within = graph.traced if on_cpu else graph
                found, why = Recorded(within, graph.plain, self.optimizer, self.ahead), "yes"
            except NotRecordedError as error:
                why, told = str(error), True
        if found is None and told and hardware.compile is True:
            console.warn(f"hardware.compile: not recorded: {why}; {instead}")
        seconds = round(time.perf_counter() - begun, 3)
        self.record("recorded", self.state.step, {"recorded": why, "seconds": seconds})
        return found

    def _meta_gradient(self, tasks: Tasks) -> tuple[MetaGradient, Tensor] | None:
        experiment, state, algorithm = self.experiment, self.state, self.algorithm
        outer = experiment.outer
        found, fitted = self._in_chunks(tasks)
        norm = gradient_norm(found.gradient)
        if is_finite(found, norm):
            state.skipped_in_a_row = 0
            return found, norm
        state.nonfinite += 1
        steps = experiment.inner_steps or experiment.validation.steps
        what = diagnose(algorithm, state.meta, tasks, found, state.step, steps)
        error = what.error(outer, experiment.parts["algo"].values)
        figures = {"tasks": what.tasks, "inner_step": what.inner_step, "tensor": what.tensor}
        self.record("diverged", state.step, {"policy": outer.on_divergence, **figures})
        if outer.on_divergence == "raise":
            raise error
        if outer.on_divergence == "drop_tasks":
            kept, bad = without_bad_tasks(algorithm, state.meta, tasks, state.step, fitted)
            if kept is not None:
                state.dropped += len(bad)
                state.skipped_in_a_row = 0
                return kept, gradient_norm(kept.gradient)
        state.skipped += 1
        state.skipped_in_a_row += 1
        if state.skipped_in_a_row > outer.max_skips:
            raise DivergedError(
                f"{error}; meta-steps skipped in a row: {state.skipped_in_a_row}, and "
                f"outer.max_skips is {outer.max_skips}"
            )
        return None

    def _in_chunks(self, tasks: Tasks) -> tuple[MetaGradient, int]:
        experiment, state, meta_grad = self.experiment, self.state, self.algorithm.meta_grad
        assert meta_grad is not None
        chunk = state.chunk or experiment.tasks_at_once()
        if self.crew is not None:
            found, fitted = self.crew.meta_gradient(state.meta, tasks, state.step, chunk)
        else:
            found, fitted = in_chunks(
                meta_grad, state.meta, tasks, state.step, chunk, experiment.workers
            )
        if fitted < min(chunk, len(tasks)):
            state.chunk = fitted
        return found, fitted
