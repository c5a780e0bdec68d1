"""What a GPU would refuse, on a pretended one (pretend.py), in processes of their own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from children import kill, python

pytestmark = pytest.mark.slow
CURVES = (
    "maml,fomaml,imaml,reptile,anil,boil,cavia,adapters,metasgd,mamlpp,alfa,metacurvature",
    "signmaml,truncated,transfer,scratch,r2d2,clustered,mixture,mmaml,multi_maml,es_maml",
)
IMAGES = (  # those that curves do not have, and one of each kind of the others
    "maml,transfer,adapters,mmaml,clustered,protonet,protomaml,baselinepp,logreg,centroid",
)
REPLAYED = (
    "algo=metasgd budget.total=8 outer.optimizer=adam outer.lr=0.001",
    "algo=mmaml budget.total=8 outer.optimizer=adamw outer.lr=0.001 outer.weight_decay=0.1 "
    "outer.schedule=linear",
    "algo=anil budget.total=8 outer.optimizer=rmsprop outer.lr=0.001 outer.momentum=0.5",
    "algo=maml budget.total=8 outer.momentum=0.9 outer.schedule=cosine outer.clip=0.5",
)
NARROW = "model.widths=[4,4,4,4]"
ROUNDED = 1e-6  # what another order of operations makes of numbers near 1


def child(name: str, *words: str) -> list[dict[str, Any]]:
    process = python("-W", "ignore", Path(__file__).with_name(name), *words)
    try:
        out, err = process.communicate(timeout=280)
    finally:
        kill(process)
    assert process.returncode == 0, err
    return [json.loads(line) for line in out.splitlines()]


@pytest.mark.parametrize(
    ("dataset", "algorithms", "more"),
    [
        *(("sinusoid", names, ("model.hidden=[8]",)) for names in CURVES),
        *(("glyphs", names, ("model.filters=4",)) for names in IMAGES),
        ("glyphs", "maml,transfer", ("model.filters=4", "model.bn_mode=running")),
        ("glyphs", "maml", ("model.filters=4", "hardware.batching=batched")),
        ("glyphs", "maml", ("model.filters=4", "model.bn_mode=one_by_one", "hardware.chunk=2")),
        (
            "mixture",
            "anil",
            ("model=resnet12", "model.widths=[4,4,4,4]", "dataset.sources=[glyphs]"),
        ),
        ("multimodal", "maml", ("model.hidden=[8]", "outer.diagnose=true", "algo.inner_lr=0.001")),
        ("sinusoid", "tsamaml", ("model.hidden=[8]", "algo.warm_up=2")),
    ],
)
def test_every_family_trains_and_tests_there_to_the_same_numbers(
    dataset: str, algorithms: str, more: tuple[str, ...]
) -> None:
    found = child("child.py", dataset, algorithms, *more)
    assert [one["algo"] for one in found] == algorithms.split(",")
    for one in found:
        assert "error" not in one, one
        assert one["devices"] == ["pretended"]
        assert one["apart"] <= 1e-7, one
        assert one["scores_apart"] <= 1e-7, one


def test_verify_passes_there() -> None:
    algorithms = "maml,imaml,mixture,transfer,es_maml"
    for one in child("child.py", "verify", algorithms, "model.hidden=[8]"):
        assert one.get("wrong") == [], one
        assert one["passed"] > 5, one


def test_a_tensor_left_on_the_host_is_seen() -> None:
    """The control: a data set that does not move with its run."""
    (one,) = child("child.py", "left behind", "maml", "model.hidden=[8]")
    assert "a tensor on cpu beside those on pretended:0" in one["error"]


def test_the_host_waits_once_a_meta_step() -> None:
    algorithms = "maml,anil,transfer,mmaml,clustered,r2d2"
    for one in child("child.py", "waits", algorithms, "model.hidden=[8]"):
        assert one["waits"] == 1, one


def test_the_host_waits_no_more_often_after_a_stop() -> None:
    for one in child("child.py", "resumed", "maml,transfer", "model.hidden=[8]"):
        assert one.get("waits") == 1, one


def test_replayed_meta_steps_are_those_that_are_called() -> None:
    """In two parts, so that a recording goes on from moments that were saved."""
    found = child("recording.py", *REPLAYED)
    assert len(found) == len(REPLAYED)
    for one in found:
        assert one["recorded"] == ["yes", "yes"], one
        assert one["apart"] <= ROUNDED, one
        assert one["moments_apart"] <= 1e-5, one
        assert one["losses_apart"] <= 1e-5, one
        assert one["counts"][0] == one["counts"][1], one
        assert one["counts"][0][0] == 8, one


def test_what_cannot_be_compiled_is_recorded_as_it_is() -> None:
    (one,) = child("recording.py", "uncompiled", REPLAYED[0])
    assert one["recorded"] == ["yes", "yes"], one
    assert one["apart"] <= ROUNDED, one
    assert one["counts"][0] == one["counts"][1], one


def test_a_replay_that_is_not_finite_moves_nothing() -> None:
    cases = [
        f"algo=maml budget.total=6 outer.on_divergence={p}" for p in ("skip_step", "drop_tasks")
    ]
    skipped, dropped = child("recording.py", "poisoned", *cases)
    for one in (skipped, dropped):
        assert one["recorded"] == ["yes", "yes"]
        assert one["apart"] <= ROUNDED, one
    assert skipped["counts"] == [[6, 1, 0, 0, 1]] * 2
    assert dropped["counts"] == [[6, 0, 1, 0, 1]] * 2


def test_what_asks_the_host_or_the_meta_step_is_not_recorded() -> None:
    (why,) = child("recording.py", "refused")
    assert "not permitted when stream is capturing" in why["asks"]
    assert "its meta-gradient is" in why["counts"]
