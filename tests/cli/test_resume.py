"""`metarun resume`: from what a folder says of itself, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from metarun import cli, manifest

TINY = ("dataset=sinusoid", "debug=default")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "takes one folder"),
        (["a", "seed=3"], "takes one folder"),
        (["mime"], "no such folder (did you mean mine?)"),
        (["empty"], "holds neither a run nor a sweep"),
        (["headless"], "holds neither a run nor a sweep"),
        ([""], "the name of a folder is empty"),
    ],
)
def test_mistakes(
    words: list[str], said: str, outputs: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (outputs / "mine").mkdir(parents=True)
    (outputs / "empty").mkdir()
    (outputs / "headless").mkdir()
    manifest.append(outputs / "headless", "job", job="algo=maml", state="pending")
    assert cli.main(["resume", *words]) == 2
    captured = capfd.readouterr()
    assert said in captured.err
    assert (captured.out, captured.err.count("\n")) == ("", 1)


def test_a_run(outputs: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*TINY, "name=mine"]) == 0
    folder = outputs / "mine"
    before = (folder / "outcome.json").read_bytes()
    capfd.readouterr()
    assert cli.main(["resume", "mine"]) == 0
    assert "already complete" in capfd.readouterr().out
    (folder / "outcome.json").unlink()
    (folder / "scores.npz").unlink()
    assert cli.main(["resume", str(folder)]) == 0
    assert json.loads((folder / "outcome.json").read_bytes())["test"] == json.loads(before)["test"]
    kinds = [json.loads(x)["kind"] for x in (folder / "records.jsonl").read_text().splitlines()]
    assert kinds.count("start") == 1
    assert "resumed" in kinds


def test_a_run_whose_configuration_was_deleted_is_known_from_its_records(
    outputs: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*TINY, "algo=scratch", "name=mine"]) == 0
    folder = outputs / "mine"
    before = (folder / "config.yaml").read_bytes()
    (folder / "config.yaml").unlink()
    for words in (["resume", "mine"], [*TINY, "algo=scratch", "name=mine"]):
        assert cli.main(words) == 0
        assert "already complete" in capfd.readouterr().out
    assert cli.main([*TINY, "algo=maml", "name=mine"]) == 2
    assert "holds a run with other settings" in capfd.readouterr().err
    (folder / "outcome.json").unlink()
    assert cli.main(["resume", "mine"]) == 0
    assert (folder / "config.yaml").read_bytes() == before


@pytest.mark.slow
def test_a_sweep(outputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = tmp_path / "extra" / "experiment"
    own.mkdir(parents=True)
    (own / "mine.yaml").write_text("# @package _global_\ntest:\n  seed: 3\n")
    monkeypatch.chdir(tmp_path)
    words = ["-m", "--config-dir", "extra", "experiment=mine", "algo=scratch,maml", *TINY]
    assert cli.main(words) == 0
    (folder,) = outputs.iterdir()
    (folder / "algo=maml" / "outcome.json").unlink()
    monkeypatch.chdir("/")
    monkeypatch.setenv("METARUN_OUTPUTS", str(tmp_path / "elsewhere"))
    assert cli.main(["resume", str(folder)]) == 0
    _, since = manifest.latest(manifest.read(folder))
    assert [e["job"] for e in since if e["state"] == "running"] == ["algo=maml"]
    assert (folder / "algo=maml" / "outcome.json").is_file()
    assert not (tmp_path / "elsewhere").exists()
