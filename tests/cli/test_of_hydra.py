"""Hydra's own settings: those that metarun decides are refused, the others keep working."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf
from sweeps import TINY

from metarun import cli
from metarun.settings.compose import compose, parse
from metarun.settings.refusals import OWN


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


@pytest.mark.parametrize(
    ("said", "key", "instead"),
    [
        ("run: {dir: here}", "hydra.run", "name=NAME below METARUN_OUTPUTS"),
        ("sweep: {dir: here}", "hydra.sweep", "name=NAME below METARUN_OUTPUTS"),
        ("job: {chdir: true}", "hydra.job.chdir", "from where the command is given"),
        ("job_logging: {root: {level: DEBUG}}", "hydra.job_logging", "records.jsonl"),
        ("verbose: true", "hydra.verbose", "records.jsonl"),
    ],
)
@pytest.mark.parametrize("sweep", [[], ["-m"]], ids=["run", "sweep"])
def test_the_same_is_refused_in_a_file_of_the_users(
    said: str,
    key: str,
    instead: str,
    sweep: list[str],
    outputs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    place = tmp_path / "place"
    place.mkdir()
    monkeypatch.chdir(place)
    words = [*sweep, *own_experiment(tmp_path, said), "algo=scratch", *TINY]
    assert cli.main(words) == 2
    captured = capfd.readouterr()
    assert captured.err.startswith(f"metarun: {key}: set in a YAML file, but metarun decides this")
    assert instead in captured.err
    assert (captured.out, captured.err.count("\n")) == ("", 1)
    assert not list(place.iterdir())
    assert not outputs.exists()


def own_experiment(folder: Path, of_hydra: str) -> list[str]:
    (folder / "own" / "experiment").mkdir(parents=True)
    text = f"# @package _global_\nhydra:\n  {of_hydra}\n"
    (folder / "own" / "experiment" / "mine.yaml").write_text(text)
    return ["--config-dir", str(folder / "own"), "experiment=mine"]


def test_other_settings_of_hydra_are_taken_from_a_file(tmp_path: Path) -> None:
    words = own_experiment(tmp_path, "sweeper: {params: {seed: '1,2'}}")
    assert len(compose(parse(["-m", *words, *TINY])).jobs) == 2


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


def test_no_words_at_all_are_the_defaults() -> None:
    """`metarun` alone is a run, and `metarun verify` alone a check."""
    command = parse([])
    assert (command.flags, command.overrides, command.sweep) == ([], [], False)
    assert compose(command).config.dataset._target_ == "metarun.data.glyphs.glyphs"
