"""metarun itself, built by the very function that builds a run, stepped as its trainer steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import Tensor

from benchmarks.contender import OUTER_LR, Build, Contender
from benchmarks.nets import WIDTHS
from benchmarks.works import Work
from metarun.assemble import Experiment, assemble
from metarun.config import Part, check, compose_job
from metarun.engine.batching import settle
from metarun.engine.metastep import MetaSteps
from metarun.state import State
from metarun.tasks import Tasks

BUDGET = 60_000  # meta-steps of the run that is built, as in the papers: `auto` looks at it


@dataclass(frozen=True)
class Prepared:
    """A data set of one prepared batch, so that nothing of a data set is measured."""

    work: Work
    batch: Tasks
    modes: tuple[str, ...] = ("all",)
    fingerprint: ClassVar[dict[str, str]] = {}

    @property
    def kind(self) -> Literal["classification", "regression"]:
        return "regression" if self.work.net == "mlp" else "classification"

    @property
    def features(self) -> tuple[int, ...]:
        return self.work.features

    @property
    def targets(self) -> int:
        return 1 if self.work.net == "mlp" else 0

    @property
    def train_classes(self) -> int:
        return 0 if self.work.net == "mlp" else self.work.ways

    def tasks(self, split: str, first: int, count: int, **shape: int) -> Tasks:
        if count == len(self.batch):
            return self.batch
        return self.batch[torch.arange(first, first + count) % len(self.batch)]

    def examples(self, first: int, count: int, *, seed: int) -> tuple[Tensor, Tensor]:
        return self.batch.query_x.flatten(0, 1)[:count], self.batch.query_y.flatten(0, 1)[:count]

    def check(self, *, ways: int, shots: int, queries: int) -> None:
        pass

    def to(self, device: torch.device) -> Prepared:
        return self


def build(threads: int, overrides: Sequence[str] = ()) -> Build:
    """Return the builder of our engine on so many threads, with further settings."""

    def contender(work: Work, values: Sequence[Tensor], tasks: Tasks) -> Contender:
        before = torch.get_num_threads()
        experiment = _experiment(work, tasks, threads, overrides)
        wanted = torch.get_num_threads()  # what training leaves to the thread that calls
        found = _contender(experiment, values, wanted)  # a graph is compiled for so many
        torch.set_num_threads(before)
        return found

    return contender


def _contender(experiment: Experiment, values: Sequence[Tensor], threads: int) -> Contender:
    meta = experiment.initial()
    experiment, choice = settle(experiment, meta)
    with torch.no_grad():
        for own, value in zip(meta["params"].values(), values, strict=True):
            own.copy_(value)
    state = State(meta)
    steps = MetaSteps(experiment, state, lambda *_: None)

    def gradient() -> list[Tensor]:
        return [part.clone() for part in steps.look().gradient["params"].values()]

    def step() -> None:
        steps.take(0.0)
        state.step += 1

    graph = {"yes": ", compiled", "whole": ", compiled whole"}.get(choice.compiled, "")
    at_once, workers = experiment.tasks_at_once(), experiment.workers.count
    how = f"{choice.way}{graph}, {at_once} tasks at once, {workers} workers"
    return Contender(gradient, step, threads, how)


def _experiment(work: Work, tasks: Tasks, threads: int, overrides: Sequence[str]) -> Experiment:
    settings = [*_settings(work, tasks, threads), *overrides]
    if work.algorithm == "anil":
        settings.append("algo.adapt=head")
    checked = check(compose_job(settings))
    prepared = Part("dataset", lambda _: Prepared(work, tasks), {})
    parts = {**checked.parts, "dataset": prepared}
    return assemble(replace(checked, parts=parts), Path("none"))


def _settings(work: Work, tasks: Tasks, threads: int) -> list[str]:
    x = tasks.support_x
    shared = [
        "dataset=glyphs",
        f"hardware.device={x.device}",
        f"hardware.dtype={str(x.dtype).removeprefix('torch.')}",
        f"hardware.threads={threads}",
        f"outer.batch={len(tasks)}",
        f"outer.lr={OUTER_LR}",
        f"task.ways={work.ways}",
        f"task.shots={work.shots}",
        f"task.queries={work.queries}",
        f"task.test_queries={work.queries}",
        f"algo={'imaml' if work.algorithm == 'imaml' else 'maml'}",
        f"algo.steps={work.steps}",
        f"algo.inner_lr={work.inner_lr}",
        f"budget.total={BUDGET}",
    ]
    if work.net == "conv4":
        net = ["model=conv4", f"model.filters={work.filters}", "model.downsample=max_pool"]
        net.append("model.spatial=flatten")
    else:
        net = ["model=mlp", f"model.hidden=[{','.join(map(str, WIDTHS))}]"]
    if work.algorithm == "imaml":  # no tolerance: everyone takes all steps
        algo = [
            "algo.inner_optimizer=sgd",
            f"algo.proximal={work.proximal}",
            f"algo.estimator.iterations={work.cg_steps}",
        ]
        return shared + net + [*algo, "algo.estimator.tolerance=0.0"]
    return shared + net + ([] if work.second_order else ["algo.estimator=first_order"])
