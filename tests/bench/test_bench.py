"""The benchmark itself: it runs, its limit is the reference's, and a wrong gradient is caught."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks import __main__ as command
from benchmarks import child, ours, run, sampling
from benchmarks.agreement import agreement, distance
from benchmarks.contender import Build, Contender
from benchmarks.measure import flops
from benchmarks.peers import plain
from benchmarks.run import ratios, summary
from benchmarks.works import WORKS, batch, chosen

CPU = torch.device("cpu")
EAGER = "hardware.compile=false"
SMALL = replace(WORKS["w3"], tasks=4, steps=2)
SMALL_IMAGES = replace(WORKS["w2"], features=(1, 16, 16), filters=4, tasks=4, queries=2, steps=2)


@pytest.fixture
def found(tmp_path: Path) -> Path:
    """A round of W3 of our engine and the plain loop."""
    arguments = ["--works", "w3", "--rounds", "1", "--threads", "1"]
    only = ["--also", EAGER, "--only", f"metarun {EAGER},plain loop"]  # a graph takes its time
    assert command.main([*arguments, *only, "--out", str(tmp_path)]) == 0
    return tmp_path


def test_a_round_is_measured_and_written(found):
    everything = json.loads((found / "results.json").read_text(encoding="utf-8"))
    work = everything["works"]["w3"]
    assert set(work["contenders"]) == {f"metarun {EAGER}", "plain loop"}
    assert work["reference"] == "plain loop"  # where the peer is not measured, and no promise then
    assert work["must"] is None
    assert work["contenders"][f"metarun {EAGER}"]["against_reference"]["median"] > 1
    assert work["contenders"]["plain loop"]["against_plain"]["rounds"] == [1.0]
    assert {"versions", "machine", "allocator", "threads"} <= set(everything)
    assert f"| metarun {EAGER} |" in (found / "results.md").read_text(encoding="utf-8")
    assert (found / "results.png").read_bytes()[1:4] == b"PNG"


def test_nobody_is_measured_with_tf32_that_others_do_not_have(tmp_path: Path) -> None:
    """Torch's own default on a GPU is TF32 for convolutions, which metarun turns off for all."""
    torch.backends.cudnn.allow_tf32 = True
    arguments = ["--works", "w3-first", "--rounds", "1", "--threads", "1", "--out", str(tmp_path)]
    assert command.main([*arguments, "--only", "plain loop"]) == 0
    assert torch.backends.cudnn.conv.fp32_precision == "ieee"
    assert not torch.backends.cudnn.allow_tf32


def test_what_a_recording_holds_is_part_of_its_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its replays allocate nothing: the memory is what building it reserved."""
    reserved = {"all": 0}

    def build(*_: object) -> Contender:
        reserved["all"] += 900 * 2**20
        return Contender(list, lambda: None)

    def named(*_: object) -> dict[str, Build]:
        return {"recorded": build}

    monkeypatch.setattr(run, "builders", named)
    monkeypatch.setattr(child, "batch", lambda *_: None)
    monkeypatch.setattr(child, "initial", lambda *_: None)
    for name in ("synchronize", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda device: None)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 5 * 2**20)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 6 * 2**20)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda device: reserved["all"])
    asked = {"work": asdict(SMALL), "name": "recorded", "overrides": [], "threads": 1}
    assert child.main({**asked, "device": "cuda"})["peak_mib"] == 900 - 5


@pytest.mark.slow
def test_sampling_is_measured_where_there_are_data(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("METARUN_DATA", str(tmp_path / "none"))
    wanted = {name: (*sampling.PRESETS[name], EAGER) for name in ("omniglot", "sinusoid")}
    monkeypatch.setattr(sampling, "PRESETS", wanted)
    assert command.main(["--sampling", "--threads", "1", "--out", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "sampling.json").read_text(encoding="utf-8"))["sampling"]
    assert 0 < found["sinusoid"]["share"] < 1
    assert "not_measured" in found["omniglot"]
    assert "omniglot: not measured" in capsys.readouterr().out


@pytest.mark.parametrize(
    "work",
    [
        SMALL,
        replace(SMALL, second_order=False),
        SMALL_IMAGES,
        replace(SMALL_IMAGES, algorithm="anil"),
        replace(SMALL, algorithm="imaml", proximal=100.0, inner_lr=0.001),  # curved upwards
    ],
    ids=["mlp", "mlp-first", "conv4", "anil", "imaml"],
)
def test_our_engine_and_the_plain_loop_agree(work):
    near = agreement(work, {"metarun": ours.build(1, [EAGER])}, 1, CPU)["metarun"]
    assert near["float64"].close
    assert near["float32"].one_minus_cos < 1e-2


def broken(change):
    """Return a builder whose gradient is the plain loop's, changed."""

    def build(work, values, tasks):
        good = plain.build(work, values, tasks)
        return good._replace(gradient=lambda: change(good.gradient()))

    return build


@pytest.mark.parametrize(
    "change",
    [
        lambda g: [1.00001 * part for part in g],  # length: the error sees it, the angle does not
        lambda g: [*g[:-1], torch.zeros_like(g[-1])],
        lambda g: [-part for part in g],
        lambda g: [part + float("nan") for part in g],
    ],
    ids=["longer", "a part missing", "wrong way", "not a number"],
)
def test_a_broken_adapter_is_caught(change):
    near = agreement(SMALL, {"broken": broken(change)}, 1, CPU)["broken"]
    assert not near["float64"].close


def test_first_order_in_the_place_of_second_is_caught():
    def cheap(work, values, tasks):
        return plain.build(replace(work, second_order=False), values, tasks)

    assert not agreement(SMALL, {"cheap": cheap}, 1, CPU)["cheap"]["float64"].close


def test_the_command_fails_when_our_own_gradient_is_wrong(tmp_path, monkeypatch, capsys):
    wrong = broken(lambda g: [2 * part for part in g])
    monkeypatch.setattr(command, "builders", lambda *_: {"metarun": wrong, "higher": wrong})
    monkeypatch.setattr(command, "chosen", lambda _: [SMALL])
    arguments = ["--rounds", "1", "--threads", "1", "--out", str(tmp_path)]
    assert command.main([*arguments, "--only", "higher"]) == 0  # said, but not our fault
    assert command.main(arguments) == 1
    assert "metarun: relative error 1.0e+00" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "gflop"),
    [
        *(("w1", 166.9), ("w1-first", 148.5), ("w1-1query", 37.0), ("w2", 277.6)),
        *(("w2-first", 185.6), ("w4", 267.3), ("w4-first", 121.5), ("w5", 148.5), ("w6", 389.0)),
    ],
)
@pytest.mark.slow
def test_the_works_are_those_of_the_reference(name, gflop):
    assert flops(WORKS[name]) / 1e9 == pytest.approx(gflop, rel=2e-3)


def test_ratios_are_a_round_not_of_medians():
    assert ratios([2.0, 8.0, 3.0], [1.0, 1.0, 3.0])["rounds"] == [2.0, 8.0, 1.0]
    took = {"plain loop": [4.0, 4.0], "metarun": [1.0, 2.0]}
    result = summary(WORKS["w3"], took, operations=10, rate=5.0)
    assert result["contenders"]["metarun"]["against_plain"]["median"] == 3.0
    assert result["contenders"]["plain loop"]["times_limit"] == 2.0


def test_patterns_choose_works_and_a_misspelt_one_is_refused():
    assert [work.name for work in chosen("w3,w1*")] == ["w1", "w1-first", "w1-1query", "w3"]
    with pytest.raises(SystemExit, match="w9 names none of w1, "):
        chosen("w1,w9")


def test_tasks_are_the_same_numbers_in_both_precisions():
    single, double = (batch(SMALL, dtype, CPU) for dtype in (torch.float32, torch.float64))
    assert torch.equal(single.query_x, double.query_x.float())
    assert distance([single.query_x], [double.query_x]).max_error < 1e-6
