"""Peak memory against inner steps: flat or bounded where it is said to be, linear elsewhere."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from metarun.gradients.estimators import KEPT, SETS

DOCS = Path(__file__).parents[2] / "docs"
_spec = importlib.util.spec_from_file_location("memory_figure", DOCS / "memory.py")
assert _spec is not None
assert _spec.loader is not None
memory = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(memory)


METHODS = ("unrolled", "adjoint", "recompute", "implicit", "first_order")
STORED = json.loads((DOCS / "memory.json").read_text())


def check(method: str, peaks: dict[int, int], parameters: int) -> None:
    low, middle, high = (peaks[k] for k in (1, 16, 64))
    if method in ("implicit", "first_order"):
        assert middle == pytest.approx(low, rel=0.05)
        assert high == pytest.approx(low, rel=0.05)
    elif method == "recompute":  # so many sets of parameters at most, however many steps
        assert low < middle <= high <= low + (SETS + 2) * parameters
        assert high - middle <= 1.05 * parameters
    elif method == "adjoint":  # one set of parameters for so many steps, and nothing else
        assert (high - middle) / 48 == pytest.approx(parameters / KEPT, rel=0.15)
    else:
        assert (high - middle) / 48 == pytest.approx((middle - low) / 15, rel=0.05)
        assert (high - middle) / 48 > 2 * parameters  # it keeps activations too


@pytest.mark.slow
def test_peak_memory_of_a_meta_gradient() -> None:
    for method, found in memory.measure("small", METHODS, (1, 16, 64)).items():
        peaks = {steps: one["peak_bytes"] for steps, one in found.items()}
        check(method, peaks, found[1]["parameter_bytes"])


@pytest.mark.slow
def test_peak_memory_is_flat_at_the_standard_size() -> None:
    for method, found in memory.measure("standard", ("recompute", "implicit"), (1, 16)).items():
        low, high = (found[k]["peak_bytes"] for k in (1, 16))
        assert high == pytest.approx(low, rel=0.05), method


def test_both_settings_are_documented() -> None:
    assert [stored["setting"] for stored in STORED] == ["small", "standard"]


@pytest.mark.parametrize("stored", STORED, ids=lambda stored: stored["setting"])
@pytest.mark.parametrize("method", METHODS)
def test_the_documented_numbers_say_the_same(method: str, stored: dict[str, Any]) -> None:
    peaks = {int(steps): peak for steps, peak in stored["peak_bytes"][method].items()}
    check(method, peaks, stored["parameter_bytes"])
    if stored["setting"] == "standard" and method in ("recompute", "implicit", "first_order"):
        assert max(peaks.values()) <= 1.05 * min(peaks.values())
