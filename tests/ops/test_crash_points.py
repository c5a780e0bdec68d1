"""A kill at any point of a checkpoint write leaves the old or the new one."""

from __future__ import annotations

import json
from pathlib import Path

from children import python


def test_no_crash_point_corrupts_or_loses_a_checkpoint():
    script = Path(__file__).with_name("crash_points.py")
    done = python(script).communicate(timeout=60)
    found = json.loads(done[0])
    for name in ("best", "step"):
        ours = found[f"ours, {name}"]
        assert ours["points"] == ours["whole"] >= 60, found
    # The controls: a harness that does not catch these two would prove nothing.
    assert found["in_place"]["corrupt"] >= 50, found
    assert found["delete"]["vanished"] >= 1, found
    assert found["delete"]["corrupt"] == 0, found
