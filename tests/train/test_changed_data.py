"""Runs on images that change: between two runs, a stop and going on, a run and its evaluation."""

from __future__ import annotations

import os
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tiny import TINY

from metarun import checkpoint, cli
from metarun.assemble import assemble
from metarun.config import check, compose_job
from metarun.errors import ConfigError, DataError
from metarun.outcome import task_list
from metarun.run import run_job
from metarun.verbs import evaluate_again

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


def words(place: Path) -> list[str]:
    images = ("dataset=folder", f"dataset.path={place}", "dataset.size=4", "model=mlp")
    shape = ("task.ways=2", "task.shots=1", "task.queries=1", "task.test_queries=1")
    return [*images, *TINY[1:], *shape, "test.tasks=40"]


def settings(place: Path) -> dict[str, Any]:
    return compose_job(words(place))


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


def test_a_finished_run_says_that_its_images_have_changed(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, folder = settings(place), tmp_path / "run"

    def again() -> str:
        capsys.readouterr()
        assert run_job(config, folder) == 0
        said = capsys.readouterr()
        assert said.out.startswith("already complete")
        return said.err

    assert run_job(config, folder) == 0
    assert again() == "", "the control"
    paint(place, "test", 0, 0, 255)
    said = "metarun: warning: dataset: has changed since run ended (images, or the version of "
    assert again().startswith(said)
    shutil.rmtree(place)
    assert again() == "", "gone is not changed"


def test_a_finished_sweep_says_it_of_its_jobs(
    place: Path, outputs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in (0, 1):
        folder = outputs / "both" / f"seed={seed}"
        assert run_job(compose_job([*words(place), "name=both", f"seed={seed}"]), folder) == 0
    command = ["-m", *words(place), "name=both", "seed=0,1"]
    capsys.readouterr()
    assert cli.main(command) == 0
    assert "warning" not in capsys.readouterr().err, "the control"
    paint(place, "train", 0, 0, 255)
    assert cli.main(command) == 0
    assert "dataset: has changed since seed=0, seed=1 ended" in capsys.readouterr().err


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


@pytest.fixture
def dealt(place: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Images whose classes are dealt out to the splits, and a run on them."""
    images = tmp_path / "dealt"
    for number, folder in enumerate(sorted(place.glob("*/*"))):
        shutil.copytree(folder, images / f"class{number}")
    config = settings(images)
    config["dataset"] |= {"train_fraction": 0.5, "validation_fraction": 0.25}
    assert run_job(config, tmp_path / "run") == 0
    return images, tmp_path / "run"


def test_an_evaluation_tests_no_class_of_training(dealt: tuple[Path, Path]) -> None:
    _, run = dealt
    for split in ("dataset.split_seed=1", "dataset.train_fraction=0.3"):
        said = r"^dataset: of this test split's classes, \d \('class\d' first\) are of the training"
        with pytest.raises(ConfigError, match=said):
            evaluate_again.main([str(run), split])
    assert not (run / "evaluations").exists()
    assert evaluate_again.main([str(run), "test.tasks=7"]) == 0
    harmless = ("dataset.train_fraction=0.375", "dataset.validation_fraction=0.375")
    assert evaluate_again.main([str(run), *harmless]) == 0, "the test split is the same"


@pytest.mark.parametrize("word", ["rotations", "path", "link"])
def test_the_same_images_are_known_by_another_name(
    dealt: tuple[Path, Path], word: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, run = dealt
    images.with_name("link").symlink_to(images)
    monkeypatch.chdir(images)
    other = {
        "rotations": "dataset.rotations=as_classes",
        "path": "dataset.path=../dealt",
        "link": f"dataset.path={images.with_name('link')}",
    }
    with pytest.raises(ConfigError, match=r"^dataset: of this test split's classes, \d "):
        evaluate_again.main([str(run), other[word], "dataset.split_seed=1"])


def test_the_same_images_are_known_within_a_mixture(dealt: tuple[Path, Path]) -> None:
    images, run = dealt
    config = settings(images)
    dealing = {"train_fraction": 0.5, "validation_fraction": 0.25}
    config["dataset"] |= {"size": 28, **dealing}
    assert run_job(config, run.with_name("large")) == 0
    shutil.copytree(images, images.with_name("other"))
    said = r"^dataset: of this test split's classes, \d \('class\d' first\) are of the training"
    for source, expectation in (
        (images, pytest.raises(ConfigError, match=said)),
        (images.with_name("other"), nullcontext()),
    ):
        other = ["dataset=mixture", f"dataset.sources=[{source}]", "dataset.split_seed=1"]
        other += [f"dataset.{key}={value}" for key, value in dealing.items()]
        with expectation:
            assert evaluate_again.main([str(run.with_name("large")), *other]) == 0


def test_an_evaluation_asks_for_the_images_of_training(dealt: tuple[Path, Path]) -> None:
    images, run = dealt
    shutil.copytree(images, images.with_name("other"))
    shutil.copytree(images / "class0", images / "another")  # and all classes are dealt out anew
    with pytest.raises(DataError, match=r"run: its data set has changed since, in train"):
        evaluate_again.main([str(run)])
    other = f"dataset.path={images.with_name('other')}"
    assert evaluate_again.main([str(run), other, "dataset.split_seed=1"]) == 0, "not known to be so"
    shutil.rmtree(images / "another")
    assert evaluate_again.main([str(run)]) == 0
