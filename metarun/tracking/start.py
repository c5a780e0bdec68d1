"""Start the process that mirrors a run to W&B; the caller never waits for it."""

from __future__ import annotations

import json
import os
import secrets
import sys
from collections.abc import Mapping
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import metarun
from metarun.errors import ConfigError
from metarun.files import write_atomic
from metarun.records import NAME, masked
from metarun.tracking.settings import Mode, TrackingSettings, choose_mode

LABEL = "wandb.json"  # which W&B run a folder is, and how it was asked to be tracked
LOG = "tracking.log"
NOT_INSTALLED = (
    "tracking: wandb is not installed, so nothing is sent; install it, then `metarun sync`"
)
# Appended, not prepended as PYTHONPATH would be: a checkout must not shadow anything.
LAUNCH = (
    "import sys; sys.path.append(sys.argv.pop(1)); "
    "from metarun.tracking.mirror import main; sys.exit(main(sys.argv[1:]))"
)


def start_mirror(folder: Path, settings: TrackingSettings | None) -> str | None:
    """Mirror the run in `folder` to W&B from a detached process; returns a notice to print.

    Takes milliseconds and never fails the run: what goes wrong here is the notice, what goes wrong
    later is in `tracking.log`, and `metarun sync` makes up for both. Call it in the process that
    trains, once `start` or `resumed` is recorded: it says which earlier records still count.

    Raises:
        ConfigError: WANDB_MODE holds no mode.
    """
    return _start(folder, settings, records=True)


def mirror_comparison(folder: Path, settings: TrackingSettings | None) -> str | None:
    """Mirror the comparison of a sweep to a W&B run of its own; otherwise as `start_mirror`."""
    return _start(folder, settings, records=False)


def _start(folder: Path, settings: TrackingSettings | None, *, records: bool) -> str | None:
    if settings is None:
        return None
    mode, notice = choose_mode(settings.mode, os.environ)
    if mode == "disabled":
        return None
    if find_spec("wandb") is None:
        return NOT_INSTALLED
    try:
        write_label(folder, masked(asdict(settings)))
        task = ["--records", str(_size(folder / NAME))] if records else ["--comparison"]
        command, environment = mirror_command(folder, mode)
        _detach([*command, *task, "--parent", str(os.getpid())], environment, folder / LOG)
    except OSError as error:
        return f"tracking: could not be started ({error}); `metarun sync {folder}` does it later"
    return notice


def _detach(command: list[str], environment: dict[str, str], log: Path) -> None:
    """Start a process in a session of its own, out of reach of Ctrl-C, that nobody waits for."""
    appending = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    os.posix_spawn(
        command[0],
        command,
        environment,
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(log), appending, 0o666),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
        setsid=True,
    )


def mirror_command(folder: Path, mode: Mode) -> tuple[list[str], dict[str, str]]:
    """Return the command of the mirror process and its environment, which keeps out of the home.

    WANDB_CONFIG_DIR stays: it is only read, and may hold the address of a private server.
    """
    root = str(Path(metarun.__file__).parents[1])
    folder = folder.absolute()
    places = {"WANDB_DIR": folder} | {
        f"WANDB_{name}_DIR": folder / "wandb" / name.lower() for name in ("CACHE", "DATA")
    }
    environment = {**os.environ, **{name: str(place) for name, place in places.items()}}
    return [sys.executable, "-P", "-c", LAUNCH, root, str(folder), "--mode", mode], environment


def write_label(folder: Path, settings: Mapping[str, Any]) -> None:
    """Give a folder its W&B id, once, and note how it is to be tracked."""
    before = read_label(folder)
    label = {"id": secrets.token_hex(8), **before, "settings": dict(settings)}
    if label != before:
        write_atomic(folder / LABEL, json.dumps(label, indent=1).encode())


def read_label(folder: Path) -> dict[str, Any]:
    """Return what the folder knows about itself at W&B; nothing where it never was tracked.

    Raises:
        ConfigError: the file is damaged.
    """
    try:
        label = json.loads((folder / LABEL).read_bytes())
    except FileNotFoundError:
        return {}
    except ValueError:
        label = None
    if not isinstance(label, dict):
        raise ConfigError(f"{folder / LABEL}: damaged; delete it, and a new W&B run is begun")
    return label


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
