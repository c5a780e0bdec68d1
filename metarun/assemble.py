"""Checked settings to live objects; the only place that builds any."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import torch

from metarun.algorithms.base import MetaAlgorithm
from metarun.config import Checked, Part
from metarun.contract import (
    as_algorithm,
    as_meta,
    as_net,
    as_source,
    check_examples,
    check_tasks,
    refuse_late_turn,
    refuse_lone_rows,
)
from metarun.data.source import Source, Split
from metarun.errors import ConfigError
from metarun.evaluate import Scores, evaluate
from metarun.gradients.metagradient import ALONE
from metarun.hardware import WORTH_A_THREAD, Hardware
from metarun.models.layers import kernel_blocks, use_kernels
from metarun.models.net import set_running, use_plain_attention, use_running
from metarun.numerics.chunks import halving
from metarun.numerics.compiled import pays
from metarun.numerics.longloop import observed
from metarun.numerics.parallel import Workers
from metarun.problem import Meta, Problem
from metarun.settings.sections import Budget, Checkpoints, Outer, TaskShape, Test, Validation
from metarun.signals import Stop
from metarun.tasks import Tasks, examples_as_tasks
from metarun.weights import Given, given, put, refuse_begun

CALIBRATION_TASKS = 20  # of the training split, for running averages


@dataclass(frozen=True)
class Experiment:
    """Everything that one run works with; only the model's averages and kernel switches change."""

    seed: int
    task: TaskShape
    outer: Outer
    budget: Budget
    validation: Validation
    test: Test
    checkpoints: Checkpoints
    hardware: Hardware
    source: Source
    problem: Problem
    algorithm: MetaAlgorithm
    workers: Workers
    parts: Mapping[str, Part]  # what the parts were built from, settings included
    given: Given | None  # weights that training begins with, in place of random ones

    @property
    def inner_steps(self) -> int | None:
        """Return the inner steps of training, where the algorithm has such a setting."""
        return self.parts["algo"].values.get("steps")

    def initial(self) -> Meta:
        """Return the meta-parameters before training, on the device."""
        called = f"algo={self.parts['algo'].name}"
        meta = as_meta(called, self.algorithm.init(self.problem.initial()))
        return {
            group: {
                n: v.to(self.hardware.device, self.hardware.dtype).clone()
                for n, v in params.items()
            }
            for group, params in meta.items()
        }

    def tasks(self, split: Split, first: int, count: int) -> Tasks:
        """Return tasks of a split: training's by the run's seed, the others' by the test seed."""
        queries = self.task.test_queries if split == "test" else self.task.queries
        found = self.source.tasks(
            split,
            first,
            count,
            ways=self.task.ways,
            shots=self.task.shots,
            queries=queries,
            seed=self.seed if split == "train" else self.test.seed,
        )
        return found.to(self.hardware.dtype)

    def batch(self, step: int) -> Tasks:
        """Return what meta-step `step` is computed from."""
        return self.block(step, 1)[0]

    def block(self, first: int, count: int) -> Tasks:
        """Return what meta-steps first..first+count-1 are computed from, in one draw.

        Every tensor is [count, T, ...]. Pre-training sees as many images a step as a batch of
        tasks holds, so that equal steps are equal numbers of examples.
        """
        if self.algorithm.batches == "tasks":
            size = self.outer.batch
            return self.tasks("train", first * size, count * size).blocks(size)
        size = self.examples_a_step()
        x, y = self.source.examples(first * size, count * size, seed=self.seed)
        shaped = x.unflatten(0, (count, size)), y.unflatten(0, (count, size))
        return examples_as_tasks(*shaped).to(self.hardware.dtype).blocks(1)

    def examples_a_step(self) -> int:
        """Return how many inputs, support and query, one meta-step sees."""
        return self.outer.batch * self.task.rows

    def evaluate(
        self, meta: Meta, split: Split, count: int, steps: int, stop: Stop, most: int | None = None
    ) -> Scores:
        """Score tasks 0..count-1 of a split after 0..steps inner steps, at most `most` at once.

        When they do not fit into memory, it begins again with half as many at once.

        Raises:
            MemoryExhaustedError: one task alone does not fit.
        """

        def attempt(at_once: int) -> Scores:
            batches = (
                self.tasks(split, first, min(at_once, count - first))
                for first in range(0, count, at_once)
            )
            with self._normalising(meta):
                return evaluate(
                    self.problem,
                    self.algorithm,
                    meta,
                    batches,
                    steps,
                    stop.check,
                    self.workers,
                    each_start=split == "test",
                )

        at_once = min(self.tasks_at_once(split), count)
        remedy = "a smaller model, fewer shots or fewer queries"
        scores, fitted = halving(attempt, min(at_once, most or at_once), remedy)
        return replace(scores, at_once=fitted)

    def tasks_at_once(self, split: Split = "train") -> int:
        """Return how many tasks run together on this hardware."""
        queries = self.task.test_queries if split == "test" else self.task.queries
        size = self.task.ways * prod(self.source.features)
        batch = self.test.tasks
        if split == "train":
            batch = -(-self.outer.batch // self.hardware.processes)
        numbers = size * (self.task.shots + queries)
        if split == "train" and self.hardware.way == "batched" and size * queries >= ALONE:
            # These are taken one task at a time; the support alone decides, worth a thread or not.
            numbers = max(size * self.task.shots, WORTH_A_THREAD)
        return self.hardware.tasks_at_once(numbers, batch)

    def normalisation(self) -> str:
        """Return the normalisation mode that belongs beside every number."""
        return self.problem.model.normalisation

    @contextmanager
    def _normalising(self, meta: Meta) -> Generator[None]:
        model = self.problem.model
        if model.bn_mode != "running":
            yield
            return
        tasks = self.tasks("train", 0, CALIBRATION_TASKS)
        batches: list[tuple[dict[str, torch.Tensor], torch.Tensor]] = []
        for one in tasks.chunks(1):
            start = next(self.algorithm.adapt(meta, one.support_x, one.support_y, 0))
            x = torch.cat([one.support_x[0], one.query_x[0]])
            own = {name: value[0] for name, value in start.items() if " " not in name}
            batches.append((own, x))
        set_running(model, batches)
        use_running(model, True)
        try:
            yield
        finally:
            use_running(model, False)


def assemble(checked: Checked, data_root: Path) -> Experiment:
    """Build the experiment that the settings describe.

    Raises:
        ConfigError: settings that contradict each other or the machine.
        DataError: the data set is missing or cannot be used.
    """
    sections: dict[str, Any] = checked.sections
    task, validation, test = sections["task"], sections["validation"], sections["test"]
    if validation.steps > test.steps:
        raise ConfigError(
            f"validation.steps: {validation.steps} is more than test.steps={test.steps}, and the "
            "step that validation chooses must be on the test's curve"
        )
    hardware: Hardware = _build(checked.parts["hardware"])
    source = as_source(checked.called("dataset"), _build(checked.parts["dataset"], data_root))
    source = source.to(hardware.device)
    for queries in {task.queries, task.test_queries}:
        source.check(ways=task.ways, shots=task.shots, queries=queries)
    check_tasks(checked.called("dataset"), source, task, test.seed)
    begun = given(checked.weights) if checked.weights else None
    if begun:
        refuse_begun(begun, checked.parts["dataset"], source, data_root)
    problem, algorithm = learning(checked, source, hardware, begun)
    if algorithm.batches == "examples":
        check_examples(checked.called("dataset"), source, checked.seed)
    if algorithm.meta_grad is None:  # nothing is trained, so nothing is rounded
        hardware = replace(hardware, precision="full")
    refuse_late_turn(algorithm, sections["budget"])
    settings = checked.parts["hardware"].values
    batch = sections["outer"].batch if algorithm.meta_grad else 1  # nothing is trained: no sharing
    hardware = hardware.sharing(settings, batch, _unshared(checked, algorithm))
    rows = sections["outer"].batch * task.rows
    graph = pays(problem.model, rows, sections["budget"], hardware.device)
    hardware = hardware.running(kernel_blocks(problem.model), graph)
    use_kernels(problem.model, hardware.way == "batched")
    if sections["outer"].diagnose:
        part = checked.parts["algo"]
        algorithm = observed(problem, algorithm, part.values, part.name)
    return Experiment(
        seed=checked.seed,
        hardware=hardware,
        source=source,
        problem=problem,
        algorithm=algorithm,
        workers=_workers(hardware, algorithm, problem),
        parts=checked.parts,
        given=begun,
        **{name: sections[name] for name in _SECTIONS},
    )


def learning(
    checked: Checked, source: Source, hardware: Hardware, begun: Given | None = None
) -> tuple[Problem, MetaAlgorithm]:
    """Build the model and the algorithm; whatever they draw is drawn by the run's seed."""
    shape: TaskShape = checked.sections["task"]
    outputs = shape.ways
    if source.kind == "regression":
        outputs = source.targets
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(checked.seed)
        use_plain_attention()
        model = _build(checked.parts["model"], source.features, outputs)
        model = as_net(checked.called("model"), model, source.features, outputs)
        if begun:
            put(begun, model, checked.parts["model"].name)
        model = model.to(hardware.device, hardware.dtype)
        refuse_lone_rows(model, checked.sections["task"], source.features)
        problem = Problem(model, source.kind, source.train_classes, hardware.precision)
        algorithm = as_algorithm(checked.called("algo"), _build(checked.parts["algo"], problem))
    if shape.shots < algorithm.least_shots:
        raise ConfigError(
            f"task.shots: {shape.shots} is too few: algo={checked.parts['algo'].name} as it is set "
            "learns from a part of each class's shots and judges by the rest; use "
            f"task.shots={algorithm.least_shots} or more"
        )
    return algorithm.problem or problem, algorithm


def _unshared(checked: Checked, algorithm: MetaAlgorithm) -> str | None:
    """Return why the tasks of a meta-step cannot be shared out, or None."""
    name = checked.parts["algo"].name
    if algorithm.batches == "examples":
        return f"algo={name} trains on batches of examples, whose statistics belong together"
    if checked.parts["hardware"].values["compile"] is True:
        return "hardware.compile=true is of one process"
    return None


_SECTIONS = ("task", "outer", "budget", "validation", "test", "checkpoints")


def _workers(hardware: Hardware, algorithm: MetaAlgorithm, problem: Problem) -> Workers:
    """Give tasks a thread a core; one large batch, or running averages, all cores together."""
    if algorithm.batches == "examples" or problem.model.bn_mode == "running":
        return Workers(1)
    workers = hardware.workers()
    if workers.count > 1:
        torch.set_num_threads(1)
    return workers


def _build(part: Part, *runtime: object) -> Any:
    return part.factory(*runtime, **part.values)
