"""Several modes in a report: the choice of starts is held against the best, oracles are named."""

from __future__ import annotations

import pytest

from metarun.compare import compare
from metarun.report.figures import figures
from metarun.report.html import page
from metarun.report.markdown import document
from metarun.report.runs import load
from metarun.report.tables import clusters, of_run
from metarun.report.verdict import verdict

MODES = ("sinusoid", "line")


def chose(outcome, arrays):
    """Let a run say what a clustered one says: 600 tasks, 300 of each family."""
    outcome["clusters"] |= {
        "usage": [0.55, 0.45],
        "confusion": [[290, 10], [40, 260]],
        "regret": 0.02,
        "best_start": 0.10,
        "any_start": 3.4,
    }


def told(outcome, arrays):
    """Let a run be that of an oracle, and better than all."""
    outcome |= {"algo": "multi_maml", "oracle": True}
    arrays["mse"] *= 0.2
    one = outcome["test"]["mse"]
    one["by_step"] = arrays["mse"].mean(0).tolist()
    one["mean"] = one["by_step"][one["step"]]


def section_of(make_run):
    family = dict(metric="mse", modes=MODES)
    runs = [
        make_run("a", "maml", **family),
        make_run("b", "clustered", edit=chose, **family),
        make_run("c", "clustered", seed=1, edit=chose, **family),
        make_run("d", "maml", seed=2, edit=told, **family),
    ]
    comparison = compare(load(runs), "maml")
    return comparison, comparison.sections[0]


def test_the_choice_is_held_against_the_best_start(make_run):
    _, section = section_of(make_run)
    found = section.entry("clustered").clusters
    assert (found["regret"], found["any_start"]) == pytest.approx((0.02, 3.4))
    table = clusters(section)
    (row,) = table.rows
    cells = dict(zip(table.head, row, strict=True))
    assert cells["Regret"].startswith("0.02")
    assert cells["Usage, a seed each"] == "55 %, 45 %; 55 %, 45 %"


def test_the_page_shows_families_against_starts(make_run):
    comparison, _ = section_of(make_run)
    drawn = figures(comparison)
    (picture,) = [p for p in drawn if p.file.endswith("confusion.png")]
    assert "first seed" in picture.caption
    assert "clustered: sinusoid 97%, line 87%" in picture.alt
    assert picture.alt in page(comparison, drawn)


def test_an_oracle_is_named_and_never_the_winner(make_run):
    _, section = section_of(make_run)
    assert section.entries[0].label == "multi_maml (oracle)"
    assert section.entries[0].oracle
    assert "clustered reaches" in verdict(section).evidence
    assert any("not a method to use" in line for line in section.notices)
    unasked = compare(load([make_run("e", "maml", metric="mse", modes=MODES)])).sections[0]
    assert unasked.reference == "maml"
    assert not unasked.entries[0].oracle
    assert "(oracle)" in of_run({"algo": "multi_maml", "oracle": True, "status": "x"}).caption


def test_without_a_stated_reference_it_is_not_the_oracle(make_run):
    family = dict(metric="mse", modes=MODES)
    runs = [make_run("a", "maml", **family), make_run("d", "maml", seed=2, edit=told, **family)]
    assert compare(load(runs)).sections[0].reference == "maml"


def test_the_words_for_starts_are_explained_where_there_are_some(make_run):
    comparison, _ = section_of(make_run)
    for text in (page(comparison, []), document(comparison, [])):
        assert "normalised mutual information" in text
    alone = compare(load([make_run("m", metric="mse"), make_run("t", "transfer", metric="mse")]))
    for text in (page(alone, []), document(alone, [])):
        assert "mutual information" not in text


@pytest.mark.parametrize(("usage", "said"), [([0.98, 0.02], True), ([0.55, 0.45], False)])
def test_starts_that_are_hardly_used_are_told(make_run, usage, said):
    """One of two training seeds is enough."""

    def collapsed(outcome, arrays):
        chose(outcome, arrays)
        outcome["clusters"]["usage"] = usage

    family = dict(metric="mse", modes=MODES)
    runs = [
        make_run("a", "maml", **family),
        make_run("b", "clustered", edit=chose, **family),
        make_run("c", "clustered", seed=1, edit=collapsed, **family),
    ]
    found = compare(load(runs), "maml").sections[0].notices
    assert ("clustered: 1.1 of 2 starts in use." in found) is said
