"""Figures of a comparison: nothing is cut off, however many methods and whatever their names."""

from __future__ import annotations

import pytest
from matplotlib.figure import Figure

from metarun.compare import compare, load
from metarun.report import plots
from metarun.report.figures import figures


@pytest.mark.parametrize(
    ("number", "pattern"),
    [
        (3, "#"),
        (14, "#"),
        (14, "body.block#.*.weight"),
        (9, "a.long.pattern.of.names.#.*." * 5),
    ],
)
def test_all_that_a_figure_says_is_inside_it(make_run, monkeypatch, number: int, pattern: str):
    runs = [
        make_run(str(i), config={"algo": {"learn": pattern.replace("#", str(i))}}, steps=3)
        for i in range(number)
    ]
    comparison = compare(load([*runs, make_run("t", "transfer", steps=3)]))
    seen: list[Figure] = []
    monkeypatch.setattr(plots, "render", lambda figure, _: bytes(seen.append(figure) or 0))
    assert len(figures(comparison)) == 3
    for figure in seen:
        figure.draw_without_rendering()
        said, whole = figure.get_tightbbox(), figure.bbox_inches.padded(0.02)
        assert whole.x0 <= said.x0 <= said.x1 <= whole.x1
        assert whole.y0 <= said.y0 <= said.y1 <= whole.y1
        for axes in figure.axes:
            assert axes.get_position().width > 0.2
