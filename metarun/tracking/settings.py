"""What a user can say about tracking, and whether it happens online; nothing here imports wandb."""

from __future__ import annotations

import netrc
import os
from collections.abc import Mapping
from configparser import ConfigParser
from configparser import Error as ConfigParserError
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from metarun.errors import ConfigError
from metarun.settings.sections import Rate

Mode = Literal["online", "offline", "disabled"]
MODES: dict[str, Mode] = {
    "online": "online",
    "run": "online",
    "offline": "offline",
    "dryrun": "offline",
    "disabled": "disabled",
}
CREDENTIALS = ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE")
PUBLIC_SERVER = "https://api.wandb.ai"
NO_KEY = (
    "tracking: no W&B key is configured, so the run is logged offline; set WANDB_API_KEY (or run "
    "`wandb login`) and `metarun sync` sends it"
)


@dataclass(frozen=True, slots=True)
class TrackingSettings:
    """Where runs appear at W&B, and how much of them."""

    project: str
    entity: str | None
    tags: tuple[str, ...]
    mode: Literal["auto", "online", "offline", "disabled"]
    timeout_s: float
    log_images: bool


def wandb(
    *,
    project: str,
    entity: str | None,
    tags: list[str],
    mode: Literal["auto", "online", "offline", "disabled"],
    timeout_s: Rate,
    log_images: bool,
) -> TrackingSettings:
    """Mirror the run's records to W&B; `timeout_s` bounds each attempt to reach the server.

    `auto` is online where a key is configured and offline elsewhere; WANDB_MODE overrides `mode`.

    Raises:
        ConfigError: WANDB_MODE holds no mode of W&B's.
    """
    choose_mode(mode, os.environ)
    return TrackingSettings(project, entity, tuple(tags), mode, timeout_s, log_images)


def none() -> None:
    """Keep the run's records in its folder and send them nowhere."""


def choose_mode(asked: str, environment: Mapping[str, str]) -> tuple[Mode, str | None]:
    """Return the mode and, where it is offline for want of a key, a line that says so.

    Raises:
        ConfigError: WANDB_MODE holds no mode of W&B's.
    """
    asked = environment.get("WANDB_MODE") or asked
    if asked != "auto" and asked not in MODES:
        raise ConfigError(f"WANDB_MODE={asked}: no such mode; it takes online, offline or disabled")
    mode = MODES.get(asked, "online")
    if mode == "online" and not has_key(environment):
        return "offline", NO_KEY
    return mode, None


def has_key(environment: Mapping[str, str]) -> bool:
    """Tell whether W&B could log in without asking: by environment or by a netrc entry."""
    if any(environment.get(name) for name in CREDENTIALS):
        return True
    home = environment.get("HOME")
    places = [Path(home, name) for name in (".netrc", "_netrc")] if home else []
    if named := environment.get("NETRC"):
        places = [Path(named)]
    host = urlsplit(_server(environment)).hostname or ""
    return any(_lists(place, host) for place in places)


def _lists(place: Path, host: str) -> bool:
    try:
        return host in netrc.netrc(str(place)).hosts
    except (OSError, netrc.NetrcParseError, UnicodeDecodeError):
        return False


def _server(environment: Mapping[str, str]) -> str:
    """Return the address of the W&B server, which may be a private one."""
    if url := environment.get("WANDB_BASE_URL"):
        return url
    folder = environment.get("WANDB_CONFIG_DIR") or f"{environment.get('HOME', '')}/.config/wandb"
    settings = ConfigParser(interpolation=None)
    try:
        settings.read(Path(folder, "settings"))
        return settings.get("default", "base_url", fallback=PUBLIC_SERVER)
    except (ConfigParserError, UnicodeDecodeError):
        return PUBLIC_SERVER
