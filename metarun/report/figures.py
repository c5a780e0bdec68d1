"""The figures of a comparison: adaptation, paired differences, score against compute."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from metarun.report import plots
from metarun.report.protocol import title
from metarun.report.result import Comparison, Entry, Section
from metarun.report.words import METRIC_NAMES, bare, counted, score, signed

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 8.0  # inches
BESIDE = (1.02, 0.5)
FEW = 12  # methods that a legend beside has room for
SHORT = 24  # characters of a name that it has room for
LETTER, AROUND = 0.07, 0.95  # inches that a legend below takes of a name's letter, and beside it
LINE = 84  # characters of a line of a legend below
NAME = 36  # characters of a line of a name beside an axis
BANDS = 8  # that can be told apart in one figure
TITLE = 70  # characters of a line of a title
ROOM = 2.3  # either side of the costs: enough for two ticks of 1, 2, 5


class Picture(NamedTuple):
    """A figure of one section, drawn twice: as a file and for a page."""

    section: int
    file: str
    caption: str
    alt: str
    png: bytes
    svg: bytes


def figures(comparison: Comparison) -> list[Picture]:
    """Draw all figures of all sections; a single method has no paired differences to show."""
    drawn: list[Picture] = []
    for number, section in enumerate(comparison.sections):
        style = plots.styles({entry.label: entry.algo for entry in section.entries})
        kinds = {"adaptation": _adaptation, "paired": _paired, "compute": _compute}
        if len(section.entries) == 1:
            del kinds["paired"]
        if section.modes and _confused(section):
            kinds["confusion"] = _confusion
        for kind, draw in kinds.items():
            figure, caption, alt = draw(section, style)
            svg = plots.render(figure, "svg")  # its page has the caption; a file needs its own
            with plots.look():
                said = textwrap.fill(f"{caption}: {title(section)}", TITLE)
                figure.suptitle(said, x=0.01, ha="left", weight="bold")
            file = f"comparison{f'-{number + 1}' if number else ''}-{kind}.png"
            drawn.append(Picture(number, file, caption, alt, plots.render(figure, "png"), svg))
    return drawn


def _adaptation(section: Section, style: dict[str, plots.Style]) -> tuple[Figure, str, str]:
    metric, crowded = section.metric, len(section.entries) > BANDS
    caption = "Adaptation to a new task"
    caption += f" (no 95 % bands: more than {BANDS} methods)" if crowded else ""
    with plots.sheet(WIDTH, 4.0 + _below(section)) as (figure, (axes,)):
        for entry in section.entries:
            band = () if crowded else entry.ci95_by_step
            plots.curve(axes, entry.by_step, band, metric, style[entry.label])
        plots.adaptation_axes(axes, metric, "")
        _legend(axes, section)
        top = plots.cut_at(axes)
    caption += f" (errors above {bare(top, metric)} are cut off)" if top is not None else ""
    ends = "; ".join(f"{e.label} {_course(e, metric)}" for e in section.entries)
    return figure, caption, f"{METRIC_NAMES[metric].capitalize()} by adaptation step: {ends}."


def _course(entry: Entry, metric: str) -> str:
    """Say where a method's curve begins and ends; one that diverges ends nowhere."""
    means = entry.by_step
    ends = f"to {score(means[-1], None, metric)} in {counted(len(means) - 1, 'step')}"
    if lost := [step for step, mean in enumerate(means) if not math.isfinite(mean)]:
        ends = f"to no finite value at step {lost[0]}"
    return f"from {score(means[0], None, metric)} {ends}"


def _paired(section: Section, style: dict[str, plots.Style]) -> tuple[Figure, str, str]:
    factor = plots.scale(section.metric)
    pairs = [pair for pair in section.pairs if pair.b == section.reference][::-1]
    names = [textwrap.fill(pair.a, NAME) for pair in pairs]
    lines = [line for name in names for line in name.split("\n")]
    with plots.sheet(WIDTH, 1.1 + 0.24 * len(pairs) + 0.18 * len(lines)) as (figure, (axes,)):
        axes.axvline(0, color="#555555", linewidth=1.2)
        for row, pair in enumerate(pairs):
            sign = 1 if pair.advantage == pair.difference else -1
            for seed in pair.per_seed if len(pair.per_seed) > 1 else ():
                x = factor * sign * seed.difference
                axes.plot(x, row - 0.22, ".", color=style[pair.a].colour, alpha=0.6)
            axes.errorbar(
                factor * pair.advantage,
                row,
                xerr=factor * pair.ci95,
                color=style[pair.a].colour,
                marker=style[pair.a].marker,
                markersize=7,
                elinewidth=2.2,
                capsize=4,
            )
        axes.set_yticks(range(len(pairs)), names, color=plots.INK)
        axes.set_ylim(-0.6, len(pairs) - 0.4)
        axes.grid(axis="y", visible=False)
        axes.margins(x=0.12)
        unit = "percentage points" if section.metric == "accuracy" else "less squared error"
        label = f"advantage over {section.reference} ({unit}); right of zero is better"
        axes.set_xlabel(textwrap.fill(label, 100 - max(map(len, lines))))
    said = "; ".join(f"{p.a} {signed(p.advantage, p.ci95, section.metric)}" for p in pairs[::-1])
    caption = f"Paired difference from {section.reference}"
    return figure, caption, f"Advantage over {section.reference} on the same tasks: {said}."


def _compute(section: Section, style: dict[str, plots.Style]) -> tuple[Figure, str, str]:
    metric = section.metric
    caption = f"{METRIC_NAMES[metric].capitalize()} against cost"
    with plots.sheet(WIDTH, 3.7 + _below(section), columns=2) as (figure, axes):
        for one, key, what in zip(
            axes,
            ("flops_total", "train_seconds"),
            ("training compute (FLOP)", "training time (s)"),
            strict=True,
        ):
            for entry in section.entries:
                _cost_point(one, entry, key, metric, style[entry.label])
            if spent := [x for entry in section.entries if (x := entry.cost.get(key))]:
                one.set_xlim(min(spent) / ROOM, max(spent) * ROOM)
                plots.logarithmic(one, "x", prefixes=key == "flops_total")
            one.set_xlabel(what)
            if metric == "mse":
                plots.spread(one)
        axes[0].set_ylabel(f"test {plots.axis_label(metric)}")
        _legend(axes[1], section)
    if not all(entry.cost.get("flops_total") for entry in section.entries):
        caption += " (dashed: no training)"
    return figure, caption, f"{caption}; the figures are in the table of costs."


def _confused(section: Section) -> list[Entry]:
    """Return the methods that say which start each family's tasks took."""
    return [e for e in section.entries if any((e.clusters or {}).get("confusion", []))]


def _confusion(section: Section, style: dict[str, plots.Style]) -> tuple[Figure, str, str]:
    entries, caption = _confused(section), "Which start each family's tasks take"
    said: list[str] = []
    titles = {entry.label: entry.label.replace(" ", "\n") for entry in entries}
    lines = max(title.count("\n") for title in titles.values())
    height = 1.2 + 0.36 * len(section.modes) + 0.17 * lines
    width = max(WIDTH, 2.0 + 2.6 * len(entries))  # as wide as the others, which a page scales
    with plots.sheet(width, height, columns=len(entries)) as (figure, axes):
        for one, entry in zip(axes, entries, strict=True):
            counts: list[list[float]] = next(filter(None, (entry.clusters or {})["confusion"]))
            shares = [[c / max(sum(row), 1) for c in row] for row in counts]
            one.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
            for row, line in enumerate(shares):
                for column, share in enumerate(line):
                    ink = "white" if share > 0.6 else plots.INK
                    text = f"{100 * share:.0f}" if share else ""
                    one.text(column, row, text, ha="center", va="center", color=ink, fontsize=8)
            one.set_title(titles[entry.label], fontsize=9)
            one.set_xticks(range(len(shares[0])), [str(m + 1) for m in range(len(shares[0]))])
            names = section.modes if one is axes[0] else [""] * len(section.modes)
            one.set_yticks(range(len(section.modes)), names)
            one.set_xlabel("start")
            one.grid(visible=False)
            taken = (f"{name} {max(s):.0%}" for name, s in zip(section.modes, shares, strict=True))
            said.append(f"{entry.label}: {', '.join(taken)}")
        several = any(len(entry.seeds) > 1 for entry in entries)
        caption += " (% of a family's tasks" + (", first seed)" if several else ")")
    return figure, caption, f"Share of each family in its commonest start. {'; '.join(said)}."


def _cost_point(axes: Axes, entry: Entry, key: str, metric: str, style: plots.Style) -> None:
    y, half = plots.scale(metric) * entry.mean, plots.scale(metric) * entry.ci95
    if spent := entry.cost.get(key):
        axes.errorbar(
            spent, y, half, color=style.colour, marker=style.marker, linestyle="none", capsize=3
        )
    else:  # nothing spent has no place on a logarithmic axis
        axes.axhline(y, color=style.colour, linestyle="--", linewidth=1.4)


def _fits_beside(names: Sequence[str]) -> bool:
    return len(names) <= FEW and max(map(len, names)) <= SHORT


def _names(section: Section) -> list[str]:
    # matplotlib hides a label that starts with an underscore.
    return [f" {e.label}" if e.label.startswith("_") else e.label for e in section.entries]


def _columns(names: Sequence[str]) -> int:
    """Return how many columns of a legend below a sheet is wide enough for."""
    longest = min(max(map(len, names)), LINE)
    return min(max(int(WIDTH / (AROUND + LETTER * longest)), 1), len(names))


def _below(section: Section) -> float:
    """Return the height of a legend below, in inches; nothing where there is room beside."""
    names = _names(section)
    if _fits_beside(names):
        return 0.0
    lines = max(len(textwrap.wrap(name, LINE)) for name in names)
    return 0.1 + 0.2 * lines * -(-len(names) // _columns(names))


def _legend(axes: Axes, section: Section) -> None:
    from matplotlib.lines import Line2D

    style = plots.styles({entry.label: entry.algo for entry in section.entries})
    handles = [Line2D([], [], **style[e.label].of_a_line()) for e in section.entries]
    names = _names(section)
    if _fits_beside(names):
        axes.legend(handles, names, loc="center left", bbox_to_anchor=BESIDE, labelcolor=plots.INK)
        return
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.legend(
        handles,
        [textwrap.fill(name, LINE, drop_whitespace=False) for name in names],
        loc="outside lower center",
        ncols=_columns(names),
        labelcolor=plots.INK,
        fontsize=9,
    )
