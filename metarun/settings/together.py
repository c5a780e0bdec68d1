"""Settings that are each allowed and do not go together, or of which one would do nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, NamedTuple

from metarun.errors import ConfigError
from metarun.nearest import shown
from metarun.settings.sections import Budget


class Idle(NamedTuple):
    """A setting that does nothing unless another one has one of some values."""

    key: str
    default: Any  # which is allowed everywhere
    by: str
    users: tuple[str, ...]


IDLE = (
    Idle("outer.lr_min", 0.0, "outer.schedule", ("cosine", "linear")),
    Idle("outer.momentum", 0.0, "outer.optimizer", ("sgd", "rmsprop")),
    Idle("outer.eps", 1e-8, "outer.optimizer", ("adam", "adamw", "rmsprop")),
    Idle("outer.max_skips", 10, "outer.on_divergence", ("skip_step", "drop_tasks")),
    Idle("hardware.chunk", None, "hardware.batching", ("auto", "vmap", "batched")),
    Idle("model.adapt_norm", True, "model.norm", ("batch", "group", "layer")),
    Idle("algo.folds", 2, "algo.assign", ("holdout",)),
    Idle("algo.score", "after", "algo.weights", ("em",)),
    Idle("algo.width", 40, "algo.weights", ("gate",)),
    Idle("algo.scale", 10.0, "algo.distance", ("cosine",)),
    Idle("algo.beta2", 0.999, "algo.optimizer", ("adam", "adam_fresh")),
    Idle("algo.rank", 4, "algo.kind", ("lora",)),
)


def check_together(sections: Mapping[str, Any], parts: Mapping[str, Mapping[str, Any]]) -> None:
    """Check sections against each other and against the settings of the groups.

    Raises:
        ConfigError: names two settings, and what to do about them.
    """
    values = {f"{group}.{key}": value for group in parts for key, value in parts[group].items()}
    outer = sections["outer"]
    values |= {f"outer.{field.name}": getattr(outer, field.name) for field in fields(outer)}
    for key in ("hardware.chunk", "hardware.processes", "algo.starts"):
        count = values.get(key)
        if isinstance(count, int) and count > outer.batch:
            raise ConfigError(
                f"{key}: {count} is more than the tasks of a meta-step, outer.batch={outer.batch}"
            )
    if outer.lr_min > outer.lr:
        raise ConfigError(f"outer.lr_min: {outer.lr_min:g} is above outer.lr={outer.lr:g}")
    _refuse_idle(values)
    _refuse_parts(sections["budget"])


def _refuse_idle(values: Mapping[str, Any]) -> None:
    for key, default, by, users in IDLE:
        if key not in values or by not in values or values[key] == default:
            continue
        if values[by] not in users:
            *most, last = users
            choice = f"{', '.join(most)} or {last}" if most else last
            raise ConfigError(
                f"{key}: {_plain(values[key])} does nothing with {by}={values[by]}; set "
                f"{key}={_plain(default)}, or {by}={choice}"
            )


def _refuse_parts(budget: Budget) -> None:
    if budget.unit in ("meta_steps", "examples") and not budget.total.is_integer():
        raise ConfigError(
            f"budget.total: {budget.total:g} is not allowed; must be a whole number of "
            f"{budget.unit}"
        )


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else shown(value)
