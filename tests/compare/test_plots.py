"""Figures: drawn for any label and any gap, with colours that stay with their method."""

import itertools
import math
import struct

import pytest

from metarun.errors import StorageError
from metarun.report import plots


def size(path):
    """Width and height of a PNG."""
    return struct.unpack(">II", path.read_bytes()[16:24])


def test_adaptation_is_a_png_of_fixed_size_and_bytes(tmp_path):
    for name in ("a.png", "b.png"):
        plots.adaptation([0.2, 0.5, 0.6], [0.01] * 3, "accuracy", "maml", tmp_path / name)
    assert size(tmp_path / "a.png") == (960, 608)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


@pytest.mark.parametrize(
    "title", ["$\\frac{$", "_hidden", "[red]", "字 \u0416", "a\nb", "%s {} \\"]
)
def test_a_title_is_text(tmp_path, title):
    plots.adaptation([0.2, 0.5], [0.01] * 2, "accuracy", title, tmp_path / "a.png")
    assert size(tmp_path / "a.png") == (960, 608)


@pytest.mark.parametrize("curve", [[math.nan, math.inf], ["NaN", "Infinity"], [0.0, 0.0], [1.0]])
def test_gaps_and_flat_curves_can_be_drawn(tmp_path, curve):
    plots.adaptation(curve, [math.nan] * len(curve), "mse", "t", tmp_path / "a.png")
    assert (tmp_path / "a.png").exists()


def test_errors_of_several_magnitudes_get_a_logarithmic_axis():
    style = plots.Style("#000000", "o")
    for means, expected in (([4.0, 0.02], "log"), ([4.0, 3.0], "linear")):
        with plots.sheet(4, 3) as (_, (axes,)):
            plots.curve(axes, means, [0.001] * 2, "mse", style)
            plots.adaptation_axes(axes, "mse", "")
            assert axes.get_yscale() == expected


def test_a_curve_that_explodes_leaves_the_others_their_room():
    style = plots.Style("#000000", "o")
    with plots.sheet(4, 3) as (_, (axes,)):
        plots.curve(axes, [3.6, 3.4, 3.3, 3.2], [], "mse", style)
        assert plots.cut_at(axes) is None
        plots.curve(axes, [3.5, 2.9, 6.2, 4e6, math.nan], [], "mse", style)
        plots.adaptation_axes(axes, "mse", "")
        low, high = axes.get_ylim()
        assert axes.get_yscale() == "linear"
        assert 2.5 < low < 2.9
        assert high == plots.cut_at(axes) == pytest.approx(7.2)
        plots.curve(axes, [2e18, 2e18], [], "mse", style)
        plots.adaptation_axes(axes, "mse", "")
        assert axes.get_ylim() == (low, high)


@pytest.mark.parametrize("most", [1e8, 2e8, 1e9, 4e9, 4e10, 5e13])
def test_ticks_of_costs_do_not_run_into_one_another(most):
    with plots.sheet(8, 3.7, columns=2) as (figure, (axes, other)):
        for one, unit in ((axes, 1.0), (other, 1e-9)):
            one.errorbar([8e7 * unit, most * unit], [1, 2], [1, 1])
            one.set_xlim(8e7 * unit / 2.3, most * unit * 2.3)
            plots.logarithmic(one, "x", prefixes=unit == 1.0)
        axes.legend(["multi_maml (oracle)"], bbox_to_anchor=(3.1, 0.5))
        figure.draw_without_rendering()
        for one in (axes, other):
            inside = [
                tick.label1.get_window_extent()
                for tick in one.xaxis.get_major_ticks()
                if one.get_xlim()[0] <= tick.get_loc() <= one.get_xlim()[1]
            ]
            assert len(inside) >= 1
            assert all(a.x1 < b.x0 for a, b in itertools.pairwise(inside))
        said = [tick.label1.get_text() for tick in other.xaxis.get_major_ticks()]
        assert not any("m" in text for text in said)  # no minute, no milli: seconds as they are


def test_training_draws_records_of_a_resumed_run_and_of_an_empty_one(tmp_path):
    records = [{"kind": "start", "step": 0}]
    records += [{"kind": "train", "step": s, "loss": 1 / (s + 1)} for s in range(50)]
    records += [{"kind": "train", "step": s, "loss": "NaN"} for s in range(40, 45)]
    records += [{"kind": "validate", "step": 9, "accuracy": {"mean": 0.4, "ci95": 0.01}}]
    plots.training(records, "accuracy", tmp_path / "a.png")
    plots.training([], "mse", tmp_path / "b.png")
    assert size(tmp_path / "a.png") == size(tmp_path / "b.png") == (1440, 576)


def test_a_method_keeps_its_colour_whoever_else_takes_part():
    alone = plots.styles({"maml": "maml"})
    crowd = plots.styles(
        {f"m{i}": f"m{i}" for i in range(20)} | {"maml": "maml", "scratch": "scratch"}
    )
    assert alone["maml"].colour == crowd["maml"].colour
    assert len(crowd) == 22
    variants = plots.styles({f"maml lr={i}": "maml" for i in range(7)})
    assert len({style.colour for style in variants.values()}) == 7
    assert len({style.marker for style in variants.values()}) == 7


@pytest.mark.parametrize("number", [23, 84])
def test_no_two_methods_are_drawn_alike(number):
    names = {f"m{i:02}": f"m{i}" for i in range(number)} | {algo: algo for algo in plots.COLOURS}
    found = list(plots.styles(names).values())
    assert len({(style.colour, style.marker) for style in found}) == len(names)
    lines = {style.line for style in found if style.colour == plots.SPARE[0]}
    assert len(lines) == min(4, math.ceil(number / len(plots.SPARE)))
    assert len(plots.styles({f"m{i}": "m" for i in range(200)})) == 200


def test_known_colours_stay_apart_for_colour_blind_readers():
    def seen(colour):
        """Roughly what a deuteranope sees: red and green fall together (Vienot et al., 1999)."""
        r, g, b = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
        both = 0.29275 * r + 0.70725 * g
        return both, b - 0.02234 * (r - g)

    colours = [seen(colour) for colour in plots.COLOURS.values()]
    gaps = [math.dist(a, b) for i, a in enumerate(colours) for b in colours[:i]]
    assert min(gaps) > 0.1


def test_no_room_for_a_figure_is_a_storage_error(tmp_path):
    with pytest.raises(StorageError):
        plots.adaptation([0.1, 0.2], [0.1, 0.1], "mse", "", tmp_path / "gone" / "a.png")
