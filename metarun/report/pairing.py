"""Methods that met the same tasks, set against each other."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import cast

from metarun.errors import ConfigError
from metarun.report.fairness import fairness, heavy_tails, noisy, notices, stand_in
from metarun.report.pooling import Method, methods
from metarun.report.result import Pair, Section, SeedDifference
from metarun.report.runs import Run
from metarun.report.statistics import holm, paired, seed_ci, tasks_needed

HIGHER_IS_BETTER = {"accuracy": True, "mse": False}
REFERENCES = ("transfer", "scratch")  # the first that took part


def section(runs: Sequence[Run], reference: str | None) -> Section:
    """Compare runs that met the same tasks: methods best first, pairs with the reference first.

    Raises: ConfigError for a reference that means several methods.
    """
    first = runs[0]
    up = HIGHER_IS_BETTER[first.metric]
    modes = _mode_names(runs)
    found = sorted(methods(runs, len(modes)), key=lambda m: -m.entry.mean if up else m.entry.mean)
    entries = tuple(method.entry for method in found)
    named = _reference(found, reference)
    chosen = named or next((m for m in found if not m.entry.oracle), found[0]).entry.label
    fair, sentence = fairness(entries)
    pairs = _pairs(found, chosen, 1 if up else -1, stand_in=named is None)
    remarks = [*_remarks(found, chosen, stood_in=named is None), noisy(pairs, chosen)]
    return Section(
        dataset=str(first.outcome["dataset"]),
        shape=dict(first.outcome["shape"]),
        metric=first.metric,
        task_list=str(first.outcome["task_list"]),
        tasks=len(first.task),
        reference=chosen,
        entries=entries,
        pairs=pairs,
        modes=modes if len(modes) > 1 else (),
        fair=fair,
        fairness=sentence,
        notices=(*filter(None, remarks), *notices(entries)),
        stand_in=named is None,
    )


def _reference(found: Sequence[Method], asked: str | None) -> str | None:
    labels = [method.entry.label for method in found]
    for name in (asked, *REFERENCES):
        if name in labels:
            return name
        same = [method.entry.label for method in found if method.entry.algo == name]
        if len(same) > 1 and name == asked:
            raise ConfigError(f"reference={name}: is one of {', '.join(same)}; give it whole")
        if same:
            return min(same)  # not the best: that would be a choice by the test tasks
    return None


def _pairs(
    found: Sequence[Method], reference: str, sign: int, *, stand_in: bool
) -> tuple[Pair, ...]:
    base = next(method for method in found if method.entry.label == reference)
    others = [method for method in found if method is not base]
    couples = [(method, base) for method in others] + list(combinations(others, 2))
    results = [paired(a.scores, b.scores) for a, b in couples]
    adjusted = holm([result.p_value for result in results])
    # A reference that is the best of these tasks could have been any: all pairs were looked at.
    against = adjusted if stand_in else holm([one.p_value for one in results[: len(others)]])
    pairs: list[Pair] = []
    for i, ((a, b), result) in enumerate(zip(couples, results, strict=True)):
        seeds = [s for s in a.by_seed if s in b.by_seed]
        each = [(seed, paired(a.by_seed[seed], b.by_seed[seed])) for seed in seeds]
        pairs.append(
            Pair(
                a=a.entry.label,
                b=b.entry.label,
                difference=result.difference,
                ci95=result.ci95,
                p_value=result.p_value,
                p_holm=float(adjusted[i]),
                p_holm_reference=float(against[i]) if i < len(others) else None,
                tasks=result.tasks,
                advantage=sign * result.difference,
                per_seed=tuple(
                    SeedDifference(s, one.difference, one.ci95, one.p_value) for s, one in each
                ),
                seeds_ci95=seed_ci([one.difference for _, one in each]).ci95
                if len(each) > 1
                else None,
            )
        )
    return tuple(pairs)


def _remarks(found: Sequence[Method], reference: str, *, stood_in: bool) -> list[str]:
    base = next(method.scores for method in found if method.entry.label == reference)
    needed = {
        method.entry.label: max(tasks_needed(method.scores), tasks_needed(method.scores - base))
        for method in found
    }
    lines = [stand_in(reference)] if stood_in and len(found) > 1 else []
    return [*lines, heavy_tails(needed, len(base))]


def _mode_names(runs: Sequence[Run]) -> tuple[str, ...]:
    named = [(run.outcome.get("clusters") or {}).get("modes") or [] for run in runs]
    number = max([int(run.mode.max()) + 1 for run in runs] + [len(names) for names in named])
    names = max(cast(list[list[str]], named), key=len)
    return tuple(str(name) for name in names) + tuple(
        f"family {m}" for m in range(len(names), number)
    )
