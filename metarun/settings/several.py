"""Settings with several values, and the jobs of a sweep that they make."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from hydra.core.override_parser.types import Override

from metarun.errors import ConfigError
from metarun.settings.refusals import options_of

GLOBAL = ("experiment", "debug")  # groups whose options hold settings of any other
OF_A_SWEEP = ("name", "launch", "search")  # what all its jobs share


def first_value(override: Override) -> str:
    """Return an override with the first of its values.

    Raises:
        ConfigError: it has none.
    """
    if not override.is_sweep_override():
        return override.input_line or ""
    value: Any = override.value()
    first = _listed(override)[0] if override.is_discrete_sweep() else value.start
    return f"{override.get_key_element()}={first}"


def grid(overrides: Sequence[Override]) -> list[list[str]]:
    """Return each job's overrides, as Hydra's basic sweeper forms them.

    Raises:
        ConfigError: one lists no values, or is a range to draw from.
    """
    values: dict[str, list[str]] = {}
    for override in overrides:
        key = override.get_key_element()
        if override.is_hydra_override():
            continue
        if not override.is_sweep_override():
            values[key] = [f"{key}={override.get_value_element_as_str()}"]
        elif override.is_discrete_sweep():
            values[key] = [f"{key}={value}" for value in _listed(override)]
        else:
            raise ConfigError(f"{override.input_line}: only search=optuna can draw from a range")
    return [list(job) for job in itertools.product(*values.values())]


def put_off(overrides: Sequence[Override]) -> list[str]:
    """Return overrides of a grid for Hydra, those of an option that varies as choices of one value.

    Hydra composes once without what varies, where such a setting may be none, as in
    -m algo=clustered,tsamaml algo.starts=3; a choice it reads with each job, and not before.
    """
    varied = {o.key_or_group for o in overrides if o.is_sweep_override()}
    varied = {group for group in varied if options_of(group)}
    anywhere = not varied.isdisjoint(GLOBAL)
    words: list[str] = []
    for override in overrides:
        key, line = override.key_or_group, override.input_line or ""
        root = key.partition(".")[0]
        open_ = root in varied or (anywhere and root not in (*OF_A_SWEEP, "hydra"))
        plain = not override.is_sweep_override() and not override.is_delete()
        if open_ and plain and not options_of(key):
            value = override.get_value_element_as_str()
            line = f"{override.get_key_element()}=choice({value})" if value else line
        words.append(line)
    return words


def refuse_shared(several: Sequence[Override]) -> None:
    """Raise ConfigError where a sweep varies what all its jobs share."""
    for override in several:
        if override.key_or_group.partition(".")[0] in OF_A_SWEEP:
            raise ConfigError(
                f"{override.input_line}: all jobs of a sweep share it; give one value"
            )


def _listed(override: Override) -> list[str]:
    """Return the values of a sweep that lists them, as range(3) and glob(*) do too."""
    values = list(override.sweep_string_iterator())
    if not values:
        raise ConfigError(f"{override.input_line}: is no value at all, so there is no job to run")
    return values
