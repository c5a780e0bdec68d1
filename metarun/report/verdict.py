"""The sentence at the top: is the meta-learned start better, and what did it cost?"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from metarun.report.words import (
    METRIC_NAMES,
    budget,
    flop,
    over_seeds,
    p_value,
    ratio,
    score,
    seconds,
)

if TYPE_CHECKING:
    from metarun.report.result import Entry, Pair, Section


class Verdict(NamedTuple):
    """A question, its answer in a word, the evidence and the price."""

    question: str
    answer: str  # Yes, No, Not clear; empty when there is nothing to compare
    evidence: str
    cost: str


def verdict(section: Section) -> Verdict:
    """Judge the best meta-learned method against the reference.

    Any method could have been the best, so p is adjusted for the comparisons with the reference.
    Without a meta-learned method, or against one, it judges the best other method by its name, as
    it does a bound where there is nothing else, and where another method of the reference's kind
    is better still.
    """
    others = [entry for entry in section.entries if entry.label != section.reference]
    reference = section.entry(section.reference)
    if not others:
        reached = score(reference.mean, reference.ci95, section.metric)
        evidence = f"{reference.label} reaches {_on(section, reached)}; nothing to compare it with."
        return Verdict("", "", evidence, "")
    honest = [entry for entry in others if not entry.oracle] or others
    best = next((entry for entry in honest if entry.start == "meta-learned"), honest[0])
    pair = section.against_reference(best.label)
    assert pair is not None
    above = honest[: honest.index(best)] if pair.advantage > 0 else []
    rival = next((entry for entry in above if entry.start == reference.start), None)
    return Verdict(
        _question(best, reference, rival),
        _answer(pair),
        _evidence(section, best, pair) + _outdone(rival, section.metric),
        _cost(best, reference),
    )


def _question(best: Entry, reference: Entry, rival: Entry | None) -> str:
    judged = best.start == "meta-learned" and not best.oracle
    if judged and reference.start in ("pre-trained", "random") and rival is None:
        return f"Is the meta-learned start better than the {reference.start} one?"
    return f"Is {best.label} better than {reference.label}?"


def _answer(pair: Pair) -> str:
    if abs(pair.difference) <= pair.ci95 or _adjusted(pair) >= 0.05:
        return "Not clear"
    return "Yes" if pair.advantage > 0 else "No"


def _evidence(section: Section, best: Entry, pair: Pair) -> str:
    metric = section.metric
    reference = section.entry(section.reference)
    word = "higher" if pair.difference >= 0 else "lower"
    gap = score(abs(pair.difference), pair.ci95, metric).replace(" %", " percentage points")
    ours = score(best.mean, best.ci95, metric)
    theirs = score(reference.mean, reference.ci95, metric)
    compared = len(section.pairs if section.stand_in else section.entries[1:])
    said = p_value(_adjusted(pair))
    said += f" after Holm's correction for {compared} comparisons" if compared > 1 else ""
    seeds = f", {len(best.seeds)} training seeds" if len(best.seeds) > 1 else ""
    return (
        f"{best.label} reaches {_on(section, ours)}{seeds}; {reference.label} reaches {theirs} "
        f"on the same tasks. Task by task, {best.label} is {gap} {word} ({said})."
        + _doubt(pair, metric)
    )


def _doubt(pair: Pair, metric: str) -> str:
    """Say so where the noise of training, of which p knows nothing, could turn a clear answer."""
    if _answer(pair) == "Not clear":
        return ""
    if pair.seeds_ci95 is None:
        few = "One training seed" if pair.per_seed else "No training seed in common"
        return f" {few}: how far others would move that difference is not known."
    if pair.seeds_ci95 < abs(pair.difference):
        return ""
    spread = over_seeds(pair.seeds_ci95, len(pair.per_seed), metric).partition(" (")[0]
    seeds = f"{len(pair.per_seed)} training seeds"
    return f" Over {seeds} that difference is uncertain by {spread}: others may answer otherwise."


def _outdone(rival: Entry | None, metric: str) -> str:
    """Say that the reference is not the best of its kind: another one beats what beats it."""
    if rival is None:
        return ""
    reached = score(rival.mean, rival.ci95, metric)
    return f" {rival.label}, {rival.start} as well, does better than both: {reached}."


def _adjusted(pair: Pair) -> float:
    assert pair.p_holm_reference is not None
    return pair.p_holm_reference


def _on(section: Section, reached: str) -> str:
    kind = "an " if section.metric == "accuracy" else "a "
    return f"{kind}{METRIC_NAMES[section.metric]} of {reached} on {section.tasks:,} held-out tasks"


def _cost(best: Entry, reference: Entry) -> str:
    unequal = budget(best.budget) != budget(reference.budget)
    given = bool(best.weights or reference.weights)
    said = _spent(best, reference) + _adapting(best, reference, given)
    said += " What given weights cost is not counted." * given
    return said + " Their budgets differ: not a fair contest." * unequal


def _spent(best: Entry, reference: Entry) -> str:
    ours, theirs = best.cost.get("flops_total"), reference.cost.get("flops_total")
    times = f"{seconds(best.cost.get('train_seconds'))} of training against "
    times += seconds(reference.cost.get("train_seconds"))
    if not ours or not theirs:
        spent = "" if ours is None else f" and {flop(ours)} of compute against {flop(theirs)}"
        return f"It took {times}{spent}."
    compute = f"{ratio(ours, theirs)} compute ({flop(ours)} against {flop(theirs)})"
    return f"It took {compute} and {times}."


def _adapting(best: Entry, reference: Entry, given: bool) -> str:
    """Say what a new task takes and, where one trains dearer and adapts cheaper, when it pays."""
    ours, theirs = (entry.cost.get("flops_per_adaptation") for entry in (best, reference))
    if ours is None or theirs is None:
        return ""
    said = f" Adapting to a new task takes {flop(ours)} against {flop(theirs)}"
    trained, base = (entry.cost.get("flops_total", 0.0) for entry in (best, reference))
    if given or (trained - base) * (theirs - ours) <= 0:
        return f"{said}."
    tasks = math.ceil((trained - base) / (theirs - ours))
    many = f"from {tasks:,} tasks on" if trained > base else f"up to {tasks:,} tasks"
    return f"{said}; training included, {best.label} is the cheaper {many}."
