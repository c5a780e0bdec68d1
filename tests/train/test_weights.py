"""Runs that begin with given weights: another run's, or those of a file."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tiny import TINY, tiny, tiny_config

from metarun import checkpoint
from metarun.assemble import assemble
from metarun.config import check, compose_job
from metarun.errors import CheckpointError, ConfigError, DataError, MetarunError
from metarun.paths import config_digest, run_name
from metarun.run import run_job
from metarun.verbs import evaluate_again

pytestmark = pytest.mark.usefixtures("undrawn")


@pytest.fixture(autouse=True)
def outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("METARUN_OUTPUTS", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / ".cache"))
    return tmp_path


@pytest.fixture
def pre(outputs: Path) -> Path:
    """A pre-trained run."""
    assert run_job(tiny_config("algo=transfer", "seed=3"), outputs / "pre") == 0
    return outputs / "pre"


def best(run: Path) -> dict[str, torch.Tensor]:
    tensors, _ = checkpoint.load(run / "checkpoints" / "best.safetensors")
    own = {key.removeprefix("meta/params/"): value for key, value in tensors.items()}
    return {key: value for key, value in own.items() if "/" not in key}


@pytest.mark.parametrize("algo", ["maml", "scratch", "transfer", "anil", "clustered", "adapters"])
def test_training_begins_with_them(pre: Path, algo: str):
    wanted, start = best(pre), tiny(f"algo={algo}", "weights=pre", "seed=5").initial()
    held = start["params"] | start.get("frozen", {})
    assert set(wanted) <= set(held)
    for name, value in wanted.items():
        same = held[name][0] if algo == "clustered" else held[name]
        tolerance = 0.2 if algo == "clustered" else 0.0  # whose starts are spread around them
        assert torch.allclose(same, value, rtol=tolerance, atol=tolerance)
    random = tiny(f"algo={algo}", "seed=5").initial()["params"]
    assert any(not torch.equal(random[n], v) for n, v in start["params"].items()), "the control"


def test_a_file_of_a_model_s_own_tensors_does_too(outputs: Path):
    model = tiny("seed=7").problem.model
    save_file(model.state_dict(), outputs / "mine.safetensors")
    found = tiny(f"weights={outputs}/mine.safetensors").initial()["params"]
    assert all(torch.equal(found[name], value) for name, value in model.named_parameters())


def test_the_outcome_says_what_a_run_began_with_and_at_what_cost(pre: Path, outputs: Path):
    assert run_job(tiny_config("algo=scratch", "weights=pre"), outputs / "cold") == 0
    assert run_job(tiny_config("algo=maml"), outputs / "plain") == 0
    there, cold, plain = (
        json.loads((outputs / name / "outcome.json").read_text())
        for name in ("pre", "cold", "plain")
    )
    assert cold["start"] == "pre-trained"
    cost = {key: there["cost"][key] for key in ("flops_total", "train_seconds")}
    assert cold["weights"] | {"sha256": ""} == {"from": "pre", "sha256": "", "cost": cost}
    assert len(cold["weights"]["sha256"]) == 64
    assert plain["weights"] is None


def lacking(outputs: Path) -> None:
    first, *others = tiny().problem.model.state_dict().items()
    assert first[0].startswith("body.")
    save_file(dict(others), outputs / "x.safetensors")


def spoilt(outputs: Path) -> None:
    tensors = tiny().problem.model.state_dict()
    next(iter(tensors.values())).view(-1)[0] = torch.nan
    save_file(tensors, outputs / "x.safetensors")


def unfinished(outputs: Path) -> None:
    (outputs / "x").mkdir()
    (outputs / "x" / "config.yaml").write_text("algo: {}\n")


def pickled(outputs: Path) -> None:
    (outputs / "x.safetensors").write_bytes(pickle.dumps({"body": 1}))


@pytest.mark.parametrize(
    ("make", "word", "kind", "said"),
    [
        (lambda o: (o / "pre").mkdir(), "prr", ConfigError, "(did you mean pre?)"),
        (lambda o: (o / "x").mkdir(), "x", ConfigError, "is not a run folder"),
        (unfinished, "x", ConfigError, "is not finished; metarun resume"),
        (pickled, "x.safetensors", CheckpointError, "no safetensors file"),
        (spoilt, "x.safetensors", CheckpointError, "is not finite"),
        (lacking, "x.safetensors", ConfigError, "is missing"),
    ],
)
def test_what_cannot_be_begun_with_is_refused_in_a_line(
    outputs: Path,
    monkeypatch: pytest.MonkeyPatch,
    make: Callable[[Path], None],
    word: str,
    kind: type[MetarunError],
    said: str,
):
    monkeypatch.chdir(outputs)
    make(outputs)
    with pytest.raises(kind) as caught:
        tiny(f"weights={word}")
    assert str(caught.value).startswith("weights: ")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_body_of_another_shape_is_refused_and_a_head_stays_random(
    pre: Path, outputs: Path, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(ConfigError, match="name its run instead"):  # nobody could tell what it saw
        tiny(f"weights={pre}/checkpoints/best.safetensors")
    with pytest.raises(ConfigError, match=r"not of model=mlp as it is set: body\S+ is \[8, 1\] "):
        tiny("weights=pre", "model.hidden=[9]")
    tensors = tiny("seed=7").problem.model.state_dict()
    save_file(
        {key: value for key, value in tensors.items() if key.startswith("body.")},
        outputs / "body.safetensors",
    )
    words = (f"weights={outputs}/body.safetensors", "seed=5")
    found, random = tiny(*words).initial()["params"], tiny("seed=5").initial()["params"]
    assert torch.equal(found["head.weight"], random["head.weight"])
    assert run_job(tiny_config(*words), outputs / "run") == 0
    assert "weights: head.weight and head.bias: not in" in " ".join(capsys.readouterr().err.split())


def test_a_run_goes_on_with_the_same_ones_only(
    pre: Path, outputs: Path, capsys: pytest.CaptureFixture[str]
):
    config = tiny_config("weights=pre")
    assert run_job(config, outputs / "run") == 0
    (outputs / "run" / "outcome.json").unlink()
    assert run_job(config, outputs / "run") == 0, "the control"
    (outputs / "run" / "outcome.json").unlink()
    shutil.rmtree(pre)
    assert run_job(tiny_config("algo=transfer", "seed=4"), pre) == 0
    assert run_job(config, outputs / "run") == CheckpointError.exit_code
    assert "the weights have changed since the checkpoint" in capsys.readouterr().err


def test_an_evaluation_does_not_need_them(pre: Path, outputs: Path):
    assert run_job(tiny_config("weights=pre"), outputs / "run") == 0
    shutil.rmtree(pre)
    assert evaluate_again.main([str(outputs / "run"), "test.tasks=9"]) == 0


def test_random_weights_leave_digests_and_names_as_they_were():
    config = tiny_config()
    before = {key: value for key, value in config.items() if key != "weights"}
    assert config["weights"] is None
    assert config_digest(config) == config_digest(before)
    assert run_name(config) == run_name(before)
    assert check(before).weights is None, "runs of before have no such setting"
    assert config_digest(config) != config_digest(config | {"weights": "pre"})


@pytest.fixture
def images(outputs: Path) -> Callable[..., dict[str, Any]]:
    """Return a function that gives settings for eight classes of grey squares."""
    for label in range(8):
        for number in range(4):
            path = outputs / "images" / f"class{label}" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (4, 4), 30 * label + number).save(path)

    def settings(*words: str) -> dict[str, Any]:
        place = ("dataset=folder", f"dataset.path={outputs}/images", "dataset.size=4", "model=mlp")
        shape = ("task.ways=2", "task.shots=1", "task.queries=1", "task.test_queries=1")
        parts = ("dataset.train_fraction=0.4", "dataset.validation_fraction=0.3")
        return compose_job([*place, *parts, *TINY[1:], *shape, *words])

    return settings


def test_weights_that_saw_what_is_tested_are_refused(
    outputs: Path, images: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
):
    assert run_job(images("algo=transfer"), outputs / "pre") == 0
    again = images("algo=transfer", "weights=pre")
    assert run_job(again, outputs / "second") == 0, "the control: the same split"
    for word in ("pre", "second"):  # the second began with the first
        other = check(images(f"weights={word}", "dataset.split_seed=1"))
        with pytest.raises(ConfigError, match=r"of this test split's classes, \d "):
            assemble(other, outputs)
    monkeypatch.setattr(evaluate_again, "refuse_seen", lambda *_: None)  # of its own classes
    with pytest.raises(ConfigError, match=r"of the training or validation of weights=pre;"):
        evaluate_again.main([str(outputs / "second"), "dataset.split_seed=1"])
    Image.new("L", (4, 4), 255).save(outputs / "images" / "class0" / "9.png")
    with pytest.raises(
        DataError, match=r"weights=pre: its data set has changed since, in validation"
    ):
        assemble(check(images("weights=pre", "dataset.rotations=none")), outputs)
