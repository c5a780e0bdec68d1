"""`metarun verify`: every check that applies to the user's own model, algorithm and data shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, get_args

from metarun import console
from metarun.assemble import Experiment, assemble, learning
from metarun.config import Checked, check, compose_job
from metarun.data.fetch import data_root
from metarun.errors import ConfigError
from metarun.report.words import counted
from metarun.settings.compose import parse
from metarun.settings.help import usage
from metarun.verbs.checks import Subject, checks
from metarun.verbs.rows import Row, State

# Of all variants: a search has no way back, and first order at first would hide what follows.
PLAIN = {"inner_optimizer": "sgd", "first_order_until": 0}


def main(argv: list[str]) -> int:
    """Check the composed experiment in float64 on a few tasks; return 1 when a check fails.

    Raises:
        ConfigError: a mistake in the settings, or a flag that asks for something else.
    """
    command = parse(argv)
    if command.sweep or command.shows:
        said = "checks one set of settings, without -m, --cfg, --info and the like"
        raise ConfigError(f"verify: {said}; {usage('verify')}")
    config = compose_job([*argv, "hardware.dtype=float64", "hardware.precision=full"])
    checked = check(config)
    subject = subject_of(checked, assemble(checked, data_root()))
    console.say(f"algo={config['choices']['algo']} model={config['choices']['model']}, float64")
    rows = list(checks(subject))
    console.say(console.check_table("Checks", rows))
    console.say(summary(rows))
    return int(any(row.state == "fail" for row in rows))


def summary(rows: Sequence[Row]) -> str:
    """Return one line on all checks: which failed; when none did, how many passed."""
    names = {state: [row.name for row in rows if row.state == state] for state in get_args(State)}
    if failed := names["fail"]:
        return f"{len(failed)} of {counted(len(rows), 'check')} FAILED: {', '.join(failed)}"
    said = [f"{counted(len(names['ok']), 'check')} passed"]
    if warning := names["warn"]:
        said.append(f"{len(warning)} to be looked at: {', '.join(warning)}")
    if skipped := len(names["skip"]):
        said.append(f"{skipped} {'does' if skipped == 1 else 'do'} not apply")
    return "; ".join(said)


def subject_of(checked: Checked, experiment: Experiment) -> Subject:
    """Return what the checks need: the experiment, and how to have it with other settings."""
    algo = checked.parts["algo"]

    def variant(changes: Mapping[str, Any]) -> Experiment:
        plain = {name: value for name, value in PLAIN.items() if name in algo.values}
        other = algo._replace(values={**algo.values, **plain, **changes})
        parts = {**checked.parts, "algo": other}
        problem, algorithm = learning(
            replace(checked, parts=parts),
            experiment.source,
            experiment.hardware,
            experiment.given,
        )
        return replace(experiment, problem=problem, algorithm=algorithm)

    return Subject(experiment, algo.values, variant)
