"""The files of a comparison: complete, safe to open, the same each time."""

import base64
import json
import re
from html.parser import HTMLParser

import pytest

from metarun.compare import build, compare, main
from metarun.errors import StorageError
from metarun.report.figures import figures
from metarun.report.html import page
from metarun.report.markdown import document
from metarun.report.markup import tag, text
from metarun.report.result import to_json
from metarun.report.runs import load

FILES = {
    "comparison.html",
    "comparison.json",
    "comparison.md",
    "comparison-adaptation.png",
    "comparison-compute.png",
    "comparison-paired.png",
}
VOID = {"meta", "img", "br"}
HOSTILE = "<script>alert('1')</script> [red]&amp; \"q\" | `x` $\\frac{$ _"


class Page(HTMLParser):
    """Collects tags, attributes and text; fails on a tag that is not closed in turn."""

    def __init__(self, content):
        super().__init__()
        self.open, self.tags, self.attributes, self.words = [], [], [], []
        self.feed(content)
        self.close()
        assert self.open == []

    def handle_starttag(self, name, attributes):
        self.tags.append(name)
        self.attributes += attributes
        if name not in VOID:
            self.open.append(name)

    def handle_endtag(self, name):
        assert self.open.pop() == name

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.words.append(data)


@pytest.fixture(scope="module")
def report(sweep, tmp_path_factory):
    out = tmp_path_factory.mktemp("report") / "new" / "folder"
    comparison = build([sweep], out=out)
    return out, comparison


def test_all_files_are_written_and_no_other(report):
    out, _ = report
    assert {path.name for path in out.iterdir()} == FILES
    for path in out.glob("*.png"):
        assert path.read_bytes().startswith(b"\x89PNG")


def test_json_round_trip_has_the_promised_keys(report, sweep):
    out, comparison = report
    found = json.loads((out / "comparison.json").read_text())
    assert found == json.loads(json.dumps(to_json(comparison)))
    assert len(found["runs"]) == 15
    run = next(run for run in found["runs"] if run["folder"] == str(sweep / "maml-s1"))
    outcome = json.loads((sweep / "maml-s1" / "outcome.json").read_text())
    assert outcome.items() <= run.items()
    assert run["label"] == "maml"
    for pair in found["pairs"]:
        assert {"a", "b", "difference", "ci95", "p_value", "tasks"} <= pair.keys()
    assert found["left_out"][0]["status"] == "unfinished"
    assert found["sections"][0]["entries"][0]["label"] == "maml"


def test_json_has_null_where_a_number_is_not_finite(make_run, tmp_path):
    def lost(outcome, arrays):
        arrays["accuracy"][0, 0] = float("nan")
        outcome["cost"]["tasks_per_second"] = float("inf")

    build([make_run("m", edit=lost)], out=tmp_path / "out")
    found = json.loads((tmp_path / "out/comparison.json").read_text(), parse_constant=pytest.fail)
    assert found["sections"][0]["entries"][0]["by_step"][0] is None


def test_html_parses_and_needs_nothing_from_elsewhere(report):
    out, _ = report
    content = (out / "comparison.html").read_text()
    parsed = Page(content)
    assert ("lang", "en") in parsed.attributes
    assert not {"script", "link", "iframe", "object", "base", "form"} & set(parsed.tags)
    assert "://" not in content
    assert not re.search(r"url\(|@import|//\w", content)
    for name, value in parsed.attributes:
        assert not name.startswith("on")
        if name in ("src", "href"):
            kind, _, data = value.partition(",")
            assert kind == "data:image/svg+xml;base64"
            picture = base64.b64decode(data).decode()
            assert all(ref.startswith("#") for ref in re.findall(r'href="([^"]*)"', picture))
            assert "<script" not in picture


def test_html_is_accessible_and_says_what_matters(report):
    out, _ = report
    parsed = Page((out / "comparison.html").read_text())
    alts = [value for name, value in parsed.attributes if name == "alt"]
    assert len(alts) == parsed.tags.count("img") == 3
    assert all(len(alt) > 30 for alt in alts)
    assert parsed.tags.count("caption") == parsed.tags.count("table")
    assert parsed.attributes.count(("tabindex", "0")) == parsed.tags.count("table")
    assert {"col", "row"} == {value for name, value in parsed.attributes if name == "scope"}
    words = " ".join(parsed.words)
    for expected in (
        "Is the meta-learned start better than the pre-trained one?",
        "Yes.",
        "It took 3.8 times the compute",
        "600 held out, list ca978112",
        "batch, transductive",
        "15 a class",
        "1,000 meta-steps",
        "Not in the comparison",
        "train, step 340",
    ):
        assert expected in words


def contrast(one, other):
    """WCAG 2 contrast ratio of two #rrggbb or #rgb colours."""

    def luminance(colour):
        digits = colour[1:] if len(colour) == 7 else "".join(c * 2 for c in colour[1:])
        channels = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_text_colours_have_enough_contrast(report):
    out, _ = report
    colours = dict(re.findall(r"--(\w+): (#\w+)", (out / "comparison.html").read_text()))
    for name in ("ink", "soft", "yes", "no", "open"):
        for ground in (colours["paper"], colours["tint"], "#fdf3e7"):
            assert contrast(colours[name], ground) >= 4.5


def widths_of_tables(markdown):
    """The numbers of unescaped bars in the lines of each table."""
    blocks = [block for block in markdown.split("\n\n") if block.startswith("|")]
    return [{len(re.findall(r"(?<!\\)\|", line)) for line in b.splitlines()} for b in blocks]


def test_markdown_tables_are_rectangular_and_pictures_exist(report):
    out, _ = report
    markdown = (out / "comparison.md").read_text()
    widths = widths_of_tables(markdown)
    assert len(widths) == 6
    assert all(len(each) == 1 for each in widths)
    pictures = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", markdown)
    assert len(pictures) == 3
    assert all((out / picture).exists() for picture in pictures)


def hostile(outcome, _):
    outcome.update(algo=HOSTILE, dataset=HOSTILE, model=HOSTILE, normalisation=HOSTILE)
    outcome["hardware"]["device"] = HOSTILE
    outcome["budget"] = {"unit": HOSTILE, "total": HOSTILE}


def test_hostile_names_are_shown_and_never_obeyed(make_run, tmp_path):
    runs = [make_run(f"{i} [red]<b>|x", seed=i, edit=hostile) for i in (0, 1)]
    (tmp_path / "<i>").mkdir()
    (tmp_path / "<i>" / "records.jsonl").touch()
    build([*runs, tmp_path / "<i>"], out=tmp_path / "out")
    parsed = Page((tmp_path / "out/comparison.html").read_text())
    assert not {"script", "b", "i"} & set(parsed.tags)
    assert HOSTILE in " ".join(parsed.words)
    markdown = (tmp_path / "out/comparison.md").read_text()
    assert not re.search(r"(?<!\\)<(script|b|i)>", markdown)
    assert all(len(each) == 1 for each in widths_of_tables(markdown))


def test_a_path_that_is_no_unicode_can_be_reported(make_run, tmp_path):
    run = make_run("caf\udce9")
    build([run], out=tmp_path / "out")
    assert "caf" in (tmp_path / "out/comparison.md").read_text()


def test_markup_escapes_all_but_itself():
    assert tag("p", "<&>", tag("b", 1), attributes={"title": '"'}) == (
        '<p title="&quot;">&lt;&amp;&gt;<b>1</b></p>'
    )
    assert text(text("<")) == "&lt;"


def test_the_same_runs_give_the_same_bytes(report, sweep, tmp_path):
    out, _ = report
    build([sweep], out=tmp_path)
    for name in FILES:
        assert (tmp_path / name).read_bytes() == (out / name).read_bytes(), name


def test_a_section_each_gets_its_own_pictures(make_run, tmp_path):
    runs = [make_run("m"), make_run("t", "transfer", task_list="b")]
    comparison = build(runs)
    names = {path.name for path in tmp_path.glob("comparison*.png")}
    assert names == {
        "comparison-adaptation.png",
        "comparison-compute.png",
        "comparison-2-adaptation.png",
        "comparison-2-compute.png",
    }
    assert "never paired" in page(comparison, [])
    assert "never paired" in document(comparison, [])


def test_an_earlier_comparison_survives_a_failure(make_run, tmp_path):
    out = tmp_path / "out"
    run = make_run("m")
    build([run], out=out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    (run / "scores.npz").write_bytes(b"")
    assert main([str(run), f"out={out}"]) == 3
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_an_output_that_is_a_file_is_a_storage_error(make_run, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(
        StorageError, match=r"file/out: .*; the comparison goes elsewhere with out=DIR"
    ):
        build([make_run("m")], out=tmp_path / "file" / "out")


def test_load_and_compare_are_what_build_uses(report, sweep):
    _, comparison = report
    assert compare(load([sweep])) == comparison


def test_a_crowded_figure_has_no_bands_and_says_so(make_run):
    runs = [make_run(str(i), seed=0, config={"algo": {"inner_lr": i}}) for i in range(9)]
    for number, said in (
        (8, "Adaptation to a new task"),
        (9, "no 95 % bands: more than 8 methods"),
    ):
        drawn = figures(compare(load(runs[:number])))
        assert said in drawn[0].caption
        assert ("bands" in drawn[0].caption) == (number > 8)
        assert (b"FillBetween" in drawn[0].svg) == (number <= 8)


def test_costs_call_what_is_learned_numbers(report):
    words = " ".join(Page((report[0] / "comparison.html").read_text()).words)
    assert "Meta-learned numbers" in words
    assert "of them" not in words
