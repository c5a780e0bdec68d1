"""One code base for Hydra 1.3 and 1.4: where 1.3 wants a version base, 1.4 wants a whitelist."""

from __future__ import annotations

import inspect
import os
import sys
from argparse import ArgumentParser
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.utils import get_args_parser
from omegaconf import DictConfig

WHITELISTS = "execution_whitelist" in inspect.signature(hydra.main).parameters
RAW_ERRORS = "HYDRA_FULL_ERROR"  # makes Hydra raise instead of printing and leaving


def run_hydra(task: Callable[[DictConfig], Any], folder: Path, name: str, words: list[str]) -> None:
    """Hand a command line to Hydra; its errors arrive here as they are raised.

    Raises:
        SystemExit: after help and the like was printed.
    """
    line: dict[str, Any] = {"execution_whitelist": []} if WHITELISTS else {"version_base": "1.3"}
    with _as_process(["metarun", *words]):
        hydra.main(config_path=str(folder), config_name=name, **line)(task)()


def initialised(folder: Path) -> AbstractContextManager[Any]:
    """Return the context in which `hydra.compose` reads a folder of configurations."""
    line: dict[str, Any] = {} if WHITELISTS else {"version_base": "1.3"}
    return hydra.initialize_config_dir(str(folder), "metarun", **line)


def flag_parser() -> ArgumentParser:
    """Return the parser of Hydra's own flags."""
    return get_args_parser()


@contextmanager
def _as_process(words: list[str]) -> Generator[None]:
    """Let Hydra see these words as the process's own; it takes them from nowhere else."""
    before, raw = sys.argv, os.environ.get(RAW_ERRORS)
    sys.argv, os.environ[RAW_ERRORS] = words, "1"
    try:
        yield
    finally:
        sys.argv = before
        if raw is None:
            del os.environ[RAW_ERRORS]
        else:
            os.environ[RAW_ERRORS] = raw
