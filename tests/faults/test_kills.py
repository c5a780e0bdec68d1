"""Real runs, killed at any time: nothing is unreadable, and the resumed run is the same to the bit.

To replay a failure, give the script the words of its test.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from children import python

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]

SEED = "1"
FAMILIES = ("maml", "fomaml", "imaml", "transfer", "clustered")


def kills(tmp_path: Path, mode: str, family: str, trials: int) -> Counter[str]:
    """Carry out the trials; return what was counted."""
    script = Path(__file__).with_name("kills.py")
    words = (script, mode, family, str(trials), SEED)
    out, error = python(*words, env={"METARUN_OUTPUTS": str(tmp_path)}).communicate(timeout=590)
    assert out, error
    counts = Counter(json.loads(out))
    print(f"{' '.join(map(str, words))}: {dict(counts)}\n{error}")
    return counts


@pytest.mark.parametrize("trials", [20, pytest.param(100, marks=pytest.mark.nightly)])
@pytest.mark.parametrize("family", FAMILIES)
def test_kill_9_at_any_time_then_resume(tmp_path, family, trials):
    counts = kills(tmp_path, "any", family, trials)
    assert counts["bitwise"] == trials
    assert counts["unreadable"] == 0
    assert counts["lost too much"] == 0
    assert counts["killed"] >= 0.6 * trials  # the others were faster
    assert counts["inside a write"] >= trials / 4


def test_the_same_kills_catch_a_writer_that_writes_in_place(tmp_path):
    counts = kills(tmp_path, "control", "maml", 30)
    assert counts["inside a write"] >= 20
    assert counts["unreadable"] >= 5


def test_kill_9_during_start_evaluation_and_append(tmp_path):
    counts = kills(tmp_path, "phases", "maml", 60)
    assert counts["bitwise"] == 60
    assert counts["unreadable"] == counts["lost too much"] == 0
    assert counts["in the phase"] >= 36


@pytest.mark.parametrize(("mode", "runs", "stops"), [("term", 20, 50), ("hand", 6, 20)])
def test_stopped_again_and_again_until_done(tmp_path, mode, runs, stops):
    """At any time, start-up too: right code, nothing done twice, the terminal as it was."""
    counts = kills(tmp_path, mode, "maml", runs)
    assert counts["bitwise"] == runs
    assert counts["stops"] >= stops
    assert counts["stops"] == counts["right code"] == counts["in time"]
    assert counts["bars"] >= runs
    for what in ("steps repeated", "tracebacks", "lost cursors", "temporaries"):
        assert counts[what] == 0, what


def test_the_same_stops_catch_a_run_that_saves_nothing_when_it_is_asked_to_stop(tmp_path):
    counts = kills(tmp_path, "lazy", "maml", 5)
    assert counts["bitwise"] == 5
    assert counts["steps repeated"] > 0
