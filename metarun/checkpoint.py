"""Checkpoints: one safetensors file each, whole or absent, verified to the last byte on loading."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import torch as safetensors
from torch import Tensor

from metarun.errors import CheckpointError
from metarun.files import TEMPORARY, storage_error, write_atomic
from metarun.records import masked

FORMAT = 1  # raise it with every change of layout, and add a golden file
SUFFIX = ".safetensors"
BEST = "best"
NUMBERED = re.compile(r"step-(\d+)\.safetensors")
LARGEST_HEADER = 100_000_000  # bytes; safetensors' own limit
PICKLES = (b"PK\x03\x04", *(b"\x80" + bytes([protocol]) for protocol in range(2, 6)))

Meta = dict[str, Any]


class Saved(NamedTuple):
    """Where a checkpoint lies, and which older one could not be deleted."""

    path: Path
    notice: str | None


class Newest(NamedTuple):
    """The latest checkpoint that can be used, and what had to be passed over to find it."""

    path: Path
    tensors: dict[str, Tensor]
    meta: Meta
    notice: str | None


def step_name(step: int) -> str:
    """Return the name under which the checkpoint after `step` meta-steps is saved."""
    return f"step-{step:09d}"


def best(run: Path) -> Path:
    """Return where a run's folder has the best of its meta-parameters on validation."""
    return run / "checkpoints" / f"{BEST}{SUFFIX}"


def refuse_lost(path: Path) -> None:
    """Raise CheckpointError where a checkpoint that was written is there no more."""
    if not path.exists():
        raise CheckpointError(f"{path}: is gone; {_advice(path)}")


def save(
    folder: Path, name: str, tensors: Mapping[str, Tensor], meta: Mapping[str, Any], keep: int
) -> Saved:
    """Write `name`.safetensors, then delete all but the newest `keep` numbered ones up to it.

    Views, aliases and tensors of other devices are copied. `meta` holds whatever JSON can say;
    floats come back exactly. The same content gives the same bytes. Nothing is deleted before the
    new file is durable.

    Raises:
        StorageError: nothing was written, and all earlier checkpoints are as they were.
    """
    copies = {
        key: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for key, tensor in tensors.items()
    }
    path = folder / f"{name}{SUFFIX}"
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise storage_error(error, path, 1) from error
    public = {key: masked(value) if key == "config" else value for key, value in meta.items()}
    label = json.dumps(
        {"sha256": "0" * 64, "format": FORMAT, "order": list(copies), "meta": public}
    )
    data = safetensors.save(copies, {"metarun": label})
    write_atomic(path, data.replace(_seal("0" * 64), _seal(_digest(data)), 1))
    return Saved(path, _retire(folder, path, keep))


def load(path: Path, device: torch.device | str = "cpu") -> tuple[dict[str, Tensor], Meta]:
    """Read a checkpoint back, bit for bit, once its format, digest and layout have been checked.

    The tensors come in the order in which they were saved, since the last bits of a sum over them
    depend on it. The file is read once; memory grows with its size, whatever its header claims.

    Raises:
        CheckpointError: missing, truncated, altered, of another kind or of a later format.
    """
    if path.suffix != SUFFIX or (path.exists() and not path.is_file()):
        raise CheckpointError(f"{path}: is none; checkpoints are *{SUFFIX} files, never pickles")
    refuse_lost(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        label = _label(data)
        version, digest, meta = label["format"], label["sha256"], label["meta"]
        seal = _seal(str(digest))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        found = "a pickle, which was not opened" if data.startswith(PICKLES) else "truncated"
        raise CheckpointError(
            f"{path}: {found}, or no checkpoint of ours; {_advice(path)}"
        ) from error
    if version != FORMAT:
        raise CheckpointError(
            f"{path}: has format {version!s:.20}, this metarun reads format {FORMAT}; "
            "use the metarun that wrote it"
        )
    if _digest(data.replace(seal, _seal("0" * 64), 1)) != digest or not isinstance(meta, dict):
        said = "damaged, its bytes do not match its digest"
        raise CheckpointError(f"{path}: {said}; {_advice(path)}")
    try:
        stored = safetensors.load(data)
        tensors = {key: stored.pop(key) for key in label["order"]}
    except Exception as error:  # a digest can be forged, and the parser raises many kinds
        raise CheckpointError(f"{path}: not a safetensors file: {error!s:.80}") from error
    return {key: tensor.to(device) for key, tensor in tensors.items()}, meta


def newest(folder: Path, device: torch.device | str = "cpu") -> Newest | None:
    """Load the numbered checkpoint of the highest step that is valid; None where there is none.

    Raises:
        CheckpointError: there are some, and every one of them is damaged.
    """
    passed_over: list[str] = []
    for path in sorted(_numbered(folder), key=_step, reverse=True):
        try:
            tensors, meta = load(path, device)
        except CheckpointError as error:
            passed_over.append(str(error))
            continue
        notice = f"{passed_over[0]}; going on from {path.name}" if passed_over else None
        return Newest(path, tensors, meta, notice)
    if passed_over:
        raise CheckpointError(
            f"{folder}: none of its {len(passed_over)} checkpoints can be used; delete them all to "
            f"start afresh; {passed_over[0]}"
        )
    return None


def check_config(meta: Meta, config_digest: str, config: Mapping[str, Any]) -> None:
    """Refuse a checkpoint that another configuration wrote; both configurations are flat.

    Its own are `meta["config_digest"]` and `meta["config"]`, with secrets masked.

    Raises:
        CheckpointError: names the settings that differ, there and here.
    """
    if meta.get("config_digest") == config_digest:
        return
    there, here = meta.get("config") or {}, masked(config)
    keys = [key for key in sorted({*there, *here}) if there.get(key) != here.get(key)]
    if there and not keys:  # apart by a secret alone, which a run's folder does not hold
        return
    shown = ", ".join(
        f"{k} ({there.get(k)!s:.40} there, {here.get(k)!s:.40} here)" for k in keys[:4]
    )
    more = f" and {len(keys) - 4} more" if len(keys) > 4 else ""
    raise CheckpointError(
        f"the checkpoint belongs to another configuration, which differs in {shown or 'its digest'}"
        f"{more}; give this run another name, or restore these settings"
    )


def check_data(meta: Meta, fingerprint: Mapping[Any, str]) -> None:
    """Refuse a checkpoint that was trained on other data, split by split.

    Its own are `meta["data"]`; what it does not tell, as before there were any, passes.

    Raises:
        CheckpointError: names the splits that differ.
    """
    there = meta.get("data") or {}
    changed = [split for split, own in fingerprint.items() if there.get(split, own) != own]
    if changed:
        parts = [split for split in changed if split != "weights"]
        what, where = (
            ("data set has", f", in {', '.join(parts)}") if parts else ("weights have", "")
        )
        raise CheckpointError(
            f"the {what} changed since the checkpoint was written{where}; "
            "put back what was there, or give this run another name to start afresh"
        )


def _advice(path: Path) -> str:
    """Say how to do without a checkpoint: the best on validation is not in any other."""
    if path.stem != BEST:
        return "delete it, and the same command goes on from the checkpoint before"
    folder = path.parent
    return (
        f"delete {folder}, and outcome.json beside it if there is one; then metarun resume "
        f"{folder.parent} trains the same again"
    )


def _retire(folder: Path, latest: Path, keep: int) -> str | None:
    """Delete what is no longer needed; files of later steps do not count as newer copies."""
    notice = None
    older = sorted((p for p in _numbered(folder) if _step(p) <= _step(latest)), key=_step)
    for path in [*older[:-keep], *folder.glob(TEMPORARY)]:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            notice = f"{path}: could not be deleted: {error.strerror}; the run goes on"
    return notice


def _numbered(folder: Path) -> list[Path]:
    return [p for p in folder.glob(f"step-*{SUFFIX}") if NUMBERED.fullmatch(p.name)]


def _step(path: Path) -> int:
    match = NUMBERED.fullmatch(path.name)
    return int(match[1]) if match else -1


def _seal(digest: str) -> bytes:
    """Return the digest as it stands in the file: first in the label, which is JSON inside JSON."""
    return rf"\"sha256\": \"{digest}\"".encode()


def _digest(unsealed: bytes) -> str:
    return hashlib.sha256(unsealed).hexdigest()


def _label(data: bytes) -> Meta:
    size = int.from_bytes(data[:8], "little")
    if not 0 < size <= min(len(data) - 8, LARGEST_HEADER):
        raise ValueError(f"a header of {size} bytes in a file of {len(data)}")
    return json.loads(json.loads(data[8 : 8 + size].decode())["__metadata__"]["metarun"])
