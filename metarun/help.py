"""`metarun --help`: the text of conf/hydra/help, filled in without waiting for Hydra."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from pathlib import Path
from string import Template
from typing import Any

from metarun.errors import ConfigError
from metarun.paths import MARK, conf_dir
from metarun.yamlfile import read

WIDTH = 79  # columns
INDENT = 14  # of the options
FOLDERS = re.compile(r"^(?:--config-dir|-cd)(?:=(.+))?$")


def text(words: Sequence[str]) -> str:
    """Return the help; options in the folders that the words add are listed with our own.

    Raises:
        ConfigError: one of the folders is not there.
    """
    found = read(conf_dir() / MARK)
    filled = Template(_inserted(found["template"], found)).substitute(
        APP_CONFIG_GROUPS="\n".join(_groups([conf_dir(), *_added(words)]))
    )
    wrap = textwrap.TextWrapper(WIDTH, subsequent_indent=" " * INDENT, break_on_hyphens=False)
    lines = [part for line in filled.splitlines() for part in wrap.wrap(line) or [""]]
    return "\n".join(lines).strip("\n")


def _inserted(template: str, parts: dict[str, Any]) -> str:
    return re.sub(r"\$\{hydra\.help\.(\w+)\}\n?", lambda part: parts[part[1]], template)


def _added(words: Sequence[str]) -> list[Path]:
    flags = [FOLDERS.match(word) for word in words]
    following = [*words[1:], ""]
    folders = [Path(flag[1] or following[n]) for n, flag in enumerate(flags) if flag]
    for folder in folders:
        if not folder.is_dir():
            raise ConfigError(f"{folder}: no such folder of configurations")
    return folders


def _groups(folders: Sequence[Path]) -> list[str]:
    options: dict[str, set[str]] = {}
    for folder in folders:
        for path in folder.glob("*/**/*.yaml"):
            group = path.parent.relative_to(folder).as_posix()
            options.setdefault(group, set()).add(path.stem)
    return [
        f"  {group:<{INDENT - 3}} {', '.join(sorted(names))}"
        for group, names in sorted(options.items())
        if group.partition("/")[0] != "hydra"
    ]
