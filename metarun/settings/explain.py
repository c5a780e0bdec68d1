"""Hydra's and OmegaConf's errors, several lines each, as the one line that a user can act on."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

import yaml
from hydra.errors import (
    HydraException,
    MissingConfigException,
    OverrideParseException,
    SearchPathException,
)
from omegaconf import DictConfig
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from metarun.errors import ConfigError, MetarunError
from metarun.nearest import did_you_mean, unknown
from metarun.settings.yamlfile import yaml_fault

EXTRAS = {  # option of a Hydra group -> what provides it
    "hydra/launcher/joblib": "local",
    "hydra/launcher/submitit_slurm": "slurm",
    "hydra/launcher/ray": "ray",
    "hydra/sweeper/optuna": "optuna",
}
NO_SUCH_KEY = re.compile(r"Could not (?:override|delete)(?: from config\.)? '([^']*)'")
LEXER = "LexerNoViableAltException: "
POINTED_AT = re.compile(rf"{LEXER}(.*)\n( *)\^")
OF_HYDRA = (ValueError, RuntimeError, ImportError)  # when it is Hydra that raises them
HYDRAS = ("hydra.", "omegaconf.")  # modules
FROM_HYDRA = (HydraException, OmegaConfBaseException, yaml.YAMLError, UnicodeDecodeError)


def explained(error: Exception, composed: Callable[[], DictConfig]) -> Exception:
    """Return a ConfigError that says the same in one line; other errors are returned as they are.

    `composed` gives the configuration without the settings of the command line, to say what there
    is instead of a setting that does not exist.
    """
    if isinstance(error, MetarunError):
        return error
    if isinstance(error, MissingConfigException):
        return ConfigError(_missing_file(error))
    if isinstance(error, OverrideParseException):
        if "=" not in error.override:
            return ConfigError(f"{error.override}: no setting; write it as key=value")
        return ConfigError(
            f"{error.override}: cannot be read as key=value ({_misread(error)}); quote what holds "
            "spaces, commas, brackets or ~: 'key=\"a, b\"'"
        )
    if isinstance(error, yaml.YAMLError):
        return ConfigError(yaml_fault(error))
    if isinstance(error, SearchPathException | UnicodeDecodeError):
        return ConfigError(_first_line(str(error)))
    if found := NO_SUCH_KEY.search(str(error)):
        if not found[1]:
            return ConfigError("a setting has no name before its =; write it as key=value")
        key = getattr(error.__cause__, "full_key", None) or found[1]
        try:
            return ConfigError(_no_such_key(key, composed()))
        except FROM_HYDRA:  # something else is wrong as well
            return ConfigError(f"{key}: no such setting")
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    if isinstance(cause, OmegaConfBaseException):
        return ConfigError(_value_fault(cause, str(error)))
    if isinstance(error, AssertionError) and _is_hydras(error):  # as for hydra.sweeper.params.x=1
        said = _first_line(str(error))
        return ConfigError(f"a setting below hydra. cannot be given here ({said}); give it in YAML")
    if isinstance(error, FROM_HYDRA) or (isinstance(error, OF_HYDRA) and _is_hydras(error)):
        return ConfigError(" ".join(str(error).split()))
    return error


def no_such_option(group: str, option: str, options: Iterable[str]) -> str:
    """Say that a group has no such option, which is nearest and which there are."""
    there = sorted(options)
    near = did_you_mean(option, there)
    listing = f"{group} has {', '.join(there)}" if there else f"there is no group {group}"
    return f"{group}={option}: no such option{near}; {listing}"


def _misread(error: OverrideParseException) -> str:
    """Say what stopped Hydra's parser, whose lexer points at a character from a line below it."""
    if found := POINTED_AT.match(error.message):
        return f"{found[1][len(found[2]) - len(LEXER)]!r} is not expected"
    detail = _first_line(re.sub(r"Error parsing override .*\n?", "", error.message))
    return re.sub(r"(?:at )?'<EOF>'", "at its end", detail.partition(" expecting ")[0])


def _is_hydras(error: Exception) -> bool:
    """Tell whether Hydra, or what it is built on, raised an error, and not what it was running."""
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    return frame is not None and str(frame.tb_frame.f_globals["__name__"]).startswith(HYDRAS)


def _missing_file(error: MissingConfigException) -> str:
    path = error.missing_cfg_file or ""
    if extra := EXTRAS.get(path):
        group = "search" if "sweeper" in path else "launch"
        return f"{group}={extra}: its plug-in is not installed; pip install 'metarun[{extra}]'"
    group, _, option = path.rpartition("/")
    if group and error.options is not None:
        return no_such_option(group, option, error.options)
    return _first_line(str(error)) + (f" ({path})" if path and path not in str(error) else "")


def _no_such_key(said: str, config: DictConfig) -> str:
    key = said.partition("=")[0].lstrip("+~")
    choices: dict[str, Any] = dict(config.hydra.runtime.choices)
    if "/" in key:
        return unknown("", key, "metarun", sorted(choices))
    known: Any = config
    where: list[str] = []
    *parents, last = key.split(".")
    for name in parents:
        inner = known._get_node(name)  # pyright: ignore[reportPrivateUsage]: does not resolve
        if inner is None:
            last = name
            break
        if not isinstance(inner, DictConfig):
            return f"{key}: no such setting; {'.'.join([*where, name])} is a single value"
        known, where = inner, [*where, name]
    if last in known:  # as in ~outer.clip
        return f"{key}: is null already, so ~ takes nothing away"
    place = ".".join(where)
    option = choices.get(place)
    owner = f"{place}={option}" if option else place or "metarun"
    names = [str(k) for k in known if k not in ("_target_", "hydra")]
    inside = [f"{k}.{last}" for k in names if not where and _holds(known, k, last)]
    if inside and key == last:
        return f"{key}: no such setting of its own; there is {', '.join(inside)}"
    extra = [] if where else [g for g in ("experiment", "debug") if g in choices]
    return unknown(place, last, owner, [*names, *extra])


def _holds(config: DictConfig, group: str, name: str) -> bool:
    node = config._get_node(group)  # pyright: ignore[reportPrivateUsage]: does not resolve
    return isinstance(node, DictConfig) and name in node


def _value_fault(error: OmegaConfBaseException, context: str) -> str:
    key = getattr(error, "full_key", None) or ""
    if isinstance(error, MissingMandatoryValue):
        return f"{key}: missing; it has no default, so give {key}=VALUE"
    if "recursi" in str(error).lower():
        return f"{key}: refers to itself, directly or through others; give it a value"
    said = _first_line(str(error))
    place = key or _first_line(context)
    return f"{place}: {said}" if place and place != said else said


def _first_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[0] if lines else "unknown error"
