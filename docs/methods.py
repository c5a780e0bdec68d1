"""Write the tables of docs/methods.md: every method's result beside the published one.

python docs/methods.py FOLDER...     # sweeps that hold a comparison.json, or single finished runs

A sweep's methods replace their cells in the first table, a run its row in the second; what the
folders given do not hold stays as it was.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import yaml

PAGE = Path(__file__).with_name("methods.md")
PUBLISHED: dict[str, dict[str, Any]] = yaml.safe_load(
    Path(__file__).with_name("published.yaml").read_text()
)
COLUMNS = ("omniglot_5w1s", "omniglot_5w1s_long", "omniglot_20w1s", "sinusoid", "multimodal")
Rows = list[list[str]]


def table(page: str, name: str) -> Rows:
    """Return the cells of the table behind a marker of that name, its head and rule left out."""
    _, _, after = page.partition(f"<!-- {name} -->\n")
    lines = after.partition("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def replaced(page: str, name: str, rows: Rows) -> str:
    """Return the page with other rows in the table of that name."""
    before, marker, after = page.partition(f"<!-- {name} -->\n")
    old, gap, rest = after.partition("\n\n")
    head = old.splitlines()[:2]
    lines = [*head, *(f"| {' | '.join(row)} |" for row in rows)]
    return before + marker + "\n".join(lines) + gap + rest


def column(section: dict[str, Any]) -> str:
    """Return the name of the column that a section of a comparison belongs to."""
    if section["dataset"] != "omniglot":
        return section["dataset"]
    long = "_long" if "meta-steps" in section["fairness"] else ""
    return f"omniglot_{section['shape']['ways']}w{section['shape']['shots']}s{long}"


def said(entry: dict[str, Any], metric: str) -> str:
    """Return a mean and its interval as the tables print them."""
    if metric == "accuracy":
        return f"{100 * entry['mean']:.1f} ± {100 * entry['ci95']:.1f}"
    return f"{entry['mean']:.3f} ± {entry['ci95']:.3f}"


def published(name: str, algo: str) -> str:
    """Return the published value of a column, a dash where there is none."""
    return str(PUBLISHED[name.removesuffix("_long")].get(algo, "-"))


def with_sweep(rows: Rows, sweep: Path) -> Rows:
    """Return the first table with the results of a sweep."""
    found = {row[0]: row for row in rows}
    for section in json.loads((sweep / "comparison.json").read_text())["sections"]:
        at = 1 + 2 * COLUMNS.index(column(section))
        for entry in section["entries"]:
            row = found.setdefault(entry["algo"], [entry["algo"], *["-"] * 2 * len(COLUMNS)])
            row[at] = said(entry, section["metric"])
    for row in found.values():
        row[2::2] = [published(name, row[0]) for name in COLUMNS]
    return sorted(found.values())


def with_run(rows: Rows, run: Path) -> Rows:
    """Return the second table with one run's row: what it was, what it took and gave."""
    config = yaml.safe_load((run / "config.yaml").read_text())
    outcome = json.loads((run / "outcome.json").read_text())
    algo, cost, test = outcome["algo"], outcome["cost"], outcome["test"]["accuracy"]
    begun = outcome.get("weights")
    row = [
        algo + (f" begun with {Path(begun['from']).name}" if begun else ""),
        f"{cost['meta_steps']:,} of {config['outer']['batch']}",
        f"{cost['flops_total'] / 1e12:,.0f}",
        f"{cost['train_seconds'] / 3600:.1f} h",
        str(test["step"]),
        said(test, "accuracy"),
        published(f"omniglot_{config['task']['ways']}w{config['task']['shots']}s", algo),
    ]
    return sorted([*(other for other in rows if other[:2] != row[:2]), row])


def main(folders: list[str]) -> None:
    """Put the results of sweeps and runs into the page."""
    page = PAGE.read_text()
    every, longer = table(page, "every method"), table(page, "longer runs")
    for folder in map(Path, folders):
        if (folder / "comparison.json").exists():
            every = with_sweep(every, folder)
        else:
            longer = with_run(longer, folder)
    page = replaced(page, "every method", every)
    PAGE.write_text(replaced(page, "longer runs", longer))


if __name__ == "__main__":
    main(sys.argv[1:])
