"""What a comparison says, as plain data; every number in a report comes from here."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from metarun.report.runs import LeftOut, Metric


@dataclass(frozen=True, slots=True)
class Entry:
    """One method with one set of settings, pooled over its training seeds; K adaptation steps."""

    label: str
    algo: str
    model: str
    folders: tuple[str, ...]  # one a seed
    seeds: tuple[int, ...]
    tasks: int
    mean: float  # over tasks, of each task's mean over seeds, at the chosen steps
    ci95: float  # task noise only
    seed_means: tuple[float, ...]
    seeds_ci95: float | None  # training noise: Student's interval over seeds, from two seeds on
    by_step: tuple[float, ...]  # [K+1]
    ci95_by_step: tuple[float, ...]
    chosen: tuple[dict[str, Any], ...]  # steps and rate that validation chose, one a seed
    cost: dict[str, float]  # mean over seeds; peak memory: the largest
    budget: dict[str, Any]
    normalisation: str
    devices: tuple[str, ...]
    divergence: dict[str, int]  # summed over seeds; only what happened
    per_mode: tuple[float, ...]  # by family of tasks, where there are several
    ci95_per_mode: tuple[float, ...]
    clusters: dict[str, Any] | None  # agreement with the true families, mean over seeds
    start: str = ""  # random, pre-trained or meta-learned; not recorded in older runs
    validation: dict[str, Any] = field(default_factory=dict)  # tasks, steps and how often
    weights: dict[str, Any] | None = None  # what training began with, where these were given
    oracle: bool = False  # told each task's family: a bound, not a method


@dataclass(frozen=True, slots=True)
class SeedDifference:
    """a - b of one training seed on the same tasks."""

    seed: int
    difference: float
    ci95: float
    p_value: float


@dataclass(frozen=True, slots=True)
class Pair:
    """Method a against method b on the same tasks, pooled over seeds."""

    a: str
    b: str
    difference: float  # a - b in the metric's own unit
    ci95: float
    p_value: float
    p_holm: float  # adjusted for all pairs of the section
    p_holm_reference: float | None  # for those with the reference, if named; None without it
    tasks: int
    advantage: float  # the difference with its sign turned so that above zero a is better
    per_seed: tuple[SeedDifference, ...]  # seeds that both have
    seeds_ci95: float | None  # Student's interval over these differences


@dataclass(frozen=True, slots=True)
class Section:
    """Methods that met the same test tasks, so that every pair of them can be compared."""

    dataset: str
    shape: dict[str, int]
    metric: Metric
    task_list: str
    tasks: int
    reference: str
    entries: tuple[Entry, ...]  # best first
    pairs: tuple[Pair, ...]  # those against the reference first
    modes: tuple[str, ...]  # names of the task families; empty when there is only one
    fair: bool  # budget unit and total are the same for all
    fairness: str  # the same in words, naming who differs; empty for a single method
    notices: tuple[str, ...]
    stand_in: bool = False  # nobody named the reference: it is the best on these tasks
    twin: bool = False  # another section is of the same data set and shape, and of other tasks

    def entry(self, label: str) -> Entry:
        """Return the method of that label."""
        return next(entry for entry in self.entries if entry.label == label)

    def against_reference(self, label: str) -> Pair | None:
        """Return the pair of a method and the reference; None for the reference itself."""
        return next((p for p in self.pairs if (p.a, p.b) == (label, self.reference)), None)


@dataclass(frozen=True, slots=True)
class Comparison:
    """All sections; several only when the runs did not meet the same tasks."""

    sections: tuple[Section, ...]
    left_out: tuple[LeftOut, ...]
    notices: tuple[str, ...]
    runs: tuple[dict[str, Any], ...]  # outcome.json of each run, with its folder and label


def to_json(comparison: Comparison) -> dict[str, Any]:
    """Return the content of comparison.json: runs, pairs, sections, left_out, notices.

    A pair names its section by number. Numbers that are not finite become null.
    """
    sections = [asdict(section) for section in comparison.sections]
    pairs = [
        {"section": number, **pair}
        for number, section in enumerate(sections)
        for pair in section.pop("pairs")
    ]
    return _finite(
        {
            "runs": list(comparison.runs),
            "pairs": pairs,
            "sections": sections,
            "left_out": [asdict(item) for item in comparison.left_out],
            "notices": list(comparison.notices),
        }
    )


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
