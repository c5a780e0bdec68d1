"""Pictures that are there more than once are said to be, wherever the second one lies."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from PIL import Image

from metarun.cli import main
from metarun.data.folder import folder
from metarun.data.mixture import mixture, notices

KEYS = {"size": 8, "rotations": "as_classes", "train_fraction": 0.5, "validation_fraction": 0.25}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Two classes a split, of four pictures each, every one with a grey of its own."""
    classes = ("train/a", "train/b", "validation/c", "validation/d", "test/e", "test/f")
    for number, name in enumerate(classes):
        (tmp_path / "mine" / name).mkdir(parents=True)
        for image in range(4):
            grey = Image.new("L", (8, 8), 40 * number + image)
            grey.save(tmp_path / "mine" / name / f"{image}.png")
    return tmp_path / "mine"


def said(place: Path) -> list[str]:
    return notices(folder(place, path=str(place), colour=False, split_seed=0, **KEYS))


def test_nothing_is_said_where_every_picture_is_another(place: Path):
    assert said(place) == []


@pytest.mark.parametrize(
    ("copies", "wanted"),
    [
        ({"train/a/0": "test/e/9"}, "1 in different splits (such as of 'test/e' and 'train/a')"),
        ({"test/e/0": "test/f/9"}, "1 in different classes (such as of 'test/e' and 'test/f')"),
        ({"test/e/0": "test/e/9"}, "1 in one class (such as of 'test/e')"),
        (
            {"train/a/0": "test/e/9", "train/b/0": "validation/c/9", "test/f/1": "test/f/9"},
            "2 in different splits (such as of 'test/e' and 'train/a'), "
            "1 in one class (such as of 'test/f')",
        ),
    ],
)
def test_a_second_one_is_named_by_where_it_lies(place: Path, copies: dict[str, str], wanted: str):
    for source, target in copies.items():
        shutil.copy(place / f"{source}.png", place / f"{target}.png")
    assert said(place) == [f"the same picture is there more than once: {wanted}"]


def test_a_run_says_it_once_and_a_mixture_for_whom(
    place: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("METARUN_OUTPUTS", str(tmp_path / "outputs"))
    shutil.copy(place / "train/a/0.png", place / "test/e/9.png")
    words = ["dataset=folder", f"dataset.path={place}", "dataset.size=8", "algo=scratch"]
    words += ["task.ways=2", "task.queries=1", "task.test_queries=1", "model=mlp", "debug=limit"]
    assert main(words) == 0
    warning = "metarun: warning: dataset: the same picture is there more than once: 1 in different"
    assert " ".join(capsys.readouterr().err.split()).count(warning) == 1
    known = {key: value for key, value in KEYS.items() if key != "size"}
    sources = ["glyphs", str(place)]
    mixed = mixture(place, sources=sources, protocol="random", split_seed=0, **known)
    assert [line.split(": ")[0] for line in notices(mixed)] == ["mine"]
