"""The command line: a verb, or whatever Hydra makes of it. Imports nothing heavy on its way."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from importlib import import_module
from typing import TYPE_CHECKING, NoReturn

from metarun import __version__
from metarun.errors import ConfigError, MetarunError, StorageError
from metarun.nearest import did_you_mean
from metarun.signals import let_end, nothing_to_save

if TYPE_CHECKING:
    from hydra.conf import HydraConf
    from omegaconf import DictConfig

    from metarun.settings.compose import Command

VERBS = {
    "compare": "metarun.compare:main",
    "doctor": "metarun.verbs.doctor:main",
    "evaluate": "metarun.verbs.evaluate_again:main",
    "resume": "metarun.verbs.resume:main",
    "sync": "metarun.tracking:sync_main",
    "verify": "metarun.verbs.verify:main",
}
FIRST_WORDS = (*VERBS, "--help", "--version")


def entry() -> NoReturn:
    """Be the process `metarun`."""
    _open_closed_streams()
    code = main()
    let_end()
    sys.exit(code)


def _open_closed_streams() -> None:
    """Give a process that was begun without a stream an empty one.

    Python has None in its place, and the next file that is opened would get its number, which
    children take for theirs.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest that is free
            setattr(sys, name, os.fdopen(number, "w" if number else "r"))


def main(argv: list[str] | None = None) -> int:
    """Carry out a command line, by default the process's; return the exit code.

    A mistake of the user is one line on standard error, without a traceback.
    """
    words = sys.argv[1:] if argv is None else argv
    try:
        with nothing_to_save():
            code = _dispatch(words)
            sys.stdout.flush()
            return code
    except MetarunError as error:
        _complain(" ".join(str(error).split()))
        return error.exit_code
    except (PermissionError, NotADirectoryError) as error:
        _complain(
            f"{error.filename}: {error.strerror}; open it to yourself, or name another folder "
            "(METARUN_OUTPUTS for results, METARUN_DATA for data)"
        )
        return StorageError.exit_code
    except BrokenPipeError:  # as in `metarun --cfg job | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _complain(text: str) -> None:
    """Print one line on what went wrong to standard error."""
    try:
        print(f"metarun: {text}", file=sys.stderr, flush=True)
    except OSError as error:
        from metarun.files import unheard

        unheard(sys.stderr, error)


def _dispatch(words: list[str]) -> int:
    if "--version" in words:
        print(f"metarun {__version__}")
        return 0
    if {"--help", "-h"} & set(words) and (words[0] in VERBS or not _is_verb(words[0])):
        from metarun.settings import help

        print(help.text(words))
        return 0
    if words and _is_verb(words[0]):
        return _verb(words[0])(words[1:])
    from metarun.settings.compose import compose, parse

    command = parse(words)
    if command.shows:
        return _show(command)
    composed = compose(command)
    if composed.sweep:
        from metarun.sweeps import sweep

        return sweep.run(command, composed)
    return _run(command)


def _is_verb(word: str) -> bool:
    return word[:1].isalpha() and "=" not in word


def _verb(name: str) -> Callable[[list[str]], int]:
    if name not in VERBS:
        raise ConfigError(
            f"{name}: no such verb{did_you_mean(name, FIRST_WORDS)}; there are {', '.join(VERBS)}, "
            "and a run is asked for by settings such as algo=maml"
        )
    module, _, function = VERBS[name].partition(":")
    return getattr(import_module(module), function)


def _run(command: Command) -> int:
    from hydra.core.hydra_config import HydraConfig

    from metarun.settings.compat import run_hydra
    from metarun.settings.compose import NO_LOGGING, explaining, resolved

    composed: list[tuple[DictConfig, HydraConf]] = []

    def task(config: DictConfig) -> None:
        composed.append((config, HydraConfig.get()))  # run below: Hydra would print our errors

    with explaining(command):
        words = [*command.flags, *command.overrides, *NO_LOGGING]
        run_hydra(task, command.folder, command.name, words)
    ((job, node),) = composed
    config = resolved(job, node.runtime.choices)
    os.environ.update(node.job.env_set)
    from metarun.config import check
    from metarun.paths import outputs_root, run_name

    check(config)
    from metarun.run import run_job

    return run_job(config, outputs_root() / run_name(config))


def _show(command: Command) -> int:
    """Let Hydra print what was asked for, all of it or a single line of complaint."""
    from metarun.settings.compat import run_hydra
    from metarun.settings.compose import NO_LOGGING, explaining, refuse_unshown

    def nothing(_: DictConfig) -> None:
        raise AssertionError("nothing is run")

    if command.completes and "COMP_LINE" in os.environ:
        from metarun.settings.completion import completed

        offered, line = completed(os.environ["COMP_LINE"])
        print("".join(f"{word}\n" for word in offered), end="")
        if line is None:
            return 0
        os.environ["COMP_LINE"] = line
    if not command.completes:
        refuse_unshown(command)
    words = [*command.flags, *command.overrides, *([] if command.completes else NO_LOGGING)]
    shown, complaint = io.StringIO(), io.StringIO()
    try:
        with explaining(command), redirect_stdout(shown), redirect_stderr(complaint):
            run_hydra(nothing, command.folder, command.name, words)
    except SystemExit as stop:
        if stop.code:
            raise ConfigError(complaint.getvalue()) from None
    except ConfigError:
        if not command.completes:
            raise
        return 0  # what is being typed is no setting yet, and the prompt no place to say so
    sys.stderr.write(complaint.getvalue())
    print(shown.getvalue(), end="")
    return 0
