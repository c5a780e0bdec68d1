"""Many runs to one answer: paired differences on the same tasks, intervals, cost."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from metarun.errors import ConfigError, DataError, MetarunError, StorageError
from metarun.files import prepare_folder, write_atomic
from metarun.nearest import did_you_mean
from metarun.paths import find_folder, named_folder
from metarun.report.pairing import section
from metarun.report.pooling import distinct
from metarun.report.protocol import title
from metarun.report.result import Comparison, Section, to_json
from metarun.report.runs import Found, LeftOut, Run, load
from metarun.report.survivors import survivors
from metarun.report.words import shape
from metarun.settings.help import usage

__all__ = ["build", "compare", "load", "main"]


def compare(found: Found, reference: str | None = None) -> Comparison:
    """Compare all methods that met the same test tasks; others stand in sections of their own.

    `reference` is a label or an algorithm; without it transfer, else scratch, else the best.

    Raises: DataError when no run is usable; ConfigError for a reference that took no part.
    """
    groups: dict[str, list[Run]] = {}
    for run in found.runs:
        key = [run.outcome["dataset"], run.outcome["shape"], run.outcome["task_list"], run.metric]
        groups.setdefault(json.dumps(key, sort_keys=True), []).append(run)
    if not groups:
        reasons = "; ".join(f"{x.folder}: {x.status}, {x.reason}" for x in found.left_out)
        raise DataError(f"no finished run to compare: {reasons}")
    left_out = list(found.left_out)
    sections: list[Section] = []
    for runs in groups.values():
        runs, same = distinct(runs)
        left_out += same
        one = section(runs, reference)
        lost = survivors(one.entries, runs, found.left_out)
        sections.append(replace(one, notices=(*one.notices, *lost)))
    called = Counter(map(title, sections))
    sections = [replace(one, twin=called[title(one)] > 1) for one in sections]
    if reference is not None and not any(_named(section, reference) for section in sections):
        raise _no_reference(reference, sections)
    return Comparison(
        tuple(sections), tuple(left_out), _notices(sections, left_out), _runs(found, sections)
    )


def build(folders: list[Path], reference: str | None = None, out: Path | None = None) -> Comparison:
    """Compare the runs under the folders and write comparison.json, .md, .html and PNGs.

    They go into `out`, by default the folder that holds all the given ones.

    Raises: as `load` and `compare`; StorageError when `out` cannot be written.
    """
    from metarun.report.figures import figures
    from metarun.report.html import page
    from metarun.report.markdown import document

    comparison = compare(load(folders), reference)
    out = out if out is not None else common_folder(folders)
    try:
        prepare_folder(out)
    except StorageError as error:
        why = getattr(error.__cause__, "strerror", None) or error
        raise StorageError(f"{out}: {why}; the comparison goes elsewhere with out=DIR") from error
    drawn = figures(comparison)
    for figure in drawn:
        write_atomic(out / figure.file, figure.png)
    text = json.dumps(to_json(comparison), indent=1, allow_nan=False)
    write_atomic(out / "comparison.html", page(comparison, drawn).encode("utf-8", "replace"))
    write_atomic(out / "comparison.md", document(comparison, drawn).encode("utf-8", "replace"))
    write_atomic(out / "comparison.json", text.encode())
    return comparison


def common_folder(folders: Sequence[Path]) -> Path:
    """Return the deepest folder that holds all the given ones.

    Raises: ConfigError when that is the root of the file system.
    """
    common = Path(os.path.commonpath([folder.resolve() for folder in folders]))
    if common == Path(common.anchor):
        raise ConfigError("out: the folders share none to write into; say out=DIR")
    return common


def main(argv: list[str], told: Collection[Path] = ()) -> int:
    """Carry out `metarun compare DIR... [reference=NAME] [out=DIR]`; return the exit code.

    Runs in the folders `told` are not listed as left out: the caller lists them.
    """
    from metarun import console

    try:
        folders, options = _arguments(argv)
        out = Path(options["out"]) if "out" in options else common_folder(folders)
        comparison = build(folders, options.get("reference"), out)
    except MetarunError as error:
        console.error(str(error))
        return error.exit_code
    console.say(console.comparison_table(comparison, told))
    for name in ("comparison.html", "comparison.md", "comparison.json"):
        console.say(str(out / name))
    return 0


def _arguments(argv: list[str]) -> tuple[list[Path], dict[str, str]]:
    folders: list[Path] = []
    options: dict[str, str] = {}
    for word in argv:
        key, equals, value = word.partition("=")
        if equals and key in ("reference", "out"):
            if not value:
                raise ConfigError(f"{key}: empty; {usage('compare')}")
            options[key] = value
        elif equals and named_folder(word) is None:
            hint = did_you_mean(key, ("reference", "out"))
            raise ConfigError(f"{key}: no such setting{hint}; compare takes reference, out")
        elif not _is_comparison(Path(word)):
            folders.append(find_folder("compare", word))
    if not folders:
        raise ConfigError(f"compare: no folder given; {usage('compare')}")
    return folders, options


def _is_comparison(path: Path) -> bool:
    """Tell whether an earlier comparison left this file, which outputs/* names too."""
    return path.name.startswith("comparison") and path.is_file()


def _named(section: Section, name: str) -> bool:
    return any(name in (entry.label, entry.algo) for entry in section.entries)


def _no_reference(name: str, sections: Sequence[Section]) -> ConfigError:
    labels = list(dict.fromkeys(entry.label for s in sections for entry in s.entries))
    hint = did_you_mean(name, labels)
    return ConfigError(f"reference={name}: took no part{hint}; there are {', '.join(labels)}")


def _notices(sections: Sequence[Section], left_out: Sequence[LeftOut]) -> tuple[str, ...]:
    lines: list[str] = []
    if len(sections) > 1:
        lists = "; ".join(
            f"{s.dataset} {shape(s.shape, s.metric)} (list {s.task_list[:8]}): "
            + ", ".join(entry.label for entry in s.entries)
            for s in sections
        )
        lines.append(f"Different test tasks are never paired: {len(sections)} sections. {lists}.")
    if left_out:
        they = "it is" if len(left_out) == 1 else "they are"
        lines.append(f"{len(left_out)} of the runs found could not be used; {they} listed below.")
    return tuple(lines)


def _runs(found: Found, sections: Sequence[Section]) -> tuple[dict[str, Any], ...]:
    outcomes = {str(run.folder): run.outcome for run in found.runs}
    return tuple(
        outcomes[folder] | {"folder": folder, "label": entry.label, "section": number}
        for number, section in enumerate(sections)
        for entry in section.entries
        for folder in entry.folders
    )
