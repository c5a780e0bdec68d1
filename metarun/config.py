"""From a composed configuration to checked settings; a user's mistake is one line of text here.

The factories' signatures are the schema, so nothing needs to be registered: a group's YAML names
a factory, and its keys are that factory's keyword-only parameters.
"""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field

from metarun.errors import ConfigError
from metarun.nearest import shown, unknown
from metarun.paths import conf_dir
from metarun.settings.schema import (
    Parameter,
    check_signature,
    checked,
    converted,
    parameters,
)
from metarun.settings.sections import GROUPS, SECTIONS, Count, Outer
from metarun.settings.together import check_together

NAMESPACES = {  # where a group's factory may live; $METARUN_ALLOW adds more, never a configuration
    "algo": "metarun.algorithms.",
    "dataset": "metarun.data.",
    "model": "metarun.models.",
    "hardware": "metarun.hardware.",
    "tracking": "metarun.tracking.",
}
GIVEN = {"algo": ("problem",), "dataset": ("root",), "model": ("features", "outputs")}
DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+", re.ASCII)
NAME = re.compile(r"[A-Za-z0-9][\w.=,+-]{0,119}", re.ASCII)
Seed = Annotated[int, Field(ge=0, le=2**31 - 1)]
Weights = Annotated[str, Field(min_length=1, description="a run or a safetensors file")]
Number = Annotated[float, Field(allow_inf_nan=False)]
PLAIN = ("name", "seed", "weights")  # what stands by itself, not in a section or group
SUGGESTED = {  # all else is a number
    "outer_schedule": parameters(Outer)["schedule"].annotation,
    "transform": Literal["raw", "softplus", "exp"],  # those of rates.py, which imports torch
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """How the jobs of a sweep are started."""

    workers: Count  # jobs at once
    fail_fast: bool  # start no further job after the first that fails
    lease: Annotated[int, Field(ge=0)]  # jobs that may share a GPU; 0 leaves GPUs alone


@dataclass(frozen=True, slots=True, kw_only=True)
class Slurm(Launch):
    """What each job asks of a Slurm cluster."""

    partition: str | None
    minutes: Count
    cpus: Count
    gpus: Annotated[int, Field(ge=0)]
    memory_gb: Count


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """How long a search goes on."""

    trials: Count | None  # null: every job that is listed


class Part(NamedTuple):
    """A group's choice: what builds it, and the checked settings that it takes."""

    name: str
    factory: Callable[..., Any]
    values: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Checked:
    """A configuration in which every setting exists, is of its type and in its range."""

    seed: int
    name: str | None
    weights: str | None  # a run or a file to start from; null: random values
    choices: dict[str, str]
    sections: dict[str, Any]  # "task" -> TaskShape and so on, as in settings.SECTIONS
    parts: dict[str, Part]  # "algo", "dataset", "model", "hardware", "tracking"
    tracking: Any  # what the group tracking builds: TrackingSettings, or None
    launch: Launch
    search: Search

    def called(self, group: str) -> str:
        """Return a group and what was chosen of it, as on a command line."""
        return f"{group}={self.parts[group].name}"


def compose_job(overrides: list[str]) -> dict[str, Any]:
    """Compose one run's resolved configuration from overrides as on the command line; unchecked.

    Raises:
        ConfigError: what Hydra refuses, in one line.
    """
    from metarun.settings.compose import (  # keeps Hydra out of jobs and workers
        compose,
        parse,
        resolved,
    )

    return resolved(compose(parse(overrides)).config)


def check(config: Mapping[str, Any]) -> Checked:
    """Check a resolved configuration, without building anything of it.

    What can only be known with the data or the model at hand is checked where these are built.

    Raises:
        ConfigError: the first mistake, in one line that says what is allowed.
    """
    choices = dict(config.get("choices") or {})
    _check_root(config, choices)
    _check_targets(config)
    seed = converted("seed", config["seed"], Seed)
    name = checked_name(config["name"])
    weights = converted("weights", config.get("weights"), Weights | None)
    for key, value in config["suggest"].items():
        converted(f"suggest.{key}", value, SUGGESTED.get(key, Number))
    sections = {key: _section(key, key, config[key], of) for key, of in SECTIONS.items()}
    search = _searching(config["search"], choices)
    parts = {group: _part(group, config[group], choices) for group in NAMESPACES}
    check_together(sections, {group: part.values for group, part in parts.items()})
    track = parts["tracking"]
    launch = launching(config["launch"], choices)
    return Checked(
        seed, name, weights, choices, sections, parts, track.factory(**track.values), launch, search
    )


def launching(values: Any, choices: Mapping[str, Any]) -> Launch:
    """Check the group launch alone; a sweep needs it before any of its jobs.

    Raises:
        ConfigError: as `check` does.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"launch: missing; choose launch=one of {', '.join(_options('launch'))}")
    of = Slurm if choices.get("launch") == "slurm" else Launch
    launch = _section("launch", _called("launch", choices), values, of)
    if launch.workers > 1 and choices.get("launch") == "basic":
        raise ConfigError(
            f"launch.workers: {launch.workers} does nothing with launch=basic, which runs one job "
            "after another; add launch=local"
        )
    return launch


def tracked(values: Mapping[str, Any], choices: Mapping[str, Any]) -> Any:
    """Return what the group tracking builds; a sweep's comparison is tracked like its jobs.

    Raises:
        ConfigError: as `check` does.
    """
    _check_target("tracking", values.get("_target_"))
    part = _part("tracking", values, choices)
    return part.factory(**part.values)


def checked_name(name: Any) -> str | None:
    """Return the name of a run's or sweep's folder, or None when it is to be derived.

    Raises:
        ConfigError: it could lead out of the outputs, or is no name for a folder.
    """
    if name is None or (isinstance(name, str) and NAME.fullmatch(name)):
        return name
    raise ConfigError(
        f"name: {shown(name)} is not allowed; must be a folder's name of at most 120 letters, "
        "digits and ._=,+- that starts with a letter or digit, or null"
    )


def _check_root(config: Mapping[str, Any], choices: Mapping[str, str]) -> None:
    known = [*PLAIN, "suggest", *SECTIONS, *GROUPS]
    for key in config:
        if key not in (*known, "choices"):
            raise ConfigError(unknown("", str(key), "metarun", [*known, "experiment", "debug"]))
    for key in known:
        if key not in config and key != "weights":  # which older runs do not have
            options = f"; choose one of {', '.join(_options(key))}" if key in GROUPS else ""
            raise ConfigError(f"{key}: missing{options}")
        if key not in PLAIN and not isinstance(config[key], Mapping):
            raise ConfigError(f"{key}: {shown(config[key])} stands where its settings should be")
        if key in GROUPS and not config[key]:
            raise ConfigError(f"{key}: the file of {_called(key, choices)} holds no settings")


def _check_targets(config: Mapping[str, Any]) -> None:
    """Refuse a factory where none belongs, before anything is imported."""
    for path, value in _targets(config, ()):
        if len(path) != 2 or path[0] not in NAMESPACES:
            raise ConfigError(
                f"{'.'.join(path)}: {shown(value)} is not allowed; only the groups "
                f"{', '.join(NAMESPACES)} name a factory"
            )
        _check_target(path[0], value)


def _check_target(group: str, target: Any) -> None:
    allowed = (NAMESPACES[group], *_extra_namespaces())
    if not (isinstance(target, str) and DOTTED.fullmatch(target) and target.startswith(allowed)):
        raise ConfigError(
            f"{group}._target_: {shown(target)} is not allowed; must be a function in "
            f"{' or '.join(allowed)}* (METARUN_ALLOW adds namespaces)"
        )


def _section(key: str, owner: str, values: Mapping[str, Any], of: type[Any]) -> Any:
    return of(**checked(key, owner, values, parameters(of)))


def _part(group: str, values: Mapping[str, Any], choices: Mapping[str, str]) -> Part:
    if "_target_" not in values:
        raise ConfigError(
            f"{group}._target_: missing; {_called(group, choices)} must name its factory, a "
            f"function in {NAMESPACES[group]}*"
        )
    factory = _factory(group, values["_target_"])
    taken: dict[str, Parameter] = parameters(factory)
    settings = {key: value for key, value in values.items() if key != "_target_"}
    found = checked(group, _called(group, choices), settings, taken)
    return Part(choices.get(group, factory.__name__), factory, found)


def _factory(group: str, target: str) -> Callable[..., Any]:
    module_name, _, name = target.rpartition(".")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ConfigError(f"{group}._target_: {target} cannot be imported: {error}") from error
    found = getattr(module, name, None)
    home = f"{getattr(found, '__module__', '')}."
    if not callable(found) or not home.startswith((NAMESPACES[group], *_extra_namespaces())):
        raise ConfigError(f"{group}._target_: {module_name} has no factory {name}")
    check_signature(f"{group}._target_: {target}", found, GIVEN.get(group, ()))
    return found


def _searching(values: Mapping[str, Any], choices: Mapping[str, str]) -> Search:
    search = _section("search", _called("search", choices), values, Search)
    if search.trials and choices.get("search") in ("none", "grid"):
        raise ConfigError(
            f"search.trials: {search.trials} does nothing with search={choices['search']}, where "
            "every job that is listed runs; use search=optuna, or search.trials=null"
        )
    return search


def _called(group: str, choices: Mapping[str, str]) -> str:
    return f"{group}={choices[group]}" if choices.get(group) else group


def _options(group: str) -> list[str]:
    return sorted(path.stem for path in (conf_dir() / group).glob("*.yaml"))


def _extra_namespaces() -> tuple[str, ...]:
    spaces = os.environ.get("METARUN_ALLOW", "").split(":")
    return tuple(f"{space.strip().rstrip('.')}." for space in spaces if space.strip(" ."))


def _targets(value: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            here = (*path, str(key))
            if key == "_target_":
                yield here, inner
            yield from _targets(inner, here)
    elif isinstance(value, list | tuple):
        for number, inner in enumerate(value):
            yield from _targets(inner, (*path, str(number)))
