"""The protocol that stands beside every number."""

from __future__ import annotations

from typing import TYPE_CHECKING

from metarun.report.words import budget, listed, queries, shape

if TYPE_CHECKING:
    from metarun.report.result import Section

LEGEND = (
    "± is 1.96 standard errors over tasks; a difference above zero is better; p is two-sided, "
    "paired and of its row alone. ± and p leave out the noise of training."
)
STARTS_LEGEND = (
    "Purity, NMI (normalised mutual information) and ARI (adjusted Rand index) say how well the "
    "chosen starts agree with the true families, 1 at best. Clusters in use is their effective "
    "number, exp of the entropy of their use. Best start is the score if the query chose the "
    "start, any start if chance did; regret is how much worse the support's choice is than the "
    "query's. No method may look at the query."
)


def title(section: Section) -> str:
    """Return 'glyphs, 5-way 1-shot', with the list of tasks where only that tells two apart."""
    listed = f", list {section.task_list[:8]}" if section.twin else ""
    return f"{section.dataset}, {shape(section.shape, section.metric)}{listed}"


def protocol(section: Section) -> list[tuple[str, str]]:
    """Return what a number means nothing without: tasks, queries, normalisation, budget, model."""
    return [
        ("Test tasks", f"{section.tasks:,} held out, list {section.task_list[:8]}"),
        ("Queries", queries(section.shape, section.metric)),
        ("Normalisation", _each([entry.normalisation for entry in section.entries])),
        ("Budget", _each([budget(entry.budget) for entry in section.entries])),
        ("Model", _each([entry.model for entry in section.entries])),
        ("Seeds", _each([listed(entry.seeds) for entry in section.entries])),
        ("Hardware", _each([device for entry in section.entries for device in entry.devices])),
    ]


def _each(values: list[str]) -> str:
    return " | ".join(dict.fromkeys(values))
