"""Figures as PNG or SVG, drawn without a display and without global state."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from metarun.files import write_atomic
from metarun.report.words import METRIC_NAMES

if TYPE_CHECKING:
    from collections.abc import Generator

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette, which colour-blind readers can tell apart; known methods keep theirs.
COLOURS = {
    "transfer": "#d55e00",
    "maml": "#0072b2",
    "fomaml": "#56b4e9",
    "clustered": "#009e73",
    "imaml": "#cc79a7",
    "reptile": "#e69f00",
    "scratch": "#5f5f5f",
}
SPARE = ("#332288", "#000000", "#882255", "#117733", "#aa4499", "#999933", "#661100")
MARKERS = "osD^vPX*<>hp"
LINES = ("-", "--", ":", "-.")  # a colour's first use is drawn through
ROOMY = {"x": 1.7, "y": 4.0}  # decades whose ticks at 1, 2, 5 have room for their names
FAR = 100  # times the best start's error: a method that tells nothing
INK, GRID = "#222222", "#e3e3e3"
LOOK = {
    "axes.axisbelow": True,
    "axes.edgecolor": "#999999",
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "font.size": 9.5,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "legend.handlelength": 3.4,  # shows a line's dashes either side of its marker
    "lines.linewidth": 1.8,
    "lines.markersize": 5.5,
    "svg.hashsalt": "metarun",
    "text.parse_math": False,  # a label is text, dollar signs and all
    "xtick.color": "#555555",
    "ytick.color": "#555555",
}


class Style(NamedTuple):
    """How a method is drawn, in every figure alike."""

    colour: str
    marker: str
    line: str = "-"

    def of_a_line(self) -> dict[str, Any]:
        """Return the same as matplotlib's arguments."""
        return {"color": self.colour, "marker": self.marker, "linestyle": self.line}


def styles(methods: Mapping[str, str]) -> dict[str, Style]:
    """Give each label (mapped to its algorithm) a colour and a marker that no other has together.

    The first label of a known algorithm has that algorithm's colour in every report. Where a
    colour comes again, its line is broken. Only past 84 spare styles do they come again whole.
    """
    spare = cycle(SPARE)
    free = dict(COLOURS)
    markers: dict[str, str] = {}  # of each colour
    found: dict[str, Style] = {}
    for i, label in enumerate(sorted(methods)):
        colour = free.pop(methods[label], "") or next(spare)
        used, first = markers.get(colour, ""), i % len(MARKERS)
        turned = MARKERS[first:] + MARKERS[:first]
        marker = next((m for m in turned if m not in used), turned[0])
        markers[colour] = used + marker
        found[label] = Style(colour, marker, LINES[len(used) % len(LINES)])
    return found


def axis_label(metric: str) -> str:
    """Return the metric's name with its unit."""
    name = METRIC_NAMES.get(metric, metric)
    return name + (" (%)" if metric == "accuracy" else "")


def scale(metric: str) -> float:
    """Return what a score is multiplied by to be shown: accuracies are per cent."""
    return 100.0 if metric == "accuracy" else 1.0


@contextmanager
def look() -> Generator[None]:
    """Draw in metarun's look inside the block."""
    import matplotlib

    with matplotlib.rc_context(LOOK):  # type: ignore[arg-type]
        yield


@contextmanager
def sheet(width: float, height: float, columns: int = 1) -> Generator[tuple[Figure, list[Axes]]]:
    """Yield an empty figure of that size in inches and its axes, in metarun's look."""
    from matplotlib.figure import Figure

    with look():
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.subplots(1, columns, squeeze=False)[0]
        yield figure, list(axes)


def render(figure: Figure, kind: Literal["png", "svg"]) -> bytes:
    """Draw the figure; the same figure gives the same bytes."""
    stream = io.BytesIO()
    with look(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # a label in a script that the font lacks
        blank = {"Date": None} if kind == "svg" else {"Software": None}
        figure.savefig(stream, format=kind, dpi=160, metadata=blank)
    return stream.getvalue()


def adaptation(
    by_step: Sequence[float], ci: Sequence[float], metric: str, title: str, path: Path
) -> None:
    """Draw one run's test score after 0..K adaptation steps with its 95 % band, as PNG."""
    with sheet(6.0, 3.8) as (figure, (axes,)):
        curve(axes, by_step, ci, metric, Style(COLOURS["maml"], "o"))
        adaptation_axes(axes, metric, title)
        content = render(figure, "png")
    write_atomic(path, content)


def number(value: float | str | None) -> float:
    """Return a recorded figure as it can be drawn: "NaN", "Infinity" and null leave a gap."""
    found = float("nan") if value is None else float(value)
    return found if math.isfinite(found) else float("nan")


def curve(
    axes: Axes, by_step: Sequence[float], ci: Sequence[float], metric: str, style: Style
) -> None:
    """Draw a score at 0..K steps onto axes, with its band unless `ci` is empty."""
    steps, factor = range(len(by_step)), scale(metric)
    means = [factor * number(mean) for mean in by_step]
    if ci:
        low = [m - factor * number(half) for m, half in zip(means, ci, strict=True)]
        high = [m + factor * number(half) for m, half in zip(means, ci, strict=True)]
        axes.fill_between(steps, low, high, color=style.colour, alpha=0.18, linewidth=0)
    axes.plot(steps, means, **style.of_a_line(), markeredgecolor="white")


def adaptation_axes(axes: Axes, metric: str, title: str) -> None:
    """Name the axes of an adaptation curve and count the steps in whole numbers."""
    from matplotlib.ticker import MaxNLocator

    axes.set_title(title)
    axes.set_xlabel("adaptation steps on a new task")
    axes.set_ylabel(f"test {axis_label(metric)}")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if metric == "mse":
        starts = [y for y in _heights(axes, first=True) if y > 0]
        usual = [y for y in starts if y <= FAR * min(starts)]  # one may be lost from the start
        spread(axes, 2 * max(usual, default=math.inf))


def spread(axes: Axes, most: float = math.inf) -> None:
    """Fit the vertical axis to errors of at most `most`; a curve that explodes leaves at the top.

    It is logarithmic when they differ by more than a factor of 20.
    """
    every = [y for y in _heights(axes) if y > 0]
    values = [y for y in every if y <= most]
    if not values:
        return
    low, high = min(values), max(values)
    cut = max(every) > most
    if high > 20 * low:
        axes.set_ylim(low / 1.6, most if cut else high * 1.6)
        logarithmic(axes, "y")
    elif cut:
        axes.set_ylim(low - 0.05 * (most - low), most)


def cut_at(axes: Axes) -> float | None:
    """Return the top of the axis where something drawn lies above it."""
    top = float(axes.get_ylim()[1])
    return top if max(_heights(axes), default=top) > top else None


def _heights(axes: Axes, *, first: bool = False) -> list[float]:
    """Return what lines are drawn through, or where they begin; gaps left out."""
    lines = [[float(y) for y in list(line.get_ydata())] for line in axes.lines]  # type: ignore[arg-type]
    return [y for line in lines for y in (line[:1] if first else line) if math.isfinite(y)]


def logarithmic(axes: Axes, which: Literal["x", "y"], *, prefixes: bool = False) -> None:
    """Make an axis logarithmic, its limits set before, with ticks at 1, 2, 5 where there is room.

    With `prefixes` they read 500 M, 2 G.
    """
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

    low, high = axes.get_xlim() if which == "x" else axes.get_ylim()
    room = math.log10(high / low) <= ROOMY[which]
    axes.set(**{f"{which}scale": "log"})
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if room else (1.0,)))
    axis.set_major_formatter(EngFormatter() if prefixes else lambda value, _: f"{value:g}")
    axis.set_minor_formatter(NullFormatter())


def training(records: list[dict[str, Any]], metric: str, path: Path) -> None:
    """Draw training loss and validation score over meta-steps from a run's records, as PNG.

    A step that was taken twice, before and after a resume, counts as it was taken last.
    """
    losses = {
        r["step"]: number(r["loss"]) for r in records if r.get("kind") == "train" and "loss" in r
    }
    checks = {r["step"]: r[metric] for r in records if r.get("kind") == "validate" and metric in r}
    with sheet(9.0, 3.6, columns=2) as (figure, (left, right)):
        left.plot(list(losses), list(losses.values()), color=COLOURS["maml"], linewidth=1.0)
        left.set_title("Training")
        left.set_ylabel("query loss (mean)")
        right.errorbar(
            list(checks),
            [scale(metric) * number(c["mean"]) for c in checks.values()],
            [scale(metric) * number(c.get("ci95")) for c in checks.values()],
            color=COLOURS["transfer"],
            marker="o",
            markeredgecolor="white",
            elinewidth=1.0,
        )
        right.set_title("Validation")
        right.set_ylabel(axis_label(metric))
        for axes in (left, right):
            axes.set_xlabel("meta-steps")
        content = render(figure, "png")
    write_atomic(path, content)
