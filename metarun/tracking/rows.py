"""Records as W&B wants them: a row of figures a step, then a summary; wandb is not needed here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from metarun.records import RESTARTS, Record

LIVE = ("train", "validate", "diverged")  # kinds that make rows
STAMPS = ("kind", "step", "time")
OF_THE_OUTCOME = ("cost", "clusters", "divergence", "chosen")

COMPARED = (
    *("dataset", "metric", "method", "mean", "ci95", "tasks", "seeds", "reference"),
    *("difference", "difference_ci95", "p_value", "p_holm_reference"),
    "difference_seeds_ci95",
    *("meta_steps", "train_seconds"),
)


class Table(NamedTuple):
    """A table with a head."""

    columns: tuple[str, ...]
    lines: list[list[Any]]


class Row(NamedTuple):
    """All figures of one meta-step; complete, so that it can be sent once and for all."""

    step: int
    time: float
    figures: dict[str, float]


def rows(records: Iterable[Record], first: int = 0) -> Iterator[Row]:
    """Gather train, validate and diverged records into rows of rising step, from `first` on.

    A row is given out when a later step, or the end, shows that it is complete; the last step of a
    run that was killed waits for its resume. Steps that a resume repeats are passed over.
    """
    row: Row | None = None
    for record in records:
        kind, step = record["kind"], record["step"]
        if kind in RESTARTS and row is not None and row.step > step:
            row = None  # it will be repeated, and whole
        if row is not None and (kind == "end" or (kind in LIVE and step > row.step)):
            yield row
            first, row = row.step + 1, None
        if kind not in LIVE:
            continue
        if row is None and step >= first:
            row = Row(step, record["time"], {"step": step})
        if row is not None and step == row.step:
            row.figures.update(figures(record))


def figures(record: Record) -> dict[str, float]:
    """Flatten a record to kind/name: number; a measured figure is its mean and kind/name_ci95."""
    flat: dict[str, float] = {}
    for name, value in record.items():
        if name in STAMPS:
            continue
        key = f"{record['kind']}/{name}"
        if isinstance(value, Mapping) and "mean" in value:
            flat[key] = number(value["mean"])
            flat[f"{key}_ci95"] = number(value.get("ci95", "NaN"))
        elif _is_number(value):
            flat[key] = number(value)
    return flat


def summary(test: Record | None, outcome: Mapping[str, Any]) -> dict[str, Any]:
    """Return the headline figures: the test, then what the outcome says of cost and clusters."""
    found: dict[str, Any] = figures(test) if test else {}
    found |= {f"test/{name}": value["mean"] for name, value in _measured(outcome)}
    found |= {f"test/{name}_ci95": value["ci95"] for name, value in _measured(outcome)}
    for part in OF_THE_OUTCOME:
        for name, value in (outcome.get(part) or {}).items():
            if _is_number(value):
                found[f"{part}/{name}"] = number(value)
    return found


def adaptation(test: Record | None, outcome: Mapping[str, Any]) -> Table:
    """Return the per-step table: adaptation step, metric and, where known, its interval."""
    measured = _measured(outcome) or _measured({"test": test or {}})
    if not measured:
        return Table((), [])
    name, value = measured[0]
    columns: list[Any] = [value.get("by_step", [])]
    if len(value.get("ci95_by_step", [])) == len(columns[0]):
        columns.append(value["ci95_by_step"])
    steps = enumerate(zip(*columns, strict=True))
    return Table(
        ("step", name, "ci95")[: len(columns) + 1],
        [[step, *map(number, values)] for step, values in steps],
    )


def comparison_table(comparison: Mapping[str, Any]) -> Table:
    """Return one line a method, best first, beside its difference from the reference."""
    lines: list[list[Any]] = []
    for at, section in enumerate(comparison["sections"]):
        base = section["reference"]
        pairs = {p["a"]: p for p in comparison["pairs"] if (p["section"], p["b"]) == (at, base)}
        for entry in section["entries"]:
            pair, cost = pairs.get(entry["label"], {}), entry.get("cost", {})
            lines.append(
                [
                    *(section["dataset"], section["metric"]),
                    *(entry.get(key) for key in ("label", "mean", "ci95", "tasks")),
                    *(len(entry.get("seeds", [])), base),
                    *(pair.get(key) for key in ("difference", "ci95", "p_value")),
                    *(pair.get(key) for key in ("p_holm_reference", "seeds_ci95")),
                    *(cost.get(key) for key in ("meta_steps", "train_seconds")),
                ]
            )
    return Table(COMPARED, lines)


def number(value: Any) -> float:
    """Read a figure of a record, where "NaN" and "Infinity" stand for themselves."""
    return value if isinstance(value, int) else float(value)


def _is_number(value: Any) -> bool:
    return value in ("NaN", "Infinity", "-Infinity") or (
        isinstance(value, int | float) and not isinstance(value, bool)
    )


def _measured(outcome: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    test = outcome.get("test") or {}
    return [(k, v) for k, v in test.items() if isinstance(v, Mapping) and "mean" in v]
