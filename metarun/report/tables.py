"""The tables of a report as plain rows of text, for Markdown and HTML alike."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from metarun.report.words import (
    DASH,
    agreement,
    bare,
    bare_p,
    budget,
    chosen,
    count,
    counted,
    flop,
    happened,
    memory,
    over_seeds,
    queries,
    score,
    seconds,
    shape,
    signed,
    training,
)

if TYPE_CHECKING:
    from metarun.report.result import Comparison, Entry, Section


MOST_STEPS = 11  # that a table shows of a curve
OVER_SEEDS = "± over seeds (number)"
LONGEST_NAME = 12  # of a reference in a heading that must stay narrow


class Table(NamedTuple):
    """A caption, headings and rows of text; `words` are the columns that hold no figures."""

    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    words: frozenset[int] = frozenset({0})


def results(section: Section) -> Table:
    """Return each method's score and, of several, its paired advantage over the reference."""
    metric, several = section.metric, len(section.entries) > 1
    seeds = any(entry.seeds_ci95 is not None for entry in section.entries)
    head = ["Method", f"Test {metric}"]
    head += [_over(section), "p"] if several else []
    head += [OVER_SEEDS] if seeds else []
    rows: list[tuple[str, ...]] = []
    for entry in section.entries:
        row = [entry.label, score(entry.mean, entry.ci95, metric)]
        row += _advantage(section, entry) if several else []
        row += [over_seeds(entry.seeds_ci95, len(entry.seeds), metric)] if seeds else []
        rows.append(tuple(row))
    return Table("Results on held-out tasks", tuple(head), tuple(rows))


def overview(section: Section) -> Table:
    """Return the results and the cost in few enough words for a terminal of 80 columns."""
    found = results(section)
    name = section.reference if len(section.reference) <= LONGEST_NAME else "reference"
    side = "Over" if section.metric == "accuracy" else "Below"  # what is better stands with a plus
    short = {_over(section): f"{side} {name}", OVER_SEEDS: "Over seeds"}
    head = (*(short.get(words, words) for words in found.head), "Time", "FLOP")
    rows = tuple(
        (
            *row,
            seconds(entry.cost.get("train_seconds")),
            flop(entry.cost.get("flops_total")).removesuffix("FLOP"),
        )
        for row, entry in zip(found.rows, section.entries, strict=True)
    )
    return Table("", head, rows)


def costs(section: Section) -> Table:
    """Return what each method's training cost, and what adapting to a new task takes."""
    head = ("Method", "Meta-steps", "Training time", "Compute", "Compute a new task", "Peak memory")
    head += ("Model's parameters", "Meta-learned numbers")
    rows = tuple(
        (
            entry.label,
            count(entry.cost.get("meta_steps")),
            seconds(entry.cost.get("train_seconds")),
            flop(entry.cost.get("flops_total")),
            flop(entry.cost.get("flops_per_adaptation")),
            memory(entry.cost.get("peak_memory_bytes")),
            count(entry.cost.get("parameters")),
            count(entry.cost.get("meta_parameters")),
        )
        for entry in section.entries
    )
    return Table("What training and a new task cost, mean over seeds", head, rows)


def curves(section: Section) -> Table:
    """Return each method's score after 0..K steps; of long curves, evenly spread steps."""
    steps = _shown(max(len(entry.by_step) for entry in section.entries) - 1)
    rows = tuple(
        (entry.label, *(_at(entry, step, section.metric) for step in steps))
        for entry in section.entries
    )
    unit = "accuracy in %" if section.metric == "accuracy" else section.metric
    return Table(f"By adaptation step, {unit}", ("Steps", *map(str, steps)), rows)


def pairs(section: Section) -> Table:
    """Return every pair; above zero the first of the two is better."""
    metric = section.metric
    head = (
        "Pair",
        "Advantage",
        "p",
        f"p (Holm, {len(section.pairs)} pairs)",
        "Tasks",
        OVER_SEEDS,
    )
    rows = tuple(
        (
            f"{p.a} against {p.b}",
            signed(p.advantage, p.ci95, metric),
            bare_p(p.p_value),
            bare_p(p.p_holm),
            count(p.tasks),
            over_seeds(p.seeds_ci95, len(p.per_seed), metric),
        )
        for p in section.pairs
    )
    return Table("Every pair, on the same tasks", head, rows)


def families(section: Section) -> Table:
    """Return each method's score in each family of tasks."""
    rows = tuple(
        (
            entry.label,
            *(
                score(mean, ci95, section.metric)
                for mean, ci95 in zip(entry.per_mode, entry.ci95_per_mode, strict=True)
            ),
        )
        for entry in section.entries
    )
    return Table("By family of tasks", ("Method", *section.modes), rows)


def clusters(section: Section) -> Table:
    """Return how starts are used, and how choosing them agrees with the true families."""
    names = {"purity": "Purity", "nmi": "NMI", "ari": "ARI"} if section.modes else {}
    names["effective"] = "Clusters in use"
    scores = {"regret": "Regret", "best_start": "Best start", "any_start": "Any start"}
    rows = tuple(
        (
            entry.label,
            *(f"{entry.clusters[key]:.2f}" if key in entry.clusters else DASH for key in names),
            *(score(entry.clusters.get(key, math.nan), None, section.metric) for key in scores),
            "; ".join(_usage(usage) for usage in entry.clusters["usage"]),
        )
        for entry in section.entries
        if entry.clusters
    )
    head = ("Method", *names.values(), *scores.values(), "Usage, a seed each")
    what = "Clusters against families" if section.modes else "Clusters"
    return Table(what, head, rows, frozenset({0, len(head) - 1}))


def clustered(section: Section) -> bool:
    """Tell whether a method of the section chooses among starts."""
    return any(entry.clusters for entry in section.entries)


def seeds(section: Section) -> Table:
    """Return every run: its seed, score, what validation chose, budget, folder."""
    rows = tuple(
        (
            entry.label,
            str(entry.seeds[i]),
            score(entry.seed_means[i], None, section.metric),
            chosen(entry.chosen[i]),
            budget(entry.budget),
            folder,
        )
        for entry in section.entries
        for i, folder in enumerate(entry.folders)
    )
    head = ("Method", "Seed", "Score", "Chosen on validation", "Budget", "Folder")
    return Table("Runs", head, rows, frozenset({0, 3, 4, 5}))


def left_out(comparison: Comparison) -> Table:
    """Return the runs that could not be used, and why."""
    rows = tuple((x.name, x.status, x.reason, x.folder) for x in comparison.left_out)
    head = ("Run", "State", "Why", "Folder")
    return Table("Not in the comparison", head, rows, frozenset({0, 1, 2, 3}))


def of_run(outcome: Mapping[str, Any]) -> Table:
    """Return the result of one run, from its outcome.json, with the protocol beside the numbers."""
    told = " (oracle)" if outcome.get("oracle") else ""
    whose = f"{outcome.get('algo', '?')}{told} on {outcome.get('dataset', '?')}"
    caption = f"{whose}, seed {outcome.get('seed', '?')}"
    if outcome.get("status") != "done":
        ended = f"{outcome.get('status')}: {outcome.get('reason', 'no reason given')}"
        return Table(caption, ("", ""), (("status", ended),), frozenset({0, 1}))
    cost, shape_ = outcome.get("cost") or {}, outcome.get("shape") or {}
    rows: list[tuple[str, str]] = []
    for metric, test in outcome["test"].items():
        result = score(float(test["mean"]), float(test["ci95"]), metric)
        steps = _shown(len(test["by_step"]) - 1)
        curve = ", ".join(bare(float(test["by_step"][step]), metric) for step in steps)
        if len(steps) < len(test["by_step"]):
            curve += f" (at {', '.join(map(str, steps))})"
        rows += [(f"test {metric}", f"{result} on {counted(test['tasks'], 'held-out task')}")]
        rows += [("by step", curve), ("task", shape(shape_, metric))]
        rows += [("queries", queries(shape_, metric))]
    learned = counted(cost.get("meta_parameters"), "number")
    adapting = cost.get("flops_per_adaptation")
    rows += [
        ("chosen", chosen(outcome.get("chosen") or {})),
        ("normalisation", str(outcome.get("normalisation", "not recorded"))),
        ("task list", str(outcome.get("task_list", ""))[:8] or "not recorded"),
        ("budget", budget(outcome.get("budget") or {})),
        ("training", training(cost)),
        *([("a new task", f"{flop(adapting)} to adapt")] if adapting is not None else []),
        ("parameters", f"{count(cost.get('parameters'))} in the model; {learned} meta-learned"),
    ]
    if "effective" in (groups := outcome.get("clusters") or {}):
        rows.append(("clusters", agreement(groups)))
    if seen := {key: n for key, n in (outcome.get("divergence") or {}).items() if n}:
        rows.append(("in training", ", ".join(happened(seen))))
    return Table(caption, ("", ""), tuple(rows), frozenset({0, 1}))


def of_section(section: Section) -> list[Table]:
    """Return the tables after the results, in reading order."""
    several = [pairs(section)] if len(section.entries) > 2 else []
    modes = [families(section)] if section.modes else []
    groups = [clusters(section)] if clustered(section) else []
    return [costs(section), curves(section), *several, *modes, *groups, seeds(section)]


def _over(section: Section) -> str:
    unit = "points" if section.metric == "accuracy" else "less error"
    return f"Advantage over {section.reference} ({unit})"


def _advantage(section: Section, entry: Entry) -> tuple[str, str]:
    pair = section.against_reference(entry.label)
    if pair is None:
        return ("reference", "")
    return signed(pair.advantage, pair.ci95, section.metric), bare_p(pair.p_value)


def _at(entry: Entry, step: int, metric: str) -> str:
    return bare(entry.by_step[step], metric) if step < len(entry.by_step) else ""


def _shown(last: int) -> list[int]:
    return sorted({round(i * last / (MOST_STEPS - 1)) for i in range(MOST_STEPS)})


def _usage(usage: Any) -> str:
    if not isinstance(usage, list):
        return DASH
    total = sum(usage) or 1
    return ", ".join(f"{100 * share / total:.0f} %" for share in usage)
