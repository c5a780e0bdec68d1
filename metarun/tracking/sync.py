"""`metarun sync RUN...`: send to W&B what the mirrors of finished or interrupted runs did not."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from threading import Event
from typing import BinaryIO

from metarun.errors import ConfigError, MetarunError, SweepError
from metarun.files import storage_error
from metarun.nearest import did_you_mean
from metarun.paths import find_folder, named_folder
from metarun.records import NAME
from metarun.settings.help import usage
from metarun.tracking.settings import Mode, choose_mode
from metarun.tracking.start import LOG, mirror_command, read_label, write_label

COMPARISON = "comparison.json"
AT_ONCE = 2
UNTRACKED = {
    "project": "metarun",
    "entity": None,
    "tags": [],
    "timeout_s": 30.0,
    "log_images": True,
}


def sync_main(argv: list[str]) -> int:
    """Mirror every run at or below the given folders again, to their ends; return the exit code.

    What W&B already has is not sent twice. Without a key the logs are written offline. A server
    that does not answer in the time that a run's `tracking.timeout_s` gives it is not asked again.
    """
    try:
        folders, options = _arguments(argv)
        mode, notice = choose_mode("auto", os.environ)
        if mode == "disabled":
            raise ConfigError("WANDB_MODE=disabled: forbids to send anything; unset it to sync")
        if notice:
            print(notice)
        with ThreadPoolExecutor(AT_ONCE) as pool:
            sent = list(pool.map(partial(_sync, mode, options, Event()), folders))
        if failed := [str(f) for f, ok in zip(folders, sent, strict=True) if not ok]:
            raise SweepError(
                f"{len(failed)} of {len(sent)} were not sent, {', '.join(failed[:3])} among them; "
                f"the reason is in {failed[0]}/{LOG}"
            )
    except MetarunError as error:
        print(f"metarun: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _arguments(argv: list[str]) -> tuple[list[Path], dict[str, str]]:
    options: dict[str, str] = {}
    folders: list[Path] = []
    for word in argv:
        key, equals, value = word.partition("=")
        if equals and key in ("project", "entity"):
            if not value:
                raise ConfigError(f"{key}: empty; {usage('sync')}")
            options[key] = value
        elif equals and named_folder(word) is None:
            hint = did_you_mean(key, ("project", "entity"))
            raise ConfigError(f"{key}: no such setting{hint}; sync takes project, entity")
        else:
            folders += _below(find_folder("sync", word))
    if not folders:
        raise ConfigError(f"sync: no run given; {usage('sync')}")
    return list(dict.fromkeys(folders)), options


def _below(folder: Path) -> list[Path]:
    found = sorted(path.parent for name in (NAME, COMPARISON) for path in folder.rglob(name))
    if not found:
        raise ConfigError(
            f"{folder}: no run in it, for it holds no {NAME}; give a folder below outputs"
        )
    return found


def _sync(mode: Mode, options: dict[str, str], dead: Event, folder: Path) -> bool:
    """Send one folder, unless the server was found dead by then; say whether it was sent."""
    if dead.is_set():
        print(f"{folder}: not tried, for the server does not answer")
        return False
    settings = UNTRACKED | read_label(folder).get("settings", {}) | options
    patience = f", for {settings['timeout_s']:g} s where the server does not answer"
    print(f"{folder}: sending{patience if mode == 'online' else ''}", flush=True)
    begun = time.monotonic()
    write_label(folder, settings)
    command, environment = mirror_command(folder, mode)
    if not (folder / NAME).exists():
        command.append("--comparison")
    with _opened(folder / LOG) as log:
        code = subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, check=False
        ).returncode
    if code and time.monotonic() - begun >= settings["timeout_s"]:
        dead.set()
    said = (folder / LOG).read_text(errors="replace").splitlines()
    print(f"{folder}: {said[-1] if said else 'nothing to send'}")
    return code == 0


def _opened(log: Path) -> BinaryIO:
    try:
        return log.open("ab")
    except OSError as error:
        raise storage_error(error, log, 1) from error
