"""The protocol that stands beside every number."""

from __future__ import annotations

from typing import TYPE_CHECKING

from metarun.report.words import budget, listed, queries, shape

if TYPE_CHECKING:
    from metarun.report.result import Section

LEGEND = (
    "± is 1.96 standard errors over tasks; p is two-sided, paired and of its row alone. "
    "Both leave out the noise of training."
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
