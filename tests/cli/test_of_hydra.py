"""Hydra's own settings: those that metarun decides are refused, the others keep working."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf
from sweeps import TINY

from metarun import cli
from metarun.settings.compose import OWN, compose, parse


@pytest.mark.parametrize(
    ("word", "instead"),
    [
        ("hydra.run.dir=here", "name=NAME below METARUN_OUTPUTS"),
        ("+hydra.run.dir=here", "name=NAME below METARUN_OUTPUTS"),
        ("hydra.run={dir: here}", "name=NAME below METARUN_OUTPUTS"),
        ("hydra.sweep.dir=here", "name=NAME below METARUN_OUTPUTS"),
        ("hydra.sweep.subdir=here", "name=NAME below METARUN_OUTPUTS"),
        ("hydra.output_subdir=here", "config.yaml in the folder of the run"),
        ("hydra.job.chdir=true", "from where the command is given"),
        ("hydra.job.config.override_dirname.kv_sep=_", "name=NAME names the folder"),
        ("hydra.job_logging.root.level=DEBUG", "records.jsonl"),
        ("hydra/job_logging=default", "records.jsonl"),
        ("hydra/hydra_logging=default", "records.jsonl"),
        ("hydra.verbose=true", "records.jsonl"),
    ],
)
@pytest.mark.parametrize("sweep", [[], ["-m"]], ids=["run", "sweep"])
def test_what_metarun_decides_is_refused(
    word: str,
    instead: str,
    sweep: list[str],
    outputs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main([*sweep, "algo=scratch", *TINY, word]) == 2
    captured = capfd.readouterr()
    assert captured.err.startswith(f"metarun: {word}: metarun decides this itself; ")
    assert instead in captured.err
    assert (captured.out, captured.err.count("\n")) == ("", 1)
    assert not list(tmp_path.iterdir())


def test_each_of_them_is_a_setting_of_hydra() -> None:
    """Another version of Hydra may call it something else."""
    config = compose(parse(list(TINY))).config
    for key in OWN:
        place, _, name = key.rpartition(".")
        assert name in OmegaConf.select(config, place), key


@pytest.mark.parametrize(
    ("word", "key", "value"),
    [
        ("hydra/launcher=basic", "launcher._target_", "BasicLauncher"),
        ("hydra.sweeper.max_batch_size=3", "sweeper.max_batch_size", "3"),
        ("hydra.mode=MULTIRUN", "mode", "MULTIRUN"),
        ("hydra.job.name=mine", "job.name", "mine"),  # what a queue shows
        ("+hydra.job.env_set.A=b", "job.env_set.A", "b"),
    ],
)
def test_the_others_are_taken(word: str, key: str, value: str) -> None:
    found = OmegaConf.select(compose(parse([*TINY, word])).config.hydra, key)
    assert str(found).endswith(value)
