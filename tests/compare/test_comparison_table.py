"""The comparison in a terminal, letter by letter, at 80 columns."""

import io
import re

import pytest
from rich.console import Console

from metarun import console
from metarun.compare import compare
from metarun.report import html, markdown
from metarun.report.runs import load


def rendered(what, width=80):
    """The lines of a renderable, without the blanks that pad them."""
    screen = Console(file=io.StringIO(), width=width, record=True, markup=False, highlight=False)
    screen.print(what)
    return [line.rstrip() for line in screen.export_text().splitlines()]


def test_comparison_of_three_seeds(sweep):
    lines = rendered(console.comparison_table(compare(load([sweep]))))
    assert lines[:27] == [
        "1 of the runs found could not be used; it is listed below.",
        "",
        "glyphs, 5-way 1-shot",
        "",
        " Method    Test accuracy  Over transfer       p  Over seeds  Time    FLOP",
        " ────────────────────────────────────────────────────────────────────────",
        " maml       67.3 ± 0.9 %     +9.7 ± 0.4  <0.001   ± 1.4 (3)  63 s  11.0 T",
        " fomaml     64.7 ± 1.0 %     +7.1 ± 0.5  <0.001   ± 0.8 (3)  41 s   7.4 T",
        " imaml      62.9 ± 0.9 %     +5.3 ± 0.5  <0.001   ± 2.5 (3)  88 s  16.0 T",
        " transfer   57.6 ± 0.9 %      reference           ± 0.2 (3)  21 s   2.9 T",
        " scratch    39.2 ± 0.9 %    \N{MINUS SIGN}18.4 ± 0.5  <0.001   ± 0.2 (3)   0 s       0",
        "",
        "Is the meta-learned start better than the pre-trained one? Yes. maml reaches an",
        "accuracy of 67.3 ± 0.9 % on 600 held-out tasks, 3 training seeds; transfer",
        "reaches 57.6 ± 0.9 % on the same tasks. Task by task, maml is 9.7 ± 0.4",
        "percentage points higher (p < 0.001 after Holm's correction for 4 comparisons).",
        "It took 3.8 times the compute (11.0 TFLOP against 2.9 TFLOP) and 63 s of",
        "training against 21 s.",
        "",
        "The same budget for every method: 1,000 meta-steps.",
        "Test tasks: 600 held out, list ca978112; Queries: 15 a class; Normalisation:",
        "batch, transductive; Budget: 1,000 meta-steps; Model: conv4; Seeds: 0, 1, 2;",
        "Hardware: cpu, 2 threads. ± is 1.96 standard errors over tasks; a difference",
        "above zero is better; p is two-sided, paired and of its row alone. ± and p leave",
        "out the noise of training.",
        "",
        "Not in the comparison",
    ]
    assert "maml seed 3   unfinished" in lines[30]


@pytest.mark.parametrize(
    ("width", "left"),
    [
        (80, ["Method", "Test", "accuracy", "Over", "transfer", "p", "Over", "seeds"]),
        (60, ["Method", "Test", "accuracy", "Over", "transfer", "p", "Over", "seeds"]),
        (59, ["Method", "Test", "accuracy", "Over", "transfer", "p"]),
        (40, ["Method", "Test", "accuracy", "Over", "transfer"]),
        (30, ["Method", "Test", "accuracy"]),
    ],
)
def test_a_narrow_terminal_gets_the_first_columns_whole(sweep, width, left):
    lines = rendered(console.comparison_table(compare(load([sweep]))), width)
    heading = next(line for line in lines if "Method" in line)
    assert [word for word in heading.split() if word not in ("Time", "FLOP")] == left
    rows = [line for line in lines if re.match(r" (maml|scratch) .*±", line)]
    assert len(rows) == 2
    for row, score in zip(rows, ("67.3 ± 0.9 %", "39.2 ± 0.9 %"), strict=True):
        assert score in row
        assert "…" not in row


def test_sections_of_other_tasks_are_told_apart(make_run):
    runs = [make_run("m"), make_run("t", "transfer", task_list="b"), make_run("r", metric="mse")]
    found = compare(load(runs))
    text = "\n".join(rendered(console.comparison_table(found)))
    for name in ("glyphs, 5-way 1-shot, list ca978112", "glyphs, 5-way 1-shot, list 3e23e816"):
        assert f"\n{name}\n" in text
        assert f"## {name}\n" in markdown.document(found, ())
    assert "-point regression\n" in text


def test_a_method_alone_has_no_advantage(make_run):
    alone = compare(load([make_run("m0", seed=0), make_run("m1", seed=1)]))
    lines = rendered(console.comparison_table(alone))
    assert "Over maml" not in "\n".join(lines)
    assert re.match(r" maml +67.\d ± \d.\d %  +± \d.\d \(2\)  +63 s  11.0 T$", lines[5])
    for text in (markdown.document(alone, ()), html.page(alone, ())):
        assert "Advantage over" not in text


def test_a_single_method_is_not_said_to_have_the_same_budget(make_run):
    alone = compare(load([make_run("m0", seed=0), make_run("m1", seed=1)]))
    both = compare(load([make_run("m2"), make_run("t", "transfer")]))
    for comparison, said in ((alone, False), (both, True)):
        table = "\n".join(rendered(console.comparison_table(comparison)))
        for text in (table, markdown.document(comparison, ()), html.page(comparison, ())):
            assert ("The same budget for every method" in text) is said
            assert "1,000 meta-steps" in text  # among the facts of the protocol
            assert "\n\n\n" not in text.rstrip("\n")
            assert '"fair"></p>' not in text


def test_regression_fits_too(make_run):
    runs = [
        make_run(f"{algo}{seed}", algo, seed=seed, metric="mse", config={"algo": {"rate": rate}})
        for algo in ("transfer", "maml", "clustered")
        for seed in (0, 1)
        for rate in ([1] if algo != "maml" else [0.001 + seed])
    ]
    text = rendered(console.comparison_table(compare(load(runs))))
    assert max(map(len, text)) <= 80
    assert not any("…" in line for line in text)
    variants = [*runs[2:4]]
    heading = rendered(console.comparison_table(compare(load(variants))))[3]
    assert "Below reference" in heading, "what is lower is better, and stands with a plus"
    words = " ".join(text).split()
    assert "rate=0.001" in words
    assert "rate=1.001" in words


def test_runs_that_the_caller_lists_are_not_listed(sweep):
    comparison = compare(load([sweep]))
    told = rendered(console.comparison_table(comparison, [sweep / "maml-s3"]))
    assert "1 of the runs found" in told[0]
    assert not any("Not in the comparison" in line or "maml-s3" in line for line in told)
    others = rendered(console.comparison_table(comparison, [sweep / "maml-s2"]))
    assert "Not in the comparison" in others


def test_a_name_is_not_markup(make_run):
    def hostile(outcome, _):
        outcome.update(algo="[red]", dataset="[/]", normalisation="[bold]x")

    text = "\n".join(
        rendered(console.comparison_table(compare(load([make_run("m", edit=hostile)]))))
    )
    for name in ("[red]", "[/]", "[bold]x"):
        assert name in text
