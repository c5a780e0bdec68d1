"""Command lines as Hydra reads them: parsed, composed, and taken apart into the jobs of a sweep."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Generator, Mapping
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any, NamedTuple

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from metarun.errors import ConfigError
from metarun.nearest import did_you_mean
from metarun.paths import conf_dir
from metarun.settings.compat import flag_parser, initialised
from metarun.settings.explain import explained
from metarun.settings.refusals import (
    PRIMARY,
    options_of,
    refuse_callbacks,
    refuse_escapes,
    refuse_own,
    refuse_own_in_files,
)
from metarun.settings.several import first_value, grid, put_off, refuse_shared
from metarun.settings.yamlfile import refuse_bombs

PATH_FLAGS = ("--config-path", "-cp", "--config-dir", "-cd")
INFO_FLAGS = ("--info", "-i")
NO_LOGGING = ("hydra.job_logging.root=null", "hydra.hydra_logging.root=null")  # it can run code


class Command(NamedTuple):
    """What a command line asks of Hydra."""

    flags: list[str]
    overrides: list[str]
    folder: Path  # of the primary configuration
    name: str  # of the primary configuration
    extra: Path | None  # --config-dir
    sweep: bool  # -m
    shows: bool  # help, --cfg, --info, completion: it runs nothing
    completes: bool  # shell completion


class Composed(NamedTuple):
    """What a command line means; of a sweep, what its first job does."""

    config: DictConfig  # unresolved, with the node `hydra`
    sweep: bool
    jobs: list[list[str]]  # the overrides of each job of a grid; of another search, none
    fixed: list[str]  # keys that the command line gives one value
    words: list[str]  # its overrides, as Hydra's sweeper is to be given them


def parse(words: list[str]) -> Command:
    """Take a command line apart, in which flags and overrides may be mixed.

    Raises:
        ConfigError: a flag that does not exist, or would load what cannot be trusted.
    """
    parser = flag_parser()
    complaint = io.StringIO()
    try:
        with redirect_stderr(complaint):
            found = parser.parse_intermixed_args(words := _of_all(words))
    except SystemExit as stop:
        if stop.code == 0:
            raise
        raise ConfigError(_flag_fault(complaint.getvalue(), parser.format_usage())) from None
    if found.experimental_rerun is not None:
        raise ConfigError("--experimental-rerun: reads a pickle; use metarun resume RUN")
    if found.package is not None and not found.cfg:
        raise ConfigError("--package: goes with --cfg, as in --cfg job --package algo")
    if "" in (found.config_path, found.config_dir):
        raise ConfigError("--config-path, --config-dir: a folder's name is empty; . is this one")
    folder = Path(found.config_path).absolute() if found.config_path else conf_dir()
    extra = Path(found.config_dir).absolute() if found.config_dir else None
    name = (found.config_name or PRIMARY).removesuffix(".yaml")
    if not (folder / f"{name}.yaml").is_file():
        raise ConfigError(
            f"{folder}: holds no {name}.yaml to begin with; settings of yours are an experiment: "
            "--config-dir DIR experiment=NAME takes DIR/experiment/NAME.yaml"
        )
    overrides: list[str] = found.overrides
    shows = (found.help, found.hydra_help, found.cfg, found.info, found.shell_completion)
    return Command(
        flags=_absolute(_without(words, overrides)),
        overrides=overrides,
        folder=folder,
        name=name,
        extra=extra,
        sweep=found.multirun,
        shows=any(shows),
        completes=found.shell_completion,
    )


def compose(command: Command) -> Composed:
    """Compose the run, or the first job of the sweep, that a command line asks for.

    Raises:
        ConfigError: whatever Hydra refuses, and what must not be loaded, in one line.
    """
    with explaining(command), initialised(command.folder):
        overrides = _allowed(command)
        config = _compose(command, [first_value(o) for o in overrides])
        refuse_callbacks(config)
        sweep = command.sweep or config.hydra.mode == RunMode.MULTIRUN
        several = [o for o in overrides if o.is_sweep_override()]
        if several and not sweep:
            raise ConfigError(f"{several[0].input_line}: several values make a sweep; add -m")
        refuse_shared(several)
        fixed = [o.get_key_element() for o in overrides if not o.is_sweep_override()]
        preset = _parsed([f"{k}={v}" for k, v in (config.hydra.sweeper.params or {}).items()])
        is_grid = sweep and str(config.hydra.sweeper._target_).endswith(".BasicSweeper")
        jobs = grid([*preset, *overrides]) if is_grid else []
        words = put_off(overrides) if is_grid else command.overrides
    if _foreign(command, overrides):
        refuse_own_in_files(config)
    return Composed(config, sweep, jobs, fixed, words)


def refuse_unshown(command: Command) -> None:
    """Refuse to show what must not be loaded, or more than one job.

    Raises:
        ConfigError: in one line.
    """
    with explaining(command), initialised(command.folder):
        for override in _allowed(command):
            if override.is_sweep_override():
                raise ConfigError(
                    f"{override.input_line}: several values make a sweep, and one job is shown; "
                    "give one value"
                )


def resolved(config: DictConfig, choices: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return a composed configuration as plain values, with the options chosen under `choices`.

    Raises:
        ConfigError: an interpolation leads nowhere or in a circle, or a value is missing.
    """
    chosen = config.hydra.runtime.choices if choices is None else choices
    own = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    try:
        found: Any = OmegaConf.to_container(own, resolve=True, throw_on_missing=True)
    except Exception as error:
        raise explained(error, lambda: config) from error
    if "choices" in found:
        raise ConfigError("choices: no such setting; metarun fills it in itself")
    named = {g: o for g, o in chosen.items() if isinstance(o, str) and not g.startswith("hydra/")}
    return {**found, "choices": named}


def quoted(text: str) -> str:
    """Return a text as the value of an override, whatever characters it has.

    A backslash counts only before a quote, the end or an interpolation, and is doubled there.
    """
    escaped = re.sub(r'(\\*)("|\$\{)', r"\1\1\\\2", text)
    return '"' + re.sub(r"(\\+)$", r"\1\1", escaped) + '"'


@contextmanager
def explaining(command: Command) -> Generator[None]:
    """Turn the errors of Hydra inside the block into a ConfigError of one line."""

    def without_settings() -> DictConfig:
        with initialised(command.folder):
            overrides = _parsed(command.overrides)
            plain = [o for o in overrides if not o.is_delete() and o.package is None]
            groups = [o for o in plain if options_of(o.key_or_group)]
            return _compose(command, [first_value(o) for o in groups])

    try:
        yield
    except Exception as error:
        raise explained(error, without_settings) from error


def _compose(command: Command, overrides: list[str]) -> DictConfig:
    if command.extra:
        given = [o for o in overrides if o.startswith("hydra.searchpath=")]
        paths = [*_search_path(_parsed(given)), f"file://{command.extra}"]
        overrides = [f"hydra.searchpath=[{','.join(map(quoted, paths))}]", *overrides]
    return hydra.compose(command.name, overrides, return_hydra_config=True)


def _allowed(command: Command) -> list[Override]:
    """Return a command's overrides, once the files that they lead to may be loaded."""
    overrides = _parsed(command.overrides)
    for folder in _foreign(command, overrides):
        refuse_bombs(folder)
    refuse_own(overrides)
    refuse_escapes(overrides)
    return overrides


def _parsed(overrides: list[str]) -> list[Override]:
    loader = GlobalHydra.instance().config_loader()
    return OverridesParser.create(config_loader=loader).parse_overrides(overrides)


def _foreign(command: Command, overrides: list[Override]) -> list[Path]:
    """Return the folders of configurations that are not metarun's own."""
    searched = [Path(p.removeprefix("file://")).absolute() for p in _search_path(overrides)]
    own = [] if command.folder == conf_dir() else [command.folder]
    return [*own, *([command.extra] if command.extra else []), *searched]


def _search_path(overrides: list[Override]) -> list[str]:
    found: list[Any] = [o.value() for o in overrides if o.key_or_group == "hydra.searchpath"]
    paths: list[Any] = [p for value in found for p in (value if isinstance(value, list) else [])]
    return [str(p) for p in paths if "pkg://" not in str(p)]


def _flag_fault(complaint: str, usage: str) -> str:
    said = complaint.rpartition("error: ")[2].strip()
    kind, _, rest = said.partition("arguments: ")
    if kind != "unrecognized ":
        return said.removeprefix("argument ")
    flag = rest.split()[0]
    near = did_you_mean(flag, re.findall(r"--[a-z-]+", usage))
    return f"{flag}: no such flag{near}; settings have no dashes, as in algo=maml; see --help"


def _without(words: list[str], overrides: list[str]) -> list[str]:
    left = list(overrides)
    return [word for word in words if not (word in left and not left.remove(word))]


def _of_all(words: list[str]) -> list[str]:
    """Let --info alone ask for all there is; the parser takes the word that follows for its own."""
    after = [*words, "-"][1:]
    alone = [
        w in INFO_FLAGS and ("=" in n or n[:1] == "-") for w, n in zip(words, after, strict=True)
    ]
    return [f"{word}=all" if it else word for word, it in zip(words, alone, strict=True)]


def _absolute(flags: list[str]) -> list[str]:
    """Give folders in full; Hydra would take them from other places than the user."""
    found: list[str] = []
    for before, flag in zip(["", *flags], flags, strict=False):
        name, equals, value = flag.partition("=")
        if before in PATH_FLAGS:
            flag = os.path.abspath(flag)
        elif equals and name in PATH_FLAGS:
            flag = f"{name}={os.path.abspath(value)}"
        found.append(flag)
    return found
