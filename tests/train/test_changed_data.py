"""Runs on images that change: between two runs, and between a stop and going on."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tiny import TINY

from metarun import checkpoint
from metarun.assemble import assemble
from metarun.config import check, compose_job
from metarun.outcome import task_list
from metarun.run import run_job

pytestmark = pytest.mark.usefixtures("undrawn")

CLASSES = {"train": 4, "validation": 2, "test": 2}
IMAGES = 100  # a class


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Classes of grey squares; of the test split, each image has a grey of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for split, classes in CLASSES.items():
        for label in range(classes):
            for number in range(IMAGES):
                paint(tmp_path / "mine", split, label, number, label * IMAGES + number)
    return tmp_path / "mine"


def paint(place: Path, split: str, label: int, number: int, grey: int) -> None:
    path = place / split / f"{split}{label}" / f"{number:02}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (4, 4), grey % 256).save(path)


def settings(place: Path) -> dict[str, Any]:
    images = ("dataset=folder", f"dataset.path={place}", "dataset.size=4", "model=mlp")
    shape = ("task.ways=2", "task.shots=1", "task.queries=1", "task.test_queries=1")
    return compose_job([*images, *TINY[1:], *shape, "test.tasks=40"])


def test_the_task_list_tells_images_of_which_only_later_tasks_are(place: Path) -> None:
    experiment = assemble(check(settings(place)), place)
    first = task_list(experiment)
    tasks = experiment.tasks("test", 0, 40)
    greys = [
        {int(grey) for grey in (x[:, :, 0, 0, 0] * 255).round().flatten()}
        for x in (tasks[:25].support_x, tasks[:25].query_x, tasks[25:].query_x)
    ]
    late = min(greys[2] - greys[0] - greys[1])
    paint(place, "test", *divmod(late, IMAGES), 255)
    assert task_list(assemble(check(settings(place)), place)) != first
    paint(place, "test", *divmod(late, IMAGES), late)
    paint(place, "train", 0, 0, 255)
    assert task_list(assemble(check(settings(place)), place)) == first


def test_a_run_does_not_go_on_with_other_images(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, folder = settings(place), tmp_path / "run"
    assert run_job(config, folder) == 0
    (folder / "outcome.json").unlink()
    shutil.move(place / "train" / "train3", tmp_path / "kept")
    capsys.readouterr()
    assert run_job(config, folder) == 3
    said = capsys.readouterr()
    assert "going on" not in said.out
    assert said.err.startswith("metarun: the data set has changed since the checkpoint was written")
    assert said.err.count("\n") == 1
    shutil.move(tmp_path / "kept", place / "train" / "train3")
    os.utime(place / "train" / "train3" / "00.png")  # the same image, of another time
    assert run_job(config, folder) == 0
    assert "going on from meta-step 12" in capsys.readouterr().out


def test_a_checkpoint_without_a_fingerprint_is_gone_on_from(place: Path, tmp_path: Path) -> None:
    config, folder = settings(place), tmp_path / "run"
    assert run_job(config, folder) == 0
    (folder / "outcome.json").unlink()
    for path in (folder / "checkpoints").glob("step-*"):
        tensors, meta = checkpoint.load(path)
        assert set(meta.pop("data")) == set(CLASSES)
        checkpoint.save(path.parent, path.stem, tensors, meta, keep=9)
    shutil.rmtree(place / "train" / "train3")
    assert run_job(config, folder) == 0
