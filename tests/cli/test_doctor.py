"""`metarun doctor`: what it looks at, and in which words."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from metarun.verbs import doctor

DATASETS = Path(__file__).parents[2] / "conf" / "dataset"


def test_every_data_set_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METARUN_DATA", str(tmp_path))
    names = {row.name for row in doctor.datasets()}
    assert {path.stem for path in DATASETS.glob("*.yaml")} <= names


@pytest.mark.parametrize(("threads", "said"), [(1, " 1 thread"), (2, " 2 threads")])
def test_a_thread_is_one(threads: int, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert doctor.devices()[0].detail.endswith(said)


@pytest.mark.parametrize("why", ["", "there is no C compiler for the kernels"])
def test_kernels_are_looked_at(why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("metarun.kernels.build.why_not", lambda: why)
    (row,) = (row for row in doctor.devices() if row.name == "kernels")
    assert (row.state, row.detail) == (("warn", f"{why}; vmap instead") if why else ("ok", "built"))


def test_looking_at_places_leaves_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METARUN_OUTPUTS", str(tmp_path / "a" / "b" / "c"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "d"))
    assert {row.state for row in doctor.places()} == {"ok"}
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("variable", "name"), [("XDG_CACHE_HOME", "cache"), ("METARUN_OUTPUTS", "outputs")]
)
def test_a_place_that_cannot_be_written_names_its_variable(
    variable: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv(variable, str(tmp_path / "file"))
    (row,) = (row for row in doctor.places() if row.name == name)
    assert row.state == "fail"
    assert row.detail.endswith(f"; set {variable} to another folder")
