"""What of Hydra's metarun refuses: what would run code, or be passed over in silence."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from metarun.errors import ConfigError
from metarun.nearest import shown
from metarun.paths import conf_dir
from metarun.settings.compat import initialised
from metarun.settings.explain import no_such_option

PRIMARY = "config"  # the file that everything begins with
FOLDER = "results go to name=NAME below METARUN_OUTPUTS"
LOG = "metarun writes records.jsonl, and log.txt for a job of a sweep"
OWN = {  # what metarun decides, of Hydra's settings, and what to use instead
    "hydra.run": FOLDER,
    "hydra.sweep": FOLDER,
    "hydra.output_subdir": "config.yaml in the folder of the run holds its configuration",
    "hydra.job.chdir": "paths are read from where the command is given",
    "hydra.job.config": "name=NAME names the folder of a run or sweep",
    "hydra.job_logging": LOG,
    "hydra.hydra_logging": LOG,
    "hydra.verbose": LOG,
}


def refuse_own(overrides: list[Override]) -> None:
    """Refuse what Hydra would do beside metarun, or metarun would pass over in silence."""
    for override in overrides:
        keys = [*_keys(override.key_or_group.replace("/", "."), override.value())]
        for own, instead in OWN.items():
            if any(f"{key}.".startswith(f"{own}.") for key in keys):
                raise ConfigError(f"{override.input_line}: metarun decides this itself; {instead}")


def _keys(key: str, value: Any) -> Iterator[str]:
    """Yield a key and, where its value is a mapping, those below it."""
    yield key
    for name, inner in value.items() if isinstance(value, dict) else ():
        yield from _keys(f"{key}.{name}", inner)


def refuse_own_in_files(config: DictConfig) -> None:
    """Refuse the same where a YAML file of the user's has set it."""
    found = _own(config)
    for key, value in _unchanged().items():
        if found[key] != value:
            raise ConfigError(
                f"{key}: set in a YAML file, but metarun decides this itself; {OWN[key]}"
            )


@cache
def _unchanged() -> Mapping[str, Any]:
    with initialised(conf_dir()):
        return _own(hydra.compose(PRIMARY, return_hydra_config=True))


def _own(config: DictConfig) -> dict[str, Any]:
    """Return what a configuration says of the settings that metarun decides, as it is written."""
    plain: Any = OmegaConf.to_container(config.hydra, resolve=False)
    found: dict[str, Any] = {}
    for key in OWN:
        value = plain
        for name in key.split(".")[1:]:
            value = value.get(name)
        found[key] = value
    return found


def refuse_escapes(overrides: list[Override]) -> None:
    """Refuse what is no option's name, and what would be read from outside the options' folders."""
    for override in overrides:
        group, said = override.key_or_group, (override.input_line or "").partition("=")[2]
        options = options_of(group)
        if not options or override.is_delete():
            continue
        one = not override.is_sweep_override() and not isinstance(override.value(), str | list)
        if one and not isinstance(override.value(), dict):
            raise ConfigError(no_such_option(group, said, options))
        if ".." in said or said.startswith("/"):
            raise ConfigError(
                f"{group}: {shown(said)} is not allowed; must be the name of an option, and "
                "--config-dir adds a folder of options"
            )


def refuse_callbacks(config: DictConfig) -> None:
    """Refuse callbacks of Hydra's, from wherever they come."""
    for name in config.hydra.callbacks or {}:
        raise ConfigError(f"hydra.callbacks.{name}: is not allowed; metarun has no callbacks")


def options_of(group: str) -> list[str]:
    """Return a group's options, of anything else none; Hydra's own call copies all that it read."""
    sources = [s for s in GlobalHydra.instance().config_loader().get_sources() if s.is_group(group)]
    return sorted({name for s in sources for name in s.list(group, ObjectType.CONFIG)})
