"""`metarun resume DIR`: go on with a run or a sweep from what its folder says of itself."""

from __future__ import annotations

from metarun import manifest
from metarun.errors import ConfigError
from metarun.paths import find_folder
from metarun.settings import yamlfile
from metarun.settings.help import usage


def main(argv: list[str]) -> int:
    """Go on with the run or sweep in the folder that the only argument names.

    Raises:
        ConfigError: there is neither.
    """
    if len(argv) != 1:
        said = "takes one folder, and settings stay as they are"
        raise ConfigError(f"resume: {said}; {usage('resume')}")
    folder = find_folder("resume", argv[0]).absolute()
    if yamlfile.is_run(folder):
        from metarun.run import run_job

        return run_job(yamlfile.of_run(folder), folder)
    if manifest.is_lost(folder):
        raise ConfigError(f"resume: {folder} holds neither a run nor a sweep")
    from metarun.settings.compose import compose, parse
    from metarun.sweeps import sweep

    header, _ = manifest.latest(manifest.read(folder))
    command = parse(header["command"][1:])
    return sweep.run(command, compose(command), folder)
