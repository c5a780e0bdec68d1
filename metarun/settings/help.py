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
from metarun.settings.yamlfile import read

WIDTH = 79  # columns
INDENT = 14  # of the options
VERBS = {
    "compare": (
        "DIR... [reference=NAME] [out=DIR]",
        "Compare finished runs and sweeps on the test tasks that they share.",
    ),
    "doctor": ("", "Say what is installed, on disk and missing."),
    "evaluate": (
        "RUN [key=value]... [--config-dir DIR]",
        "Test a finished run again, with other dataset, task, test or hardware settings.",
    ),
    "resume": ("DIR", "Go on with a run or a sweep."),
    "sync": (
        "RUN... [project=NAME] [entity=NAME]",
        "Send to Weights & Biases what it does not have yet of these runs.",
    ),
    "verify": (
        "[key=value]... [--config-dir DIR]",
        "Check gradients, batching, labels and leakage of your model and algorithm.",
    ),
}
FOLDERS = re.compile(r"^(?:--config-dir|-cd)(?:=(.+))?$")


def usage(verb: str) -> str:
    """Return the line that says what a verb takes."""
    return f"usage: metarun {verb} {VERBS[verb][0]}".rstrip()


def text(words: Sequence[str]) -> str:
    """Return the help, or that of a verb; options in folders that the words add are listed too.

    Raises:
        ConfigError: one of the folders is not there.
    """
    if words[0] in VERBS:
        return f"{usage(words[0])}\n{VERBS[words[0]][1]}"
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
