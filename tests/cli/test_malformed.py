"""Wrong configurations: exit code 2, one line that says what to do, nothing written."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pytest
from PIL import Image

from metarun import cli

ROOT = Path(__file__).parents[2]
REGRESSION = ("dataset=sinusoid", "debug=default")
FOLDER = ("dataset=folder", "dataset.path=images", "debug=default")
EXTRA = ("--config-dir", "extra")


class Case(NamedTuple):
    words: tuple[str, ...]
    said: tuple[str, ...]  # each must stand in the line


CASES = {
    # unknown key, top and nested
    "unknown": Case(("foo=1",), ("foo: no such setting", "metarun takes name, seed")),
    "unknown-nested": Case(
        ("algo.inner_lrr=0.4",),
        ("algo.inner_lrr: no such setting (did you mean inner_lr?); algo=maml takes inner_lr, ",),
    ),
    "smuggled": Case(("+foo.bar=1",), ("foo: no such setting", "takes name, seed")),
    "smuggled-nested": Case(
        ("+outer.momentun=0.9",),
        ("outer.momentun: no such setting (did you mean momentum?); outer takes optimizer",),
    ),
    # misspelt
    "group": Case(("algos=maml",), ("algos: no such setting (did you mean algo?)",)),
    "option": Case(("hardware=gpuu",), ("hardware=gpuu", "did you mean gpu?", "auto, cpu")),
    "algorithm": Case(("algo=mmal",), ("algo=mmal", "did you mean mmaml?", "fomaml, imaml")),
    "dataset": Case(("dataset=omniglott",), ("dataset=omniglott", "mean omniglot?", "glyphs")),
    "model": Case(("model=conv",), ("model=conv", "did you mean conv4?", "mlp, ")),
    # wrong type
    "text-for-integer": Case(
        ("task.ways=five",), ('task.ways: "five"', "whole number of at least 1")
    ),
    "float-for-integer": Case(("task.shots=1.5",), ("task.shots: 1.5", "whole number")),
    "list-for-scalar": Case(("outer.lr=[0.1,0.2]",), ("outer.lr: [0.1, 0.2]", "a number above 0")),
    "null": Case(("outer.batch=null",), ("outer.batch: null", "whole number of at least 1")),
    "boolean-for-number": Case(("budget.total=true",), ("budget.total: true", "a number above 0")),
    "number-for-text": Case(("outer.optimizer=3",), ("outer.optimizer: 3", "one of adam, adamw")),
    # out of range
    "zero-ways": Case(("task.ways=0",), ("task.ways: 0 ", "at least 1")),
    "negative-shots": Case(("task.shots=-1",), ("task.shots: -1 ", "at least 1")),
    "zero-queries": Case(("task.queries=0",), ("task.queries: 0 ", "at least 1")),
    **{
        f"zero-steps-{algo}": Case(
            (f"algo={algo}", "algo.steps=0"), ("algo.steps: 0 ", "at least 1")
        )
        for algo in ("maml", "es_maml", "truncated")
    },
    "suggested-schedule": Case(
        ("suggest.outer_schedule=cosin",),
        ('suggest.outer_schedule: "cosin" ', "did you mean cosine?", "constant, cosine, linear"),
    ),
    "suggested-transform": Case(
        ("suggest.transform=expo",), ('suggest.transform: "expo" ', "did you mean exp?")
    ),
    "suggested-rate": Case(("suggest.outer_lr=fast",), ('suggest.outer_lr: "fast" ', "a number")),
    "negative-rate": Case(("algo.inner_lr=-0.1",), ("algo.inner_lr: -0.1 ", "above 0")),
    "no-tasks": Case(("test.tasks=0",), ("test.tasks: 0 ", "at least 2")),
    "negative-seed": Case(("seed=-1",), ("seed: -1 ", "at least 0")),
    # impossible together
    "ways-over-classes": Case((*FOLDER, "task.ways=50"), ("50", "classes")),
    "shots-over-images": Case((*FOLDER, "task.ways=2", "task.shots=90"), ("90", "images")),
    "steps-off-the-curve": Case(
        (*REGRESSION, "validation.steps=20", "test.steps=10"),
        ("validation.steps: 20", "test.steps=10"),
    ),
    "starts-over-tasks": Case(
        (*REGRESSION, "algo=clustered", "algo.starts=9", "outer.batch=8"),
        ("algo.starts: 9 ", "outer.batch=8"),
    ),
    "no-support-signal": Case(
        (*FOLDER, "task.ways=2", "algo=clustered", "algo.assign=before"),
        ("algo.assign", "permuted", "holdout"),
    ),
    "chunk-over-batch": Case(
        (*REGRESSION, "hardware.chunk=64"), ("hardware.chunk: 64 ", "outer.batch=8")
    ),
    "nothing-to-test-on": Case(
        (*FOLDER, "dataset.path=images/train", "task.ways=2"),
        ("task.ways=2: the ", " split has 0 classes; give"),
    ),
    # of no effect
    "momentum-of-adam": Case(
        (*REGRESSION, "outer.momentum=0.9"),
        ("outer.momentum: 0.9 does nothing with outer.optimizer=adam", "sgd or rmsprop"),
    ),
    "momentum-of-adamw": Case(
        (*REGRESSION, "outer.optimizer=adamw", "outer.momentum=0.9"),
        ("outer.momentum: 0.9 does nothing with outer.optimizer=adamw; set outer.momentum=0, or",),
    ),
    "eps-of-sgd": Case(
        (*REGRESSION, "outer.optimizer=sgd", "outer.eps=1e-3"),
        ("outer.eps: 0.001 does nothing with outer.optimizer=sgd", "adam, adamw or rmsprop"),
    ),
    "skips-of-a-run-that-stops-at-once": Case(
        (*REGRESSION, "outer.max_skips=3"),
        ("outer.max_skips: 3 does nothing with outer.on_divergence=raise; set outer.max_skips=10",),
    ),
    "floor-of-a-constant-rate": Case(
        (*REGRESSION, "algo=mamlpp", "outer.schedule=constant"),
        ("outer.lr_min: 1e-05 does nothing with outer.schedule=constant; set outer.lr_min=0",),
    ),
    "transform-of-no-rates": Case(
        (*REGRESSION, "algo.transform=exp"),
        ("algo.transform=exp: does nothing with algo.rates=none; set algo.transform=raw",),
    ),
    "steps-of-no-rates": Case(
        (*REGRESSION, "algo=mamlpp", "algo.rates=none"),
        ("algo.per_step=true: does nothing with algo.rates=none; set algo.per_step=false",),
    ),
    "mode-of-no-batch-norm": Case(
        (*REGRESSION, "model.norm=layer", "model.bn_mode=support"),
        ("model.bn_mode=support: does nothing with model.norm=layer", "bn_mode=transductive"),
    ),
    "folds-of-no-holdout": Case(
        (*REGRESSION, "algo=clustered", "algo.folds=null"),
        ("algo.folds: null does nothing with algo.assign=after; set algo.folds=2, or ",),
    ),
    "width-of-no-gate": Case(
        (*REGRESSION, "algo=mixture", "algo.width=9"),
        ("algo.width: 9 does nothing with algo.weights=em; set algo.width=40, or algo.weights=g",),
    ),
    "score-of-a-gate": Case(
        (*REGRESSION, "algo=mixture", "algo.weights=gate", "algo.score=before"),
        ("algo.score: before does nothing with algo.weights=gate; set algo.score=after, or ",),
    ),
    "scale-of-no-cosines": Case(
        (*FOLDER, "task.ways=2", "algo=protonet", "algo.scale=5"),
        ("algo.scale: 5 does nothing with algo.distance=euclidean; set algo.scale=10, or ",),
    ),
    "squares-of-descent": Case(
        (*REGRESSION, "algo=reptile", "algo.optimizer=sgd", "algo.beta2=0.9"),
        ("algo.beta2: 0.9 does nothing with algo.optimizer=sgd", "=adam or adam_fresh"),
    ),
    "rank-of-scales": Case(
        (*REGRESSION, "algo=adapters", "algo.rank=2"),
        ("algo.rank: 2 does nothing with algo.kind=film; set algo.rank=4, or algo.kind=lora",),
    ),
    "chunk-of-a-loop": Case(
        (*REGRESSION, "hardware.batching=loop", "hardware.chunk=2"),
        ("hardware.chunk: 2 does nothing with hardware.batching=loop; set hardware.chunk=null",),
    ),
    "adapted-norm-of-none": Case(
        (*REGRESSION, "model.adapt_norm=false"),
        ("model.adapt_norm: false does nothing with model.norm=none; set model.adapt_norm=true",),
    ),
    "half-a-step": Case(
        (*REGRESSION, "budget.total=2.5"), ("budget.total: 2.5 ", "whole number of meta_steps")
    ),
    "statistics-of-one-row": Case(
        (*REGRESSION, "model.norm=batch", "model.bn_mode=support", "task.shots=1"),
        ("task.shots: 1 ", "a single row", "set it to 2 or more"),
    ),
    "statistics-of-one-query": Case(
        (*REGRESSION, "model.norm=batch", "task.test_queries=1"), ("task.test_queries: 1 ",)
    ),
    "no-rates-to-try": Case(
        (*REGRESSION, "algo=transfer", "algo.lr_grid=[]"),
        ("algo.lr_grid: [] is not allowed; must be a list of at least 1, each a number above 0",),
    ),
    "part-of-an-estimator": Case(
        (*REGRESSION, "algo=imaml", "algo.estimator.damping=-1"),
        ("metarun: algo.estimator.damping: -1 is not allowed; must be a number of at least 0\n",),
    ),
    "estimator-without-a-part": Case(
        (*REGRESSION, "algo.estimator={solver:cg}"),
        ("algo.estimator.iterations: missing; algo.estimator needs it, a whole number of at lea",),
    ),
    # missing and malformed
    "missing-value": Case(("dataset=folder",), ("dataset.path: missing", "dataset.path=VALUE")),
    "missing-file": Case(
        ("experiment=omniglot_5w2s",), ("experiment=omniglot_5w2s: no such option",)
    ),
    "empty-file": Case((*EXTRA, "algo=empty"), ("algo: ", "algo=empty", "no settings")),
    "tabs": Case((*EXTRA, "algo=tabs"), ("tabs.yaml, line 2", "not tabs")),
    "duplicate-key": Case((*EXTRA, "algo=twice"), ("twice.yaml, line 3", "duplicate key steps")),
    "interpolation-to-nothing": Case(("seed=${sead}",), ("seed: ", "'sead' not found")),
    "interpolation-in-a-circle": Case(("seed=${name}", "name=${seed}"), ("refers to itself",)),
    "comma": Case(
        ("algo=maml,",), ("cannot be read as key=value (mismatched input at its end); quote what",)
    ),
    "unread": Case(("name=a~b",), ("name=a~b: cannot be read as key=value ('~' is not expected)",)),
    "no-path": Case(("dataset=folder", "dataset.path="), ("dataset.path: ", "must be a folder")),
    "no-source": Case(
        ("dataset=mixture", "dataset.sources=['']"), ("dataset.sources: ", "each glyphs, omniglot")
    ),
    "no-key": Case(("=maml",), ("a setting has no name before its =; write it as key=value",)),
    "nothing-to-take-away": Case(
        ("~outer.clip",), ("outer.clip: is null already, so ~ takes nothing away",)
    ),
    # what does nothing
    "workers-of-none": Case(
        (*REGRESSION, "launch.workers=3"),
        ("launch.workers: 3 does nothing with launch=basic", "add launch=local"),
    ),
    "trials-of-none": Case(
        (*REGRESSION, "search.trials=3"),
        ("search.trials: 3 does nothing with search=none", "use search=optuna"),
    ),
    # the machine, and what is there already
    "device": Case(("hardware.device=tpu",), ('"tpu"', "must be auto, cpu, cuda or cuda:N")),
    "dtype": Case(("hardware.dtype=float33",), ('"float33"', "did you mean float32?", "float64")),
    "no-accelerator": Case(
        (*REGRESSION, "hardware.device=cuda:99"), ("hardware.device: cuda:99 ",)
    ),
    "another-run": Case(
        (*REGRESSION, "name=taken", "outer.lr=0.5"), ("taken", "outer.lr (0.001 there, 0.5 here)")
    ),
}


@pytest.fixture
def place(tmp_path: Path, outputs: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with images, a folder of malformed options, and nowhere to write yet."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("METARUN_DATA", str(tmp_path / "data"))
    for split in ("train", "validation", "test"):
        for name in "abcd":
            folder = tmp_path / "images" / split / f"{split}-{name}"
            folder.mkdir(parents=True)
            for number in range(20):
                Image.new("L", (8, 8), number * 12).save(folder / f"{number}.png")
    options = tmp_path / "extra" / "algo"
    options.mkdir(parents=True)
    (options / "empty.yaml").write_text("")
    (options / "tabs.yaml").write_text("steps: 1\n\tinner_lr: 0.1\n")
    (options / "twice.yaml").write_text("steps: 1\ninner_lr: 0.1\nsteps: 2\n")
    return outputs


def written(outputs: Path) -> dict[str, float]:
    return {str(path): path.stat().st_mtime_ns for path in outputs.rglob("*")}


def test_there_are_forty_and_more() -> None:
    assert len(CASES) >= 40


@pytest.mark.parametrize("name", CASES)
def test_is_one_line(name: str, place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    if name == "another-run":
        assert cli.main([*REGRESSION, "name=taken"]) == 0
    before = written(place)
    capfd.readouterr()
    begin = time.process_time()  # whatever else the machine does
    code = cli.main(list(CASES[name].words))
    seconds = time.process_time() - begin
    captured = capfd.readouterr()
    assert code == 2, captured
    assert captured.out == ""
    assert captured.err.startswith("metarun: ")
    assert captured.err.endswith("\n")
    assert captured.err.count("\n") == 1
    for part in CASES[name].said:
        assert part in captured.err
    assert written(place) == before
    assert place.exists() == (name == "another-run")
    assert seconds < 1.5


@pytest.mark.parametrize("name", ["unknown-nested", "tabs", "text-for-integer"])
def test_is_one_line_of_a_process(name: str, place: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "metarun", *CASES[name].words],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "40"},
        check=False,
    )
    assert ended.returncode == 2
    assert ended.stderr.count("\n") == 1
    assert all(part in ended.stderr for part in CASES[name].said)
    assert (ended.stdout, place.exists()) == ("", False)
