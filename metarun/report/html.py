"""comparison.html: one file that needs nothing else, for the browser and for paper."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from importlib.resources import files

from metarun import __version__
from metarun.report import tables
from metarun.report.figures import Picture
from metarun.report.markup import Markup, css, join, table, tag
from metarun.report.protocol import STARTS_LEGEND, protocol, title
from metarun.report.result import Comparison, Section
from metarun.report.verdict import verdict

NOTE = (
    "± is 1.96 standard errors over test tasks, a 95 % interval. ± and p know the noise of drawing "
    "tasks, not that of training, which “over seeds” shows: Student's 95 % interval over training "
    "seeds. An advantage is the mean of the differences task by task; above zero is better. p is "
    "two-sided, paired and of its row alone; the verdict's is adjusted by Holm's method for all "
    "comparisons with the reference, “Holm” for all pairs of a section. The verdict is about the "
    "best of the methods on these test tasks: its p allows for that choice, its ± does not. "
    "Checkpoints, steps and rates were chosen on validation tasks only, for every method alike; "
    "what choosing took is in no cost. Compute is of matrix products and convolutions."
)


def page(comparison: Comparison, pictures: Sequence[Picture]) -> str:
    """Return the whole page; every figure is inside it."""
    style = files("metarun.report").joinpath("comparison.css").read_text("utf-8")
    names = "; ".join(dict.fromkeys(map(title, comparison.sections)))
    head = tag(
        "head",
        tag("meta", attributes={"charset": "utf-8"}),
        tag("meta", attributes={"name": "viewport", "content": "width=device-width"}),
        tag("title", f"metarun comparison: {names}"),
        tag("style", Markup(style)),
    )
    body = tag(
        "body",
        tag(
            "main",
            tag("header", tag("h1", "metarun comparison")),
            *(tag("p", line, attributes=css("notice")) for line in comparison.notices),
            *(
                _section(section, [p for p in pictures if p.section == number])
                for number, section in enumerate(comparison.sections)
            ),
            _table(tables.left_out(comparison)) if comparison.left_out else "",
            tag(
                "footer",
                tag("p", NOTE),
                tag("p", STARTS_LEGEND) if any(map(tables.clustered, comparison.sections)) else "",
                tag("p", f"metarun {__version__}"),
            ),
        ),
    )
    return "<!doctype html>\n" + tag("html", head, body, attributes={"lang": "en"}) + "\n"


def _section(section: Section, pictures: Sequence[Picture]) -> Markup:
    said = verdict(section)
    tone = {"Yes": "yes", "No": "no"}.get(said.answer, "open")
    question = (
        tag(
            "p",
            said.question,
            " ",
            tag("strong", f"{said.answer}.", attributes=css(tone)),
            attributes=css("question"),
        )
        if said.question
        else ""
    )
    facts = [tag("div", tag("dt", name), tag("dd", value)) for name, value in protocol(section)]
    drawn = {picture.file.rpartition("-")[2]: _figure(picture) for picture in pictures}
    costs, *rest = tables.of_section(section)
    return tag(
        "section",
        tag("h2", title(section)),
        tag(
            "div",
            question,
            tag("p", said.evidence),
            tag("p", said.cost) if said.cost else "",
            attributes=css(f"verdict {tone}"),
        ),
        _table(tables.results(section), section.reference),
        tag("dl", *facts, attributes=css("protocol")),
        tag("p", section.fairness, attributes=css("fair" if section.fair else "notice"))
        if section.fairness
        else "",
        *(tag("p", line, attributes=css("notice")) for line in section.notices),
        drawn.get("adaptation.png", ""),
        drawn.get("paired.png", ""),
        _table(costs, section.reference),
        drawn.get("compute.png", ""),
        drawn.get("confusion.png", ""),
        *(_table(each, section.reference) for each in rest),
    )


def _table(content: tables.Table, reference: str = "") -> Markup:
    rows = [("reference" if row[0] == reference else "", row) for row in content.rows]
    return table(content.caption, content.head, rows, content.words)


def _figure(picture: Picture) -> Markup:
    source = "data:image/svg+xml;base64," + base64.b64encode(picture.svg).decode()
    image = tag("img", attributes={"alt": picture.alt, "src": source})
    return tag("figure", join([tag("figcaption", picture.caption), image]))
