"""Whether methods were given the same, and what else a reader must know before comparing."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from metarun.report.result import Entry, Pair
from metarun.report.statistics import collapsed, effective_clusters
from metarun.report.words import budget, count, counted, flop, happened, listed, seconds, several

FEW_TASKS = 100
ORACLE = "is told each task's family, so it is a bound for the others, not a method to use"


def fairness(entries: Sequence[Entry]) -> tuple[bool, str]:
    """Return whether budget unit and total are the same for all, and a sentence that says so.

    Of a single method there is nothing to say.
    """
    if len(entries) == 1:
        return True, ""
    budgets = [budget(entry.budget) for entry in entries]
    usual = Counter(budgets).most_common(1)[0][0]
    others = [
        f"{entry.label} ({given})"
        for entry, given in zip(entries, budgets, strict=True)
        if given != usual
    ]
    if others:
        return False, f"Not the same budget: {several(others)} against {usual} for the rest."
    if usual == "not recorded":
        return False, "The runs do not say what their budget was."
    return True, f"The same budget for every method: {usual}."


def notices(entries: Sequence[Entry]) -> tuple[str, ...]:
    """Return one line for each difference, beside the algorithm, that can explain a result."""
    trained = [entry for entry in entries if entry.cost.get("meta_steps")]
    lines = [
        _differ(entries, "Normalisation", lambda e: e.normalisation),
        _differ(entries, "Model", lambda e: e.model),
        _differ(entries, "Training seeds", lambda e: listed(e.seeds)),
        _differ(trained, "Examples a meta-step", _examples),
        _differ(entries, "Validation", _validation),
        _differ(entries, "Most steps at test", lambda e: str(len(e.by_step) - 1)),
        _differ(entries, "Hardware", lambda e: "; ".join(e.devices), "; seconds do not compare"),
        *(f"{e.label}: {_happened(e)} while training." for e in entries if e.divergence),
        *(f"{e.label}: {_given(e.weights)}." for e in entries if e.weights),
        *(f"{e.label}: {ORACLE}." for e in entries if e.oracle),
        *(f"{e.label}: {_collapse(e)}." for e in entries if _collapse(e)),
    ]
    if entries[0].tasks < FEW_TASKS:
        few = f"Only {entries[0].tasks} test tasks: intervals are rough and rather too narrow"
        lines.append(f"{few}; 600 are usual.")
    return tuple(line for line in lines if line)


def stand_in(reference: str) -> str:
    """Say why this method is the one that the others are set against."""
    return (
        "No reference was named and neither transfer nor scratch took part: the others are set "
        f"against {reference}, the best here (reference=NAME)."
    )


def noisy(pairs: Sequence[Pair], reference: str) -> str:
    """Say whose difference from the reference p calls clear and the training seeds do not."""
    unsure = [
        pair.a
        for pair in pairs
        if pair.b == reference and pair.seeds_ci95 is not None
        if pair.p_value < 0.05 and pair.seeds_ci95 >= abs(pair.difference)
    ]
    start = "p below 0.05 over tasks, yet within the noise of training seeds"
    return f"{start}: {several(unsure)}." if unsure else ""


def heavy_tails(needed: Mapping[str, int], tasks: int) -> str:
    """Say whose mean, or difference from the reference, a few of the tasks decide."""
    skewed = [label for label, least in needed.items() if least > tasks]
    if not skewed or tasks < FEW_TASKS:
        return ""
    most = float(f"{max(needed.values()):.1g}")
    return (
        f"Few tasks weigh heavily in the numbers of {several(skewed)}: their ± may be too narrow, "
        f"their p too small; {most:,.0f} test tasks or more would do (test.tasks)."
    )


def _given(weights: Mapping[str, Any]) -> str:
    """Say what training began with, and that somebody has paid for it."""
    cost = weights.get("cost") or {}
    spent = [flop(cost["flops_total"])] if cost.get("flops_total") else []
    spent += [seconds(cost["train_seconds"])] if cost.get("train_seconds") else []
    price = f" ({several(spent)})" if spent else ""
    return f"began with given weights, {weights['from']}; what these cost{price} is not counted"


def _differ(
    entries: Sequence[Entry], what: str, of: Callable[[Entry], str], so: str = ""
) -> str | None:
    holders: dict[str, list[str]] = {}
    for entry in entries:
        holders.setdefault(of(entry), []).append(entry.label)
    if len(holders) < 2:
        return None
    who = "; ".join(f"{value} ({several(labels)})" for value, labels in holders.items())
    return f"{what}: not the same for all: {who}{so}."


def _examples(entry: Entry) -> str:
    return count(entry.cost.get("examples", math.nan) / entry.cost["meta_steps"])


def _validation(entry: Entry) -> str:
    """Say what choosing rates, steps and checkpoint had to go by."""
    given = entry.validation
    if not given:
        return "not recorded"
    tasks, steps = (counted(given.get(key), key[:-1]) for key in ("tasks", "steps"))
    return f"{tasks}, {steps} at most, every {counted(given.get('every'), 'meta-step')}"


def _collapse(entry: Entry) -> str:
    """Say so where several starts were trained, and nearly all tasks go to one."""
    seeds = [usage for usage in (entry.clusters or {}).get("usage", []) if usage]
    if not any(map(collapsed, seeds)):
        return ""
    return f"{min(map(effective_clusters, seeds)):.1f} of {len(seeds[0])} starts in use"


def _happened(entry: Entry) -> str:
    return several(happened(entry.divergence))
