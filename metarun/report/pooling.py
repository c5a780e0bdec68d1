"""Runs to methods: which runs are seeds of one method, what it is called, what it scored."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from metarun.paths import NO_EFFECT
from metarun.report.result import Entry
from metarun.report.runs import LeftOut, Run
from metarun.report.statistics import mean_ci, seed_ci

# Settings that say where and how a run was carried out, not what it is.
NOT_SETTINGS = frozenset((*NO_EFFECT, "seed", "hardware", "test", "debug", "hydra"))
AGREEMENT = ("purity", "nmi", "ari", "effective", "regret", "best_start", "any_start")


class Method(NamedTuple):
    """An entry with the per-task scores that pairing needs."""

    entry: Entry
    scores: NDArray[np.float64]  # [T], mean over seeds at each run's chosen step
    by_seed: dict[int, NDArray[np.float64]]  # [T] each


def distinct(runs: Sequence[Run]) -> tuple[list[Run], list[LeftOut]]:
    """Keep the first of several runs of one task list with the same settings and seed."""
    kept: dict[tuple[str, int], Run] = {}
    left_out: list[LeftOut] = []
    for run in runs:
        seed = run.outcome["seed"]
        name, folder = f"{run.outcome['algo']} seed {seed}", str(run.folder)
        if not np.array_equal(run.task, runs[0].task):
            why = f"its tasks are not those of {runs[0].folder}, though the hash says so"
            left_out.append(LeftOut(folder, name, "damaged", why))
        elif (first := kept.setdefault((_method(run), seed), run)) is not run:
            why = f"same settings and seed as {first.folder}"
            left_out.append(LeftOut(folder, name, "duplicate", why))
    return list(kept.values()), left_out


def methods(runs: Sequence[Run], modes: int) -> list[Method]:
    """Pool runs of one task list into methods: the same algorithm with the same settings."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(_method(run), []).append(run)
    names = labels([group[0] for group in groups.values()])
    return [_pool(name, group, modes) for name, group in zip(names, groups.values(), strict=True)]


def settings(config: Mapping[str, Any], model: object = "?") -> dict[str, str]:
    """Return what tells methods apart, by dotted key; an option's name stands for its keys."""
    kept = {key: value for key, value in config.items() if key not in NOT_SETTINGS}
    if kept.get("weights") is None:
        kept.pop("weights", None)
    flat = {key: _show(value) for key, value in _flatten(kept, "").items()}
    choices = cast(dict[str, Any], config.get("choices") or {})
    flat |= {g: str(choice) for g, choice in choices.items() if g in kept}
    flat.setdefault("model", str(model))
    if isinstance(hardware := config.get("hardware"), dict):
        own = cast(dict[str, Any], hardware)
        flat["dtype"] = str(own.get("dtype"))
        flat["precision"] = str(own.get("precision", "full"))
    return dict(sorted(flat.items()))


def labels(firsts: Sequence[Run]) -> list[str]:
    """Name each method: its algorithm, plus the settings in which two of that algorithm differ.

    What only some began with is named too: such a start is not what the algorithm's name says.
    One whose settings are lost is named by its folder.
    """
    names: list[str] = []
    began = {_settings(run).get("weights") for run in firsts if run.config}
    for run in firsts:
        alike = [p for p in firsts if p.outcome["algo"] == run.outcome["algo"]]
        peers = [_settings(p) for p in alike if p.config]
        keys = dict.fromkeys(key for peer in peers for key in peer)
        differ = [key for key in keys if len({peer.get(key) for peer in peers}) > 1]
        named = [key for key in differ if key.partition(".")[0] not in differ or "." not in key]
        named += ["weights"] * (len(began) > 1 and "weights" not in named)
        own = _settings(run)
        said = [f"{key.removeprefix('algo.')}={own[key]}" for key in named if key in own]
        if not run.config and len(alike) > 1:
            said = [f"({run.folder.name}, settings unknown)"]
        oracle = ["(oracle)"] if run.outcome.get("oracle") else []
        names.append(" ".join([str(run.outcome["algo"]), *said, *oracle]))
    return names


def method(ended: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """Return what all seeds of a method have in common, from outcome.json and settings."""
    return json.dumps([ended.get("algo"), settings(config, ended.get("model", "?"))])


def _method(run: Run) -> str:
    if not run.config:
        return str(run.folder)  # nothing says that two are alike
    return method(run.outcome, run.config)


def _settings(run: Run) -> dict[str, str]:
    return settings(run.config, run.outcome.get("model", "?"))


def _flatten(value: Any, prefix: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    items = cast(dict[str, Any], value).items()
    nested = [_flatten(item, f"{prefix}.{key}" if prefix else str(key)) for key, item in items]
    return {key: item for flat in nested for key, item in flat.items()}


def _show(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    if isinstance(value, list):
        return f"[{','.join(map(_show, cast(list[Any], value)))}]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _pool(label: str, runs: Sequence[Run], modes: int) -> Method:
    runs = sorted(runs, key=lambda run: int(run.outcome["seed"]))
    by_seed = {int(run.outcome["seed"]): run.scores[:, run.step] for run in runs}
    scores = np.mean(list(by_seed.values()), axis=0)
    steps = min(run.scores.shape[1] for run in runs)
    curve = [mean_ci(at) for at in np.mean([run.scores[:, :steps] for run in runs], axis=0).T]
    seed_means = [float(s.mean()) for s in by_seed.values()]
    mean, ci95 = mean_ci(scores)
    families = [mean_ci(scores[runs[0].mode == m]) for m in range(modes if modes > 1 else 0)]
    entry = Entry(
        label=label,
        algo=str(runs[0].outcome["algo"]),
        model=str(runs[0].outcome.get("model", "?")),
        folders=tuple(str(run.folder) for run in runs),
        seeds=tuple(by_seed),
        tasks=len(scores),
        mean=mean,
        ci95=ci95,
        seed_means=tuple(seed_means),
        seeds_ci95=seed_ci(seed_means).ci95 if len(runs) > 1 else None,
        by_step=tuple(point.mean for point in curve),
        ci95_by_step=tuple(point.ci95 for point in curve),
        chosen=tuple({"steps": run.step} | (run.outcome.get("chosen") or {}) for run in runs),
        cost=_cost([run.outcome.get("cost") or {} for run in runs]),
        budget=runs[0].outcome.get("budget") or runs[0].config.get("budget") or {},
        normalisation=str(runs[0].outcome.get("normalisation", "not recorded")),
        devices=tuple(sorted({_device(run.outcome) for run in runs})),
        divergence=_divergence([run.outcome.get("divergence") or {} for run in runs]),
        per_mode=tuple(family.mean for family in families),
        ci95_per_mode=tuple(family.ci95 for family in families),
        clusters=_clusters([run.outcome.get("clusters") or {} for run in runs]),
        start=str(runs[0].outcome.get("start", "")),
        validation=runs[0].config.get("validation") or {},
        weights=runs[0].outcome.get("weights"),
        oracle=bool(runs[0].outcome.get("oracle")),
    )
    return Method(entry, scores, by_seed)


def _cost(costs: Sequence[dict[str, Any]]) -> dict[str, float]:
    pooled: dict[str, float] = {}
    for key in dict.fromkeys(key for cost in costs for key in cost):
        known = [float(cost[key]) for cost in costs if cost.get(key) is not None]
        if known:
            pooled[key] = max(known) if key == "peak_memory_bytes" else sum(known) / len(known)
    return pooled


def _divergence(counts: Sequence[dict[str, Any]]) -> dict[str, int]:
    keys = dict.fromkeys(key for count in counts for key in count)
    sums = {key: sum(int(count.get(key) or 0) for count in counts) for key in keys}
    return {key: value for key, value in sums.items() if value}


def _clusters(blocks: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    if not all("effective" in block for block in blocks):
        return None
    agreement = {
        key: sum(float(block[key]) for block in blocks) / len(blocks)
        for key in AGREEMENT
        if all(block.get(key) is not None for block in blocks)
    }
    each = {key: [block.get(key) for block in blocks] for key in ("usage", "confusion")}
    return agreement | each


def _device(outcome: dict[str, Any]) -> str:
    """Return what training ran on, for its seconds stand beside; an evaluation has its own."""
    hardware = (outcome.get("trained") or outcome).get("hardware") or {}
    threads, precision = hardware.get("threads"), hardware.get("precision", "full")
    parts = [str(hardware.get("device", "?"))]
    parts += [f"{threads} thread{'s' * (threads != 1)}"] if threads else []
    parts += [f"{precision} in training"] if precision != "full" else []
    return ", ".join(parts)
