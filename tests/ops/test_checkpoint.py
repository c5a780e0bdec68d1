"""Checkpoints: exact round trips, and files that are damaged, hostile, foreign or old."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import random
import resource
import struct
from pathlib import Path

import pytest
import safetensors.torch
import torch

from metarun import checkpoint
from metarun.checkpoint import check_config, check_data, load, newest, save, step_name
from metarun.errors import CheckpointError, StorageError

GOLDEN = Path(__file__).parents[1] / "golden"
SEED = 20_26
MUTATIONS = 20_000
SOURCE = torch.arange(12.0).reshape(3, 4)


def tensors() -> dict[str, torch.Tensor]:
    """Return one tensor of every kind that a run keeps, and the awkward ones."""
    torch.manual_seed(0)
    return {
        "params/w": torch.randn(3, 4),
        "float64": torch.randn(5, dtype=torch.float64),
        "bfloat16": torch.randn(5).bfloat16(),
        "float16": torch.randn(5).half(),
        "int64": torch.tensor([2**62, -1]),
        "bool": torch.tensor([[True], [False]]),
        "scalar": torch.tensor(3.5, dtype=torch.float64),
        "empty": torch.zeros(0, 7),
        "nan": torch.tensor([float("nan"), float("-inf"), -0.0]),
        "transposed": SOURCE.t(),
        "strided": SOURCE[:, ::2],
        "alias": SOURCE,
        "expanded": torch.ones(1, 3).expand(4, 3),
        "gradient": torch.ones(2, requires_grad=True),
    }


def bits(tensor: torch.Tensor) -> bytes:
    """Return dtype, shape and bytes."""
    flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    return f"{tensor.dtype} {tuple(tensor.shape)} ".encode() + flat.numpy().tobytes()


def test_a_round_trip_is_exact_to_the_bit(tmp_path):
    meta = {"step": 7, "best": float("-inf"), "lr": 0.1 + 0.2, "chunk": None, "name": "é\n\"'"}
    path, notice = save(tmp_path / "checkpoints", step_name(7), tensors(), meta, keep=2)
    assert (path.name, notice) == ("step-000000007.safetensors", None)
    loaded, loaded_meta = load(path)
    assert loaded_meta == meta
    assert {k: bits(v) for k, v in loaded.items()} == {k: bits(v) for k, v in tensors().items()}
    assert list(loaded) == list(tensors())  # or a norm over them would change in its last bit
    loaded["alias"] += 1  # memory of its own
    assert torch.equal(loaded["transposed"], SOURCE.t())
    assert set(safetensors.torch.load_file(path)) == set(tensors())


def test_the_same_content_gives_the_same_bytes(tmp_path):
    paths = [save(tmp_path / n, "best", tensors(), {"step": 1}, 1).path for n in ("a", "b")]
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_a_header_whose_length_looks_like_a_pickle_loads(tmp_path):
    lengths: set[bytes] = set()
    for size in range(360, 520, 4):
        path = save(tmp_path, "best", {"a": torch.ones(1)}, {"x": "x" * size}, 1).path
        assert load(path)[1] == {"x": "x" * size}
        lengths.add(path.read_bytes()[:2])
    assert b"\x80\x02" in lengths


def test_only_the_newest_numbered_ones_are_kept(tmp_path):
    for step in (5, 10, 100_000_000_000, 100_000_000_005):
        save(tmp_path, step_name(step), tensors(), {}, keep=2)
        save(tmp_path, "best", tensors(), {}, keep=1)
    (tmp_path / ".metarun-dead.tmp").write_bytes(b"left by a kill")
    save(tmp_path, step_name(7), tensors(), {}, keep=1)
    names = {"best", step_name(7), step_name(100_000_000_000), step_name(100_000_000_005)}
    assert {p.name for p in tmp_path.iterdir()} == {f"{n}.safetensors" for n in names}


def test_a_deletion_that_fails_is_a_notice(tmp_path, monkeypatch):
    for step in (1, 2):
        save(tmp_path, step_name(step), tensors(), {}, keep=2)

    def refuse(path, missing_ok=False):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "unlink", refuse)
    path, notice = save(tmp_path, step_name(3), tensors(), {}, keep=2)
    assert "step-000000001.safetensors: could not be deleted: Permission denied" in notice
    assert path.exists()


def test_the_newest_valid_one_is_found_and_the_others_are_named(tmp_path):
    assert newest(tmp_path / "absent") is None
    for step in (1, 2, 3):
        save(tmp_path, step_name(step), {"a": torch.tensor(step)}, {"step": step}, keep=3)
    found = newest(tmp_path)
    assert (found.meta["step"], found.tensors["a"].item(), found.notice) == (3, 3, None)
    last = tmp_path / f"{step_name(3)}.safetensors"
    last.write_bytes(last.read_bytes()[:-1] + b"\x7f")
    found = newest(tmp_path)
    assert found.meta["step"] == 2
    assert "step-000000003.safetensors: damaged" in found.notice
    assert "going on from step-000000002" in found.notice
    assert "\n" not in found.notice
    for step in (1, 2):
        (tmp_path / f"{step_name(step)}.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="none of its 3 checkpoints can be used"):
        newest(tmp_path)


def test_another_configuration_is_refused_by_the_names_of_its_settings(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "canary-of-the-test")
    config = {"algo.inner_lr": 0.1, "seed": 0, "features": (1, 28), "note": "canary-of-the-test"}
    meta = {"config_digest": "a", "config": config}
    path = save(tmp_path, "best", tensors(), meta, 1).path
    assert b"canary" not in path.read_bytes()
    meta = load(path)[1]
    check_config(meta, "a", {"anything": 1})
    check_config(meta, "b", config | {"note": "***"})  # as a run's folder gives it back
    with pytest.raises(CheckpointError) as caught:
        check_config(meta, "b", config | {"algo.inner_lr": 0.2, "extra": None, "new": 3})
    text = str(caught.value)
    assert "algo.inner_lr (0.1 there, 0.2 here)" in text
    assert "new (None there, 3 here)" in text
    assert all(word not in text for word in ("seed", "features", "note", "\n"))
    assert caught.value.exit_code == 3


def test_other_data_are_refused_by_the_names_of_their_splits():
    meta = {"data": {"train": "a", "validation": "b", "test": "c"}}
    check_data(meta, meta["data"])
    check_data({}, meta["data"])  # written before there were fingerprints
    check_data(meta, {})
    with pytest.raises(CheckpointError, match=r"in train, test; .*another name") as caught:
        check_data(meta, {"train": "x", "validation": "b", "test": "y"})
    assert caught.value.exit_code == 3


def pickles() -> dict[str, bytes]:
    """Return files that torch.load or an unpickler would execute."""

    class Hostile:
        def __reduce__(self):
            return os.mkdir, ("executed",)

    zipped = io.BytesIO()
    torch.save({"a": torch.ones(2)}, zipped)
    plain = {f"protocol {n}": pickle.dumps(Hostile(), protocol=n) for n in range(6)}
    return plain | {"torch": zipped.getvalue()}


@pytest.mark.parametrize("name", pickles())
def test_pickles_are_refused_unread(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    for suffix in (".safetensors", ".pt", ".pkl", ""):
        path = tmp_path / f"model{suffix}"
        path.write_bytes(pickles()[name])
        with pytest.raises(CheckpointError):
            load(path)
    assert not (tmp_path / "executed").exists()


def test_what_is_no_file_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe.safetensors")
    (tmp_path / "folder.safetensors").mkdir()
    (tmp_path / "loop.safetensors").symlink_to(tmp_path / "loop.safetensors")
    for name in ("pipe", "folder", "loop", "absent"):
        with pytest.raises(CheckpointError):
            load(tmp_path / f"{name}.safetensors")


def mutated(data: bytes, rng: random.Random) -> bytes:
    """Damage a file as disks, transfers and attackers do."""
    changed = bytearray(data)
    kind = rng.randrange(6)
    at = rng.randrange(len(data))
    if kind == 0:
        changed[at] ^= 1 << rng.randrange(8)
    elif kind == 1:
        del changed[at:]
    elif kind == 2:
        changed[at:at] = rng.randbytes(rng.randrange(1, 30))
    elif kind == 3:
        changed[:8] = struct.pack("<Q", rng.choice([0, 1, 2**63, 2**32, rng.randrange(2000)]))
    elif kind == 4:
        numbers = [m for m in (b"1", b"2", b"8", b"0") if m in data]
        changed = bytearray(data.replace(rng.choice(numbers), b"9" * rng.randrange(1, 20), 1))
    else:
        other = rng.randrange(len(data))
        changed[at : at + 9] = data[other : other + 9]
    return bytes(changed)


def resealed(data: bytes) -> bytes:
    """Give a damaged file a digest that matches, as an attacker would."""
    seal = data.find(b'\\"sha256\\": \\"')
    if seal < 0:
        return data
    at = seal + len(b'\\"sha256\\": \\"')
    blank = data[:at] + b"0" * 64 + data[at + 64 :]
    return data[:at] + hashlib.sha256(blank).hexdigest().encode() + data[at + 64 :]


def overwrite(path: Path, data: bytes) -> None:
    """Change a file in place; to truncate it first would make the file system flush each time."""
    with path.open("r+b") as file:
        file.write(data)
        file.truncate()


def test_mutated_files_raise_nothing_but_our_error(tmp_path):
    rng = random.Random(SEED)
    small = {"w": torch.randn(4, 3), "b": torch.ones(2, dtype=torch.bool), "s": torch.tensor(1)}
    path = save(tmp_path, "best", small, {"step": 3, "config": {"a": 1}}, 1).path
    data, refused, loaded = path.read_bytes(), 0, 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(MUTATIONS):
        changed = mutated(data, rng)
        forged = rng.random() < 0.5
        overwrite(path, resealed(changed) if forged else changed)
        try:
            load(path)
        except CheckpointError as error:
            refused += "\n" not in str(error)
        else:
            loaded += 1
            assert forged or changed == data
    assert refused + loaded == MUTATIONS
    assert loaded < 0.3 * MUTATIONS
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 50_000  # KiB


def test_every_flipped_bit_of_the_payload_is_caught(tmp_path):
    rng = random.Random(SEED)
    path = save(tmp_path, "best", {"w": torch.randn(400)}, {}, 1).path
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    for _ in range(1_000):
        changed = bytearray(data)
        changed[rng.randrange(start, len(data))] ^= 1 << rng.randrange(8)
        overwrite(path, bytes(changed))
        with pytest.raises(CheckpointError, match="damaged"):
            load(path)


def test_a_format_of_the_future_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "FORMAT", 2)
    path = save(tmp_path, "best", tensors(), {}, 1).path
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="has format 2, this metarun reads format 1"):
        load(path)


def test_the_golden_file_of_each_format_loads():
    files = sorted(GOLDEN.glob("checkpoint-format-*.safetensors"))
    assert [f.stem for f in files] == [f"checkpoint-format-{n + 1}" for n in range(len(files))]
    assert len(files) == checkpoint.FORMAT
    for file in files:
        loaded, meta = load(file)
        assert meta["step"] == 40
        assert json.loads(json.dumps(meta)) == meta
        assert {k: bits(v) for k, v in loaded.items()} == {k: bits(v) for k, v in golden().items()}


def golden() -> dict[str, torch.Tensor]:
    """Return the tensors that the golden files hold, made without a random generator."""
    kinds = (torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.bool)
    return {str(k): (torch.arange(6) * 3 % 7).reshape(2, 3).to(k) for k in kinds} | {
        "scalar": torch.tensor(0.1, dtype=torch.float64)
    }


def test_a_full_disk_keeps_what_was_there(tmp_path, monkeypatch):
    save(tmp_path, step_name(1), {"a": torch.ones(1)}, {"step": 1}, keep=1)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(StorageError, match="No space left on device"):
        save(tmp_path, step_name(2), tensors(), {"step": 2}, keep=1)
    monkeypatch.undo()
    assert newest(tmp_path).meta["step"] == 1
    assert len(list(tmp_path.iterdir())) == 1
