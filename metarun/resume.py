"""`metarun resume DIR`: go on with a run or a sweep from what its folder says of itself."""

from __future__ import annotations

from pathlib import Path

from metarun import manifest
from metarun.errors import ConfigError
from metarun.help import usage
from metarun.nearest import did_you_mean
from metarun.paths import outputs_root


def main(argv: list[str]) -> int:
    """Go on with the run or sweep in the folder that the only argument names.

    Raises:
        ConfigError: there is neither.
    """
    if len(argv) != 1:
        said = "takes one folder, and settings stay as they are"
        raise ConfigError(f"resume: {said}; {usage('resume')}")
    folder = _folder(argv[0])
    if (folder / "config.yaml").is_file():
        from metarun.run import run_job
        from metarun.yamlfile import read

        return run_job(read(folder / "config.yaml"), folder)
    entries = manifest.read(folder)
    if not entries:
        raise ConfigError(f"resume: {folder} holds neither a run nor a sweep")
    from metarun import sweep
    from metarun.compose import compose, parse

    header, _ = manifest.latest(entries)
    command = parse(header["command"][1:])
    return sweep.run(command, compose(command), folder)


def _folder(word: str) -> Path:
    """Return the folder that a word names: a path, or a name below the output root."""
    for folder in (Path(word).absolute(), outputs_root() / word):
        if folder.is_dir():
            return folder
    there = [path.name for path in outputs_root().glob("*") if path.is_dir()]
    near = did_you_mean(Path(word).name, there)
    raise ConfigError(f"resume: {word}: no such folder{near}, here or in {outputs_root()}")
