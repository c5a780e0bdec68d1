"""Numbers as people read them; the same in the console, Markdown and HTML."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

UNITS = {
    "meta_steps": "meta-steps",
    "examples": "training examples",
    "flops": "FLOP",
    "seconds": "seconds",
}
DASH, MINUS = "\N{EN DASH}", "\N{MINUS SIGN}"  # for nothing known; for below zero
AGREEMENT = {"purity": "purity", "nmi": "NMI", "ari": "ARI"}
TINY, HUGE = 1e-4, 1e6  # errors beyond are written with a power of ten
METRIC_NAMES = {"accuracy": "accuracy", "mse": "mean squared error"}


def score(mean: float, ci95: float | None, metric: str) -> str:
    """Return '61.2 ± 1.1 %' for accuracy 0.612, '0.412 ± 0.021' for a squared error."""
    if not _known(mean):
        return DASH
    unit = " %" if metric == "accuracy" else ""
    return f"{_with_spread(mean, ci95, metric, '')}{unit}"


def bare(value: float, metric: str) -> str:
    """Return '61.2' for accuracy 0.612: a score whose unit stands elsewhere."""
    return score(value, None, metric).removesuffix(" %")


def signed(difference: float, ci95: float | None, metric: str) -> str:
    """Return a difference with its sign: '+9.1 ± 0.9' percentage points, or the error's unit."""
    said = _with_spread(difference, ci95, metric, "+")
    return MINUS + said[1:] if said.startswith("-") else said


def listed(numbers: Sequence[int]) -> str:
    """Return '0, 1, 2, 7 to 66': numbers in their order, four or more in a row as a range."""
    rows: list[list[int]] = []
    for number in numbers:
        if rows and number == rows[-1][-1] + 1:
            rows[-1].append(number)
        else:
            rows.append([number])
    said = [f"{r[0]} to {r[-1]}" if len(r) > 3 else ", ".join(map(str, r)) for r in rows]
    return ", ".join(said)


def over_seeds(ci95: float | None, seeds: int, metric: str) -> str:
    """Return '± 1.4 (3)': Student's interval over three seeds' means; '(1)' for a single seed."""
    if ci95 is None:
        return f"({seeds})"
    scale = 100 if metric == "accuracy" else 1
    if _beyond(ci95, metric):
        return f"± {ci95:.2g} ({seeds})"
    return f"± {ci95 * scale:.{decimals(ci95, metric)}f} ({seeds})"


def decimals(ci95: float, metric: str) -> int:
    """Return the places that leave an interval one or two digits: 0.022 but 0.07.

    Accuracy always has one place of a per cent: 600 tasks say no more.
    """
    if metric == "accuracy" or not ci95:
        return 1
    places = 1 - math.floor(math.log10(ci95))
    return min(max(places - (ci95 * 10.0**places >= 35), 0), 6)


def p_value(p: float) -> str:
    """Return 'p < 0.001', 'p = 0.031'."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"


def bare_p(p: float) -> str:
    """Return the same for a column headed p: '<0.001', '0.031'."""
    return p_value(p).removeprefix("p ").removeprefix("= ").replace("< ", "<")


def seconds(value: float | None) -> str:
    """Return '0.4 s', '63 s', '10 min 3 s', '2 h 5 min'."""
    if value is None or not _known(value):
        return DASH
    if value == 0:
        return "0 s"
    if value < 120:
        return f"{value:.1f} s" if value < 10 else f"{value:.0f} s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes} min {rest} s" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def flop(value: float | None) -> str:
    """Return '11.2 TFLOP'; '0' for no training at all."""
    return _prefixed(value, 1000.0, ("", "k", "M", "G", "T", "P", "E"), "FLOP")


def memory(value: float | None) -> str:
    """Return '512 MiB'."""
    return _prefixed(value, 1024.0, ("", "Ki", "Mi", "Gi", "Ti"), "B")


def count(value: float | None) -> str:
    """Return '112,261'."""
    return DASH if value is None or not _known(value) else f"{value:,.0f}"


def counted(value: float | None, noun: str) -> str:
    """Return '1 meta-step', '1,000 meta-steps'."""
    return f"{count(value)} {noun}{'s' * (value != 1)}"


def happened(divergence: Mapping[str, int]) -> list[str]:
    """Return what training did beside its steps: '1 skipped step', '3 dropped tasks'."""
    nouns = {key: key.replace("_", " ").removesuffix("s") for key in divergence}
    return [counted(n, nouns[key]) for key, n in divergence.items()]


def ratio(a: float, b: float) -> str:
    """Return 'the same', '3.4 times the', '0.35 times the' for a / b."""
    quotient = a / b
    if 0.95 < quotient < 1.05:
        return "the same"
    return f"{quotient:.{0 if quotient >= 10 else 1 if quotient >= 1 else 2}f} times the"


def budget(value: Mapping[str, Any]) -> str:
    """Return '1,000 meta-steps'."""
    if not value:
        return "not recorded"
    unit, total = str(value.get("unit", "?")), value.get("total")
    if unit == "flops" and isinstance(total, int | float):
        return flop(total)
    amount = f"{total:,.10g}" if isinstance(total, int | float) else str(total)
    named = UNITS.get(unit, unit)
    return f"{amount} {named.removesuffix('s') if total == 1 else named}"


def shape(value: Mapping[str, Any], metric: str) -> str:
    """Return '5-way 1-shot', '10-point regression'."""
    ways, shots = value.get("ways", "?"), value.get("shots", "?")
    return f"{shots}-point regression" if metric == "mse" else f"{ways}-way {shots}-shot"


def queries(value: Mapping[str, Any], metric: str) -> str:
    """Return '15 a class' from a task's shape, '15 a task' for regression."""
    return f"{value.get('test_queries', '?')} a {'task' if metric == 'mse' else 'class'}"


def chosen(choice: Mapping[str, Any]) -> str:
    """Return what validation chose: '3 steps, inner_lr 0.4'."""
    steps = choice.get("steps", "?")
    rates = [f"{key} {value:g}" for key, value in choice.items() if isinstance(value, float)]
    return ", ".join([f"{steps} step{'s' * (steps != 1)}", *rates])


def training(cost: Mapping[str, Any]) -> str:
    """Return what training cost: '1,000 meta-steps, 63 s, 254 tasks/s, 11.0 TFLOP, 512 MiB'."""
    parts = [
        counted(cost.get("meta_steps"), "meta-step"),
        seconds(cost.get("train_seconds")),
        f"{count(cost.get('tasks_per_second'))} tasks/s",
        flop(cost.get("flops_total")),
        memory(cost.get("peak_memory_bytes")),
    ]
    return ", ".join(parts)


def agreement(clusters: Mapping[str, Any]) -> str:
    """Return 'purity 0.93, NMI 0.85, ARI 0.83, 4.8 in use', of one family the last alone."""
    parts = [f"{name} {clusters[key]:.2f}" for key, name in AGREEMENT.items() if key in clusters]
    return ", ".join([*parts, f"{clusters['effective']:.1f} in use"])


def several(items: list[str]) -> str:
    """Return 'a', 'a and b', 'a, b and c'."""
    return " and ".join(part for part in (", ".join(items[:-1]), *items[-1:]) if part)


def _with_spread(value: float, ci95: float | None, metric: str, sign: str) -> str:
    scale = 100 if metric == "accuracy" else 1
    half = ci95 if ci95 is not None and _known(ci95) else None
    if _beyond(max(abs(value), half or 0), metric):
        return f"{value:{sign}.3g}" + ("" if half is None else f" ± {half:.2g}")
    if half is not None:
        places = decimals(half, metric)
        return f"{_rounded(value * scale, places, sign)} ± {half * scale:.{places}f}"
    places = 1 if metric == "accuracy" or not value else 2 - math.floor(math.log10(abs(value)))
    return _rounded(value * scale, min(max(places, 0), 6), sign)


def _beyond(size: float, metric: str) -> bool:
    """Tell whether an error has more places, before or after the point, than anybody reads."""
    return metric != "accuracy" and size > 0 and not TINY <= size < HUGE


def _rounded(value: float, places: int, sign: str) -> str:
    shown = f"{value:{sign}z.{places}f}"
    return shown if float(shown) else shown.removeprefix("+")  # zero has no sign


def _known(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _prefixed(value: float | None, base: float, prefixes: tuple[str, ...], unit: str) -> str:
    if value is None or not _known(value):
        return DASH
    power = 0
    while abs(value) >= base * (1 - 5e-4) and power < len(prefixes) - 1:
        value, power = value / base, power + 1
    places = 0 if power == 0 or value >= 99.95 else 1
    return f"{value:.{places}f} {prefixes[power]}{unit}" if value else "0"
