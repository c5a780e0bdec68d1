"""All that metarun says: lines, tables, progress. Text is shown as it is, never as markup."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TextIO, cast

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Column, Table
from rich.text import Text

from metarun.files import unheard
from metarun.report import tables, words
from metarun.report.protocol import LEGEND, protocol, title
from metarun.report.verdict import verdict

if TYPE_CHECKING:
    from metarun.report.result import Comparison, Section

Show = Callable[[float, Mapping[str, float | str]], None]
NARROWEST_NAME = 8  # letters of a method's, folded, before columns are left out
LIVE_S, PLAIN_S = 0.2, 10.0  # between two updates, on a terminal and elsewhere
PLAINER = str.maketrans({words.DASH: "-", words.MINUS: "-", "…": "~"})
COLOURS = {
    **dict.fromkeys(("ok", "done", "Yes"), "green"),
    **dict.fromkeys(
        ("warn", "pending", "preempted", "running", "unfinished", "Not clear"), "yellow"
    ),
    **dict.fromkeys(("fail", "failed", "diverged", "damaged", "No"), "red"),
}


class _Stream:
    """A text stream that takes any text; what it cannot encode is spelt out."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.encoding = getattr(stream, "encoding", None) or "utf-8"

    def write(self, text: str) -> int:
        if not self.encoding.lower().startswith("utf"):
            text = text.replace("± ", "+-").translate(PLAINER)  # columns keep their width
        seen = text.encode(self.encoding, "backslashreplace").decode(self.encoding)
        return self._quietly(lambda: self.stream.write(seen)) or len(text)

    def flush(self) -> None:
        self._quietly(self.stream.flush)

    def isatty(self) -> bool:
        return self.stream.isatty()

    def fileno(self) -> int:
        return self.stream.fileno()

    def _quietly(self, act: Callable[[], int | None]) -> int | None:
        try:
            return act()
        except OSError as error:
            unheard(self.stream, error)
            return None


def console(stream: TextIO) -> Console:
    """Return a console on a stream, made anew so that none outlives a change of streams."""
    return Console(file=cast(TextIO, _Stream(stream)), markup=False, highlight=False, emoji=False)


def say(what: str | RenderableType) -> None:
    """Print a line or a table to standard output."""
    _print(sys.stdout, _text(what, keep="\n") if isinstance(what, str) else what)


def warn(text: str) -> None:
    """Print one line of warning to standard error."""
    _print(sys.stderr, Text.assemble(("metarun: warning: ", "yellow"), _text(text)))


def error(text: str) -> None:
    """Print one line on what went wrong to standard error."""
    _print(sys.stderr, Text.assemble(("metarun: ", "red"), _text(text)))


def outcome(found: Mapping[str, Any]) -> None:
    """Print the result table of one run."""
    say(outcome_table(found))


def outcome_table(outcome: Mapping[str, Any]) -> Table:
    """Return the result of one run, from outcome.json, with the protocol beside the numbers."""
    facts = tables.of_run(outcome)
    table = _titled(facts.caption, Column(style="dim", no_wrap=True), Column(overflow="fold"))
    table.show_header = False
    for name, value in facts.rows:
        table.add_row(_text(name), _text(value))
    return table


def comparison_table(comparison: Comparison, told: Collection[Path] = ()) -> RenderableType:
    """Return the comparison: a table a section, its protocol, the verdict, and who is missing.

    Runs in the folders `told` are missing from that list: they are listed elsewhere.
    """
    parts: list[RenderableType] = [_text(line) for line in comparison.notices]
    for section in comparison.sections:
        parts += ["", Text(title(section), "bold"), _Overview(section), *_remarks(section)]
    if missing := [x for x in comparison.left_out if Path(x.folder) not in told]:
        rows = [(x.name, x.status, x.reason) for x in missing]
        parts += ["", _states("Not in the comparison", ("Run", "State", "Why"), rows)]
        parts += _paths([(x.name, x.folder) for x in missing])
    return Group(*parts)


def sweep_table(rows: Sequence[tuple[str, str, str, str, str]]) -> RenderableType:
    """Return a sweep's jobs: job, state, result, reason, log; an empty column is left out.

    Logs stand below the table, whole, so that they can be copied.
    """
    table = _states("Sweep", ("Job", "State", "Result", "Reason"), [row[:4] for row in rows])
    return Group(table, *_paths([(row[0], row[4]) for row in rows if row[4]]))


def check_table(
    caption: str, rows: Sequence[tuple[str, Literal["ok", "warn", "fail", "skip"], str]]
) -> Table:
    """Return a list of checks: name, ok, warn, fail or skip, detail."""
    return _states(caption, ("Check", "State", "Detail"), rows)


@contextmanager
def progress(description: str, total: float, unit: str) -> Generator[Show]:
    """Yield `show(done, figures)`: a live line on a terminal, else a plain line every 10 s.

    A total of 1 is shown as per cent of the unit. The terminal is restored however the block ends.
    """
    seen: list[tuple[float, float]] = []  # first and last (time, done): a resumed run starts late
    last: dict[str, float | str] = {}
    said = ""  # how far the line drawn last says it is
    live = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
    screen = console(sys.stderr)
    display = Live(console=screen, auto_refresh=False, redirect_stdout=sys.stdout.isatty())
    every = LIVE_S if live else PLAIN_S
    shown = time.monotonic() - (every if live else 0)

    def amount() -> str:
        done = seen[-1][1]
        if total == 1:
            return f"{100 * done:.0f} % of {unit}"
        return f"{words.count(done)}/{words.count(total)} {unit}"

    def line() -> str:
        return ", ".join([amount(), *_figures(last), *_rate(seen, total, unit)])

    def show(done: float, figures: Mapping[str, float | str]) -> None:
        nonlocal shown
        now = time.monotonic()
        seen[1:] = [(now, done)]
        last.update(figures)
        if now - shown >= every:
            shown = now
            draw()

    def draw() -> None:
        nonlocal said
        said = amount()
        if live:
            head = Table.grid(Column(no_wrap=True, max_width=48), "", padding=(0, 1))
            bar = ProgressBar(total, min(seen[-1][1], total), width=24)
            head.add_row(_text(description), bar)
            display.update(Group(head, _text(line())), refresh=True)
        else:
            _print(sys.stderr, _text(f"{description}: {line()}"))

    with display if live else nullcontext():
        try:
            yield show
        finally:
            if seen and (live or amount() != said):
                draw()


def _rate(seen: Sequence[tuple[float, float]], total: float, unit: str) -> list[str]:
    (then, before), (now, done) = seen[0], seen[-1]
    if now <= then or done <= before:
        return []
    rate = (done - before) / (now - then)
    speed = [] if total == 1 else [f"{rate:.3g} {unit}/s"]
    return speed + ([f"{words.seconds((total - done) / rate)} left"] if done < total else [])


def _figures(figures: Mapping[str, float | str]) -> list[str]:
    def one(name: str, value: float | str) -> str:
        if isinstance(value, str):
            return f"{name} {value}"
        if name.endswith("accuracy"):
            return f"{name} {words.score(value, None, 'accuracy')}"
        return f"{value:.3g} {name}" if name.endswith("/s") else f"{name} {value:.4g}"

    return [one(name, value) for name, value in figures.items()]


@dataclass(frozen=True)
class _Overview:
    """A section's table; a narrow terminal gets its first columns, which are whole."""

    section: Section

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        found = tables.overview(self.section)
        widths = [max(map(len, column)) for column in zip(found.head, *found.rows, strict=True)]
        needed = accumulate([2 + NARROWEST_NAME, *(width + 2 for width in widths[1:])])
        shown = max(2, sum(width <= options.max_width for width in needed))
        first, *rest = found.head[:shown]
        table = Table(
            Column(first, overflow="fold", min_width=NARROWEST_NAME),
            *(Column(_text(name), justify="right", no_wrap=True) for name in rest),
            box=box.SIMPLE_HEAD,
            pad_edge=False,
            collapse_padding=True,
        )
        for row in found.rows:
            style = "bold" if row[0] == self.section.reference else ""
            table.add_row(*map(_text, row[:shown]), style=style)
        yield table


def _remarks(section: Section) -> list[RenderableType]:
    said = verdict(section)
    answer = Text(f"{said.answer}. ", f"bold {COLOURS.get(said.answer, '')}") if said.answer else ""
    question = Text.assemble(f"{said.question} " if said.question else "", answer)
    facts = "; ".join(f"{name}: {value}" for name, value in protocol(section))
    lines: list[RenderableType] = [
        Text.assemble(question, _text(f"{said.evidence} {said.cost}".strip())),
        *([_text(section.fairness)] if section.fairness else []),
        *(_text(line) for line in section.notices),
        Text(f"{facts}. {LEGEND}", "dim"),
    ]
    return [Padding(line, (0, 0, 1, 0)) if line is lines[0] else line for line in lines]


def _states(caption: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    used = [i for i in range(len(head)) if any(row[i] for row in rows)]
    columns = (Column(head[i], overflow="fold", no_wrap=head[i] == "State") for i in used)
    table = _titled(caption, *columns)
    for row in rows:
        table.add_row(*(_text(row[i], COLOURS.get(row[i], "")) for i in used))
    return table


def _paths(named: Sequence[tuple[str, str]]) -> list[Text]:
    lines = [_text(f" {name}: {path}") for name, path in named]
    for line in lines:
        line.no_wrap, line.overflow = True, "ignore"
    return lines


def _titled(caption: str, *columns: Column) -> Table:
    return Table(
        *columns,
        title=_text(caption),
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )


def _text(text: str, style: str = "", keep: str = "") -> Text:
    """Return text as it is, its control characters spelt out: it may be anybody's."""
    shown = text if keep else text.replace("\n", " ")
    spelt = (c if c.isprintable() or c in keep else repr(c)[1:-1] for c in shown)
    return Text("".join(spelt), style)


def _print(stream: TextIO, what: RenderableType) -> None:
    console(stream).print(what, soft_wrap=isinstance(what, Text), crop=False)
