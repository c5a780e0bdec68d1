"""comparison.md: the report for a README or an issue."""

from __future__ import annotations

import re
from collections.abc import Sequence

from metarun.report import tables
from metarun.report.figures import Picture
from metarun.report.protocol import LEGEND, STARTS_LEGEND, protocol, title
from metarun.report.result import Comparison, Section
from metarun.report.verdict import verdict

# Characters with a meaning; an underscore inside a word and a bare "<0.001" have none.
ACTIVE = r"[\\`*\[\]|~#&]|<(?=[A-Za-z/!?])|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])"


def document(comparison: Comparison, pictures: Sequence[Picture]) -> str:
    """Return the whole report; pictures are linked as files beside it."""
    parts = ["# metarun comparison", *(f"> {escape(line)}" for line in comparison.notices)]
    for number, section in enumerate(comparison.sections):
        parts += _section(section, [p for p in pictures if p.section == number])
    if comparison.left_out:
        parts.append(_table(tables.left_out(comparison)))
    return "\n\n".join(parts) + "\n"


def escape(value: str) -> str:
    """Return text in which nothing is Markdown or HTML, on one line."""
    return re.sub(ACTIVE, r"\\\g<0>", " ".join(value.split()))


def _section(section: Section, pictures: Sequence[Picture]) -> list[str]:
    said = verdict(section)
    answer = f"**{escape(said.question)} {said.answer}.** " if said.question else ""
    facts = "; ".join(f"{name.lower()} {value}" for name, value in protocol(section))
    return [
        f"## {escape(title(section))}",
        f"{answer}{escape(said.evidence)} {escape(said.cost)}".strip(),
        _table(tables.results(section)),
        f"Protocol: {escape(facts)}. {LEGEND}",
        *([escape(section.fairness)] if section.fairness else []),
        *(f"- {escape(line)}" for line in section.notices),
        *(f"![{escape(p.alt)}]({p.file})" for p in pictures),
        *(_table(table) for table in tables.of_section(section)),
        *([STARTS_LEGEND] if tables.clustered(section) else []),
    ]


def _table(table: tables.Table) -> str:
    rule = ["---" if i in table.words else "---:" for i in range(len(table.head))]
    lines = [[escape(cell) for cell in row] for row in (table.head, *table.rows)]
    lines.insert(1, rule)
    body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"**{escape(table.caption)}**\n\n{body}"
