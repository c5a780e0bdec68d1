"""Where the configuration lies, where results go, and what a run is called; never the clock."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from metarun.errors import ConfigError
from metarun.nearest import did_you_mean

MARK = Path("hydra") / "help" / "metarun.yaml"  # tells our conf/ from any other folder called so
NO_EFFECT = ("tracking", "launch", "search", "name", "choices", "suggest", "checkpoints")
ALIKE = {"hardware": ("processes",)}  # settings that do not count in groups that do
DIGITS = 8  # of a digest in a folder's name
MOST_DIFFERENCES = 3  # that an error lists


def conf_dir() -> Path:
    """Return the folder of the configuration: the working tree's, else the installed package's.

    Raises:
        ConfigError: neither is there.
    """
    package = Path(__file__).resolve().parent
    places = (package.parent / "conf", package / "conf")
    for place in places:
        if (place / MARK).is_file():
            return place
    looked = " or ".join(str(place) for place in places)
    raise ConfigError(
        f"conf: found neither {looked}; install metarun again, or use its source tree"
    )


def outputs_root() -> Path:
    """Return the absolute folder that holds all runs: $METARUN_OUTPUTS, else ./outputs."""
    return Path(os.environ.get("METARUN_OUTPUTS") or "outputs").absolute()


def named_folder(word: str) -> Path | None:
    """Return the folder that a word names, as a path or as a name below the output root."""
    places = (Path(word), outputs_root() / word)
    return next((place for place in places if word and os.path.isdir(place)), None)


def find_folder(verb: str, word: str) -> Path:
    """Return the folder that a word of `metarun VERB` names; see `named_folder`.

    Raises:
        ConfigError: there is none; the nearest name below the output root is given.
    """
    if folder := named_folder(word):
        return folder
    if not word:
        raise ConfigError(f"{verb}: the name of a folder is empty; . is this one")
    there = [place.name for place in (outputs_root() / word).parent.glob("*") if place.is_dir()]
    near = did_you_mean(Path(word).name, there)
    raise ConfigError(f"{verb}: {word}: no such folder{near}, here or in {outputs_root()}")


def find_weights(word: str) -> Path:
    """Return the folder of the run, or the file, that `weights` names.

    Raises:
        ConfigError: there is neither; the nearest name below the output root is given.
    """
    place = named_folder(word) or Path(word).expanduser()
    if place.exists():
        return place
    near = did_you_mean(word, [place.name for place in outputs_root().glob("*")])
    where = f"neither a run, here or in {outputs_root()}, nor a safetensors file"
    raise ConfigError(f"weights: {word}: {where}{near}")


def run_name(config: Mapping[str, Any]) -> str:
    """Return the name of a run's folder; the same configuration has the same name at any time.

    It is `name` if given, else `<algo>-<experiment or dataset>-<digest>-s<seed>`; runs that differ
    only in their seed share the digest.
    """
    if config["name"]:
        return str(config["name"])
    chosen = config["choices"]
    what = f"{chosen['algo']}-{chosen.get('experiment') or chosen['dataset']}"
    digest = config_digest({key: value for key, value in config.items() if key != "seed"})
    return f"{safe_name(what)}-{digest[:DIGITS]}-s{config['seed']}"


def config_digest(config: Mapping[str, Any]) -> str:
    """Return the SHA-256, in hexadecimal, of the settings that can change a result.

    It is taken over JSON with sorted keys. Tracking, launching, search, the name, the names of
    options, `suggest` (it acts only through the settings that refer to it), how often checkpoints
    are written and how many processes share the work do not count, and 1.0 is the same as 1.
    """
    counted = _plain(_counted(config))
    return hashlib.sha256(json.dumps(counted, sort_keys=True).encode()).hexdigest()


def flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that count in the digest, under dotted keys."""
    return dict(_leaves(_counted(config), ""))


def _counted(config: Mapping[str, Any]) -> dict[str, Any]:
    counted = {key: value for key, value in config.items() if key not in NO_EFFECT}
    if counted.get("weights") is None:  # as in runs of before there were any
        counted.pop("weights", None)
    for group, alike in ALIKE.items():
        if isinstance(counted.get(group), Mapping):
            counted[group] = {k: v for k, v in counted[group].items() if k not in alike}
    return counted


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """Return "key (value there, value here)" for each setting that tells two digests apart."""
    one, other = flat(there), flat(here)
    return [
        f"{key} ({one.get(key, 'unset')} there, {other.get(key, 'unset')} here)"
        for key in sorted(one.keys() | other.keys())
        if one.get(key) != other.get(key)
    ]


def refuse_other_run(folder: Path, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Raise ConfigError when a folder's configuration `there` would give another result."""
    if config_digest(there) == config_digest(here):
        return
    found = differences(there, here)
    more = f" and {len(found) - MOST_DIFFERENCES} more" if len(found) > MOST_DIFFERENCES else ""
    raise ConfigError(
        f"name: {folder} holds a run with other settings: {', '.join(found[:MOST_DIFFERENCES])}"
        f"{more}; choose another name, or remove that folder"
    )


def safe_name(text: str) -> str:
    """Replace what a folder's name should not have by an underscore, a slash by a hyphen."""
    return re.sub(r"[^\w.=,+-]", "_", text.replace("/", "-"), flags=re.ASCII).lstrip(".")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, bool | int | float | None) else str(value)


def _leaves(config: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", _plain(value)
