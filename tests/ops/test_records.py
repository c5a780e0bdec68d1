"""The records: what a kill, a resume, a secret and a non-finite number make of them."""

from __future__ import annotations

import errno
import json
import os
import shutil

import numpy as np
import pytest
import torch
from children import kill, python

from metarun.errors import StorageError
from metarun.records import NAME, Records, masked, merged, parse, read

TRAINER = """
import sys
from pathlib import Path
from metarun.records import Records
with Records(Path(sys.argv[1])) as records:
    for step in range(10**9):
        records.write("train", step, {"loss": 1 / (step + 1), "text": "x" * (step % 500)})
        if step == 50:
            print("going", flush=True)
"""


def kinds(records):
    """Return (kind, step) of each record."""
    return [(r["kind"], r["step"]) for r in records]


def test_what_is_written_is_read_back(tmp_path):
    figures = {
        "loss": 0.1 + 0.2,
        "by_step": [1, 2.5],
        "name": "Ä\n\ud800",
        "none": None,
        "ok": True,
    }
    with Records(tmp_path) as records:
        records.write("train", 1, figures)
        records.sync()
    (record,) = read(tmp_path)
    assert {k: record[k] for k in figures} == figures
    assert record["kind"] == "train"
    assert record["time"] > 1e9


def test_numbers_of_libraries_and_non_finite_ones_are_valid_json(tmp_path):
    with Records(tmp_path) as records:
        records.write(
            "train",
            1,
            {
                "nan": float("nan"),
                "deep": {"a": [float("inf"), -np.inf]},
                "array": np.array([1.5, np.nan]),
                "scalar": np.float32(0.5),
                "tensor": torch.tensor(3),
                "path": tmp_path,
            },
        )
    text = (tmp_path / NAME).read_text()

    def refuse(constant):
        pytest.fail(f"{constant} is not JSON")

    record = json.loads(text, parse_constant=refuse)
    assert record["nan"] == "NaN"
    assert record["deep"] == {"a": ["Infinity", "-Infinity"]}
    assert record["array"] == [1.5, "NaN"]
    assert (record["scalar"], record["tensor"], record["path"]) == (0.5, 3, str(tmp_path))
    assert np.isnan(float(record["nan"]))
    assert float("-Infinity") == float(record["deep"]["a"][1])


def test_every_truncation_loses_at_most_the_last_record(tmp_path):
    with Records(tmp_path) as records:
        for step in range(4):
            records.write("train", step, {"loss": step / 3})
    whole = (tmp_path / NAME).read_bytes()
    for size in range(len(whole) + 1):
        assert kinds(parse(whole[:size])) == [
            ("train", s) for s in range(whole[:size].count(b"\n"))
        ]


def test_appending_after_a_torn_line_keeps_both_sides(tmp_path):
    with Records(tmp_path) as records:
        records.write("train", 1)
        records.write("train", 2)
    path = tmp_path / NAME
    for cut in range(1, 20):
        shutil.copy(path, tmp_path / "copy")
        with path.open("rb+") as file:
            file.truncate(path.stat().st_size - cut)
        with Records(tmp_path) as records:
            records.write("resumed", 1)
        whole = [("train", 2)] if cut == 1 else []  # only its line end was lost
        assert kinds(read(tmp_path)) == [("train", 1), *whole, ("resumed", 1)]
        shutil.copy(tmp_path / "copy", path)


@pytest.mark.parametrize(
    "noise", [b"\0" * 40, b"[1]", b"7", b"null", b'{"kind": "train"}', b"\xff\xfe", b"[" * 50_000]
)
def test_lines_that_are_no_records_are_passed_over(tmp_path, noise):
    with Records(tmp_path) as records:
        records.write("train", 1)
    with (tmp_path / NAME).open("ab") as file:
        file.write(noise + b"\n")
    with Records(tmp_path) as records:
        records.write("train", 2)
    assert kinds(read(tmp_path)) == [("train", 1), ("train", 2)]


def test_no_records_yet_is_an_empty_list(tmp_path):
    assert read(tmp_path) == []


@pytest.mark.parametrize("restart", ["resumed", "start"])
def test_a_restart_supersedes_what_it_repeats(restart):
    step = 2 if restart == "resumed" else 0
    first = [
        ("start", 0),
        ("train", 1),
        ("train", 2),
        ("validate", 2),
        ("train", 3),
        ("validate", 3),
    ]
    again = [(restart, step), *[("train", s) for s in range(step + 1, 5)], ("test", 4), ("end", 4)]
    lines = [*first, ("test", 3), ("end", 3), *again]
    records = [{"kind": k, "step": s, "time": float(n)} for n, (k, s) in enumerate(lines)]
    result = merged(records)
    kept = first[:4] if step else first[:1]
    assert kinds(result) == [*kept, *again]
    trained = [s for k, s in kinds(result) if k == "train"]
    assert trained == sorted(set(trained)) == [1, 2, 3, 4]
    assert merged(result) == result


def test_a_validation_repeated_at_the_resumed_step_stands_once():
    lines = [("train", 2), ("validate", 2), ("resumed", 2), ("validate", 2), ("train", 3)]
    records = [{"kind": k, "step": s, "time": n} for n, (k, s) in enumerate(lines)]
    assert [r["time"] for r in merged(records)] == [0, 2, 3, 4]


def test_secrets_of_the_environment_never_reach_a_record(tmp_path, monkeypatch):
    canary = 'canary-"9f\\é-value'
    for name in ("WANDB_API_KEY", "gh_token", "MY_SECRET_2", "DB_PASSWORD"):
        monkeypatch.setenv(name, f"{canary}{name}")
    monkeypatch.setenv("SHORT_KEY", "true")
    monkeypatch.setenv("HARMLESS", "visible")
    values = [f"{canary}{n}" for n in ("WANDB_API_KEY", "gh_token", "MY_SECRET_2", "DB_PASSWORD")]
    config = {"url": f"https://u:{values[0]}@host", "deep": [{values[1]: values[2:]}], "a": "true"}
    with Records(tmp_path) as records:
        records.write("start", 0, {"config": config, "b": "visible"})
    text = (tmp_path / NAME).read_text()
    assert "canary" not in text
    assert "canary" not in str(masked(config))
    (record,) = read(tmp_path)
    assert record["config"] == {
        "url": "https://u:***@host",
        "deep": [{"***": ["***"] * 2}],
        "a": "true",
    }
    assert record["b"] == "visible"
    assert values[0] in config["url"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_a_write_that_fails_stops_the_run(tmp_path, monkeypatch, number):
    def fail(*_):
        raise OSError(number, os.strerror(number))

    with Records(tmp_path) as records:
        records.write("train", 1)
        for call in ("write", "fsync"):
            with monkeypatch.context() as patch:
                patch.setattr(os, call, fail)
                with pytest.raises(StorageError, match=os.strerror(number)):
                    records.write("train", 2) if call == "write" else records.sync()
    assert kinds(read(tmp_path)) == [("train", 1)]


def test_a_deleted_folder_is_noticed_at_the_next_sync(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    with Records(folder) as records:
        records.write("train", 1)
        shutil.rmtree(folder)
        records.write("train", 2)
        with pytest.raises(StorageError, match="deleted while"):
            records.sync()
    assert not folder.exists()


def test_a_record_is_one_write(tmp_path, monkeypatch):
    calls = []
    write = os.write
    monkeypatch.setattr(os, "write", lambda d, data: calls.append(bytes(data)) or write(d, data))
    with Records(tmp_path) as records:
        records.write("train", 1, {"text": "x" * 100_000})
    assert len(calls) == 1


def test_kills_while_appending_leave_a_prefix(tmp_path):
    for trial in range(5):
        folder = tmp_path / str(trial)
        folder.mkdir()
        process = python("-c", TRAINER, folder)
        process.stdout.readline()
        kill(process)
        steps = [r["step"] for r in read(folder)]
        assert steps == list(range(len(steps)))
        assert len(steps) > 50
