"""Train on the pretended device with every meta-step a replay, and without; print the difference.

`recording.py CASE...` with a case's overrides separated by spaces, or `poisoned CASE...` where a
training task is not finite, or `uncompiled CASE...` where the compiler fails; `refused` for what
cannot be recorded. A line a case.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from typing import Any

import pretend
import torch
from child import WORDS, experiment
from tiny import Log

from metarun.assemble import Experiment
from metarun.data.regression import RegressionSource
from metarun.engine.ahead import Ahead
from metarun.engine.batching import settle
from metarun.engine.cost import Flops
from metarun.engine.recorded import RECORDERS, NotRecordedError, Recorded
from metarun.gradients.metagradient import MetaGradient
from metarun.numerics import compiled
from metarun.numerics.outer import OuterOptimizer
from metarun.problem import Meta
from metarun.signals import Stop
from metarun.state import State
from metarun.tasks import Tasks
from metarun.train import train

RECORDERS[pretend.NAME] = pretend.record
compiled.built = lambda graph, inputs: graph  # what a compiler makes of it is not looked at here
BAD = 6 * 2 + 3  # a task of meta-step 2


def trained(words: list[str], *, graph: bool) -> tuple[State, Log, pretend.Waits]:
    """Train in two parts, the second from what the first would have saved."""
    log, stop = Log(), Stop()
    words = [*words, f"hardware.compile={str(graph).lower()}", "validation.every=25"]
    ready = experiment(words, pretended=True)
    state = State(ready.initial())
    settled, _ = settle(ready, state.meta)
    half = replace(settled, budget=replace(settled.budget, total=settled.budget.total / 2))
    with pretend.waits() as counted:
        for part in (half, settled):
            state = train(part, replace(state), log, stop, Flops())
    return state, log, counted


def compare(words: list[str]) -> dict[str, Any]:
    """Return how far replays end from the same meta-steps called one operation after the other."""
    (fast, log, _), (plain, other, _) = (trained(words, graph=graph) for graph in (True, False))

    def furthest(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> float:
        pairs = [(one[name].cpu().double(), two[name].cpu().double()) for name in two]
        return max(float((a - b).abs().max()) for a, b in pairs)

    def figures(log: Log, kind: str, name: str) -> list[Any]:
        return [found[name] for what, _, found in log.records if what == kind]

    losses = zip(figures(log, "train", "loss"), figures(other, "train", "loss"), strict=True)
    return {
        "recorded": figures(log, "recorded", "recorded"),
        "apart": max(furthest(fast.meta[group], plain.meta[group]) for group in plain.meta),
        "moments_apart": furthest(fast.moments, plain.moments) if plain.moments else 0.0,
        "losses_apart": max(abs(a - b) for a, b in losses),
        "counts": [[s.step, s.skipped, s.dropped, s.clipped, s.nonfinite] for s in (fast, plain)],
    }


def poison() -> None:
    """Make one training task's query not finite."""
    inner = RegressionSource.tasks

    def tasks(self: RegressionSource, split: Any, first: int, count: int, **shape: Any) -> Tasks:
        found = inner(self, split, first, count, **shape)
        if split == "train" and first <= BAD < first + count:
            found.query_y[BAD - first] = float("nan")
        return found

    RegressionSource.tasks = tasks


def uncompiled(graph: Any, inputs: Any) -> Any:
    """Stand in for a compiler that is not there."""
    raise compiled.NotCompiledError("no Triton")


def refusals() -> dict[str, str]:
    """Return why meta-gradients cannot be recorded that ask the host, or the meta-step."""
    ready = experiment(["dataset=sinusoid", *WORDS, "algo=maml"], pretended=True)
    exact = ready.algorithm.meta_grad
    assert exact is not None

    def asking(meta: Meta, tasks: Tasks, step: int) -> MetaGradient:
        found = exact(meta, tasks, step)
        return found._replace(figures={"loss": torch.full((6,), float(found.losses.sum()))})

    def counting(meta: Meta, tasks: Tasks, step: int) -> MetaGradient:
        found = exact(meta, tasks, step)
        return found._replace(
            gradient={
                g: {n: v * (1 + step) for n, v in p.items()} for g, p in found.gradient.items()
            }
        )

    return {name: refused(ready, f) for name, f in (("asks", asking), ("counts", counting))}


def refused(ready: Experiment, meta_grad: Any) -> str:
    """Return the refusal, or nothing."""
    meta = ready.initial()
    optimizer = OuterOptimizer(ready.outer, meta, capturable=True)
    try:
        Recorded(meta_grad, meta_grad, optimizer, Ahead(ready))
    except NotRecordedError as error:
        return str(error)
    return ""


def main() -> None:
    """Print JSON lines."""
    cases = sys.argv[1:]
    torch.set_num_threads(1)
    if cases == ["refused"]:
        print(json.dumps(refusals()))
        return
    if cases[0] == "poisoned":
        poison()
        cases = cases[1:]
    if cases[0] == "uncompiled":
        compiled.built = uncompiled
        cases = cases[1:]
    for case in cases:
        words = ["dataset=sinusoid", *WORDS, "model.hidden=[8]", *case.split()]
        print(json.dumps(compare(words)), flush=True)


if __name__ == "__main__":
    main()
