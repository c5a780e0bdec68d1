"""Training seeds that diverged: a mean over those that are left flatters the method."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from metarun.errors import DivergedError
from metarun.report.pooling import method
from metarun.report.result import Entry
from metarun.report.runs import LeftOut, Run, config_of


def survivors(
    entries: Sequence[Entry], runs: Sequence[Run], left_out: Sequence[LeftOut]
) -> list[str]:
    """Return a line for each method of which a training seed diverged and others did not."""
    found = {str(run.folder): run for run in runs}
    lost: Counter[str] = Counter()
    for item in left_out:
        if item.status == DivergedError.status and (config := config_of(Path(item.folder))):
            lost[method(config.get("choices") or {}, config)] += 1
    lines: list[str] = []
    for entry in entries:
        run = found[entry.folders[0]]
        if number := lost[method(run.outcome, run.config)]:
            seeds = f"{number} of {number + len(entry.seeds)} training seeds diverged"
            lines.append(f"{entry.label}: {seeds}; its numbers are of the rest, which flatters it.")
    return lines
