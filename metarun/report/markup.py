"""HTML as nested calls; text is escaped unless it came out of a call here."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping

VOID = frozenset(("img", "meta", "br"))


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def tag(name: str, *children: object, attributes: Mapping[str, str] | None = None) -> Markup:
    """Return an element; children that are not Markup are shown as the text they are."""
    said = "".join(f' {k}="{html.escape(v)}"' for k, v in (attributes or {}).items())
    inside = "".join(map(text, children))
    return Markup(f"<{name}{said}>" if name in VOID else f"<{name}{said}>{inside}</{name}>")


def text(value: object) -> Markup:
    """Return a value as HTML text."""
    return value if isinstance(value, Markup) else Markup(html.escape(str(value)))


def join(parts: Iterable[object]) -> Markup:
    """Return parts one after another."""
    return Markup("".join(map(text, parts)))


def css(name: str) -> dict[str, str]:
    """Return the attribute that gives an element a class."""
    return {"class": name}


def table(
    caption: str,
    head: Iterable[object],
    rows: Iterable[tuple[str, Iterable[object]]],
    words: frozenset[int] = frozenset({0}),
) -> Markup:
    """Return a table; rows are (class, cells), their first cell a heading.

    Columns in `words` are set as text, the others as figures, right-aligned.
    """

    def kind(column: int) -> dict[str, str]:
        return {} if column in words else css("figure")

    heads = [tag("th", h, attributes={"scope": "col"} | kind(i)) for i, h in enumerate(head)]
    body: list[Markup] = []
    for name, cells in rows:
        first, *rest = cells
        line = [tag("th", first, attributes={"scope": "row"})]
        line += [tag("td", cell, attributes=kind(i)) for i, cell in enumerate(rest, 1)]
        body.append(tag("tr", *line, attributes=css(name) if name else None))
    whole = tag(
        "table", tag("caption", caption), tag("thead", tag("tr", *heads)), tag("tbody", *body)
    )
    # Wider than a telephone: whoever has no mouse scrolls it by its focus.
    focus = {"tabindex": "0", "role": "region", "aria-label": caption}
    return tag("div", whole, attributes=css("scroll") | focus)
