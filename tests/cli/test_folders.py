"""What the verbs that take a folder make of a word: a path, or a name below the output root."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from metarun import cli
from metarun.errors import ConfigError
from metarun.paths import find_folder, named_folder

VERBS = ("compare", "evaluate", "resume", "sync")
JOB = "sweep/algo=maml,seed=0"  # as jobs of sweeps are called


@pytest.fixture
def elsewhere(outputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand in an empty folder beside the output root."""
    place = tmp_path / "elsewhere"
    place.mkdir()
    monkeypatch.chdir(place)
    return place


def test_a_word_is_a_path_first_then_a_name_below_the_root(outputs: Path, elsewhere: Path) -> None:
    (outputs / JOB).mkdir(parents=True)
    assert named_folder(JOB) == find_folder("resume", JOB) == outputs / JOB
    assert named_folder(str(outputs / JOB)) == outputs / JOB
    (elsewhere / JOB).mkdir(parents=True)
    assert named_folder(JOB) == find_folder("resume", JOB) == Path(JOB)
    (outputs / "file").touch()
    assert named_folder("file") is None
    assert named_folder("x" * 300) is None, "longer than a file system takes"


def test_the_nearest_name_is_looked_for_beside_the_missing_one(
    outputs: Path, elsewhere: Path
) -> None:
    (outputs / JOB).mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"sweep/algo=mam,seed=0: .*\(did you mean algo=maml,"):
        find_folder("resume", "sweep/algo=mam,seed=0")


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_says_in_the_same_words_that_there_is_none(
    verb: str, outputs: Path, elsewhere: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (outputs / "mine").mkdir(parents=True)
    assert cli.main([verb, "mime"]) == 2
    out, err = capfd.readouterr()
    expected = f"metarun: {verb}: mime: no such folder (did you mean mine?), here or in {outputs}\n"
    assert (out, err) == ("", expected)


@pytest.mark.slow
def test_every_verb_finds_a_job_below_the_root(
    outputs: Path,
    elsewhere: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Its name holds an equals sign, and is no setting for that."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert cli.main(["dataset=sinusoid", "debug=default", "name=mine"]) == 0
    (outputs / "sweep").mkdir()
    (outputs / "mine").rename(outputs / JOB)
    capfd.readouterr()
    for verb, done in {
        "resume": "already complete",
        "evaluate": f"written: {outputs / JOB}/evaluations",
        "compare": f"{outputs / JOB}/comparison.html",
        "sync": f"{outputs / JOB}: ",
    }.items():
        assert cli.main([verb, JOB]) == 0, verb
        assert done in capfd.readouterr().out, verb
    (again,) = (outputs / JOB / "evaluations").iterdir()
    assert json.loads((again / "outcome.json").read_bytes())["overrides"] == []
    assert not list(elsewhere.iterdir())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["compare", "mine", "refrence=maml"], "no such setting (did you mean reference?)"),
        (["sync", "mine", "projct=p"], "no such setting (did you mean project?)"),
        (["evaluate", "algo=maml"], "name a run folder first"),
        (["evaluate", "mine"], "is not a run folder; a run folder holds config.yaml"),
    ],
)
def test_a_word_that_names_no_folder_is_a_setting(
    words: list[str],
    said: str,
    outputs: Path,
    elsewhere: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    (outputs / "mine").mkdir(parents=True)
    (outputs / "mine" / "records.jsonl").touch()
    assert cli.main(words) == 2
    assert said in capfd.readouterr().err
