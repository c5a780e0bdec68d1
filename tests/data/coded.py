"""Images that tell which class and drawing they are, and how they were turned."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from metarun.data.images import ImageSource, Pictures, Rotations, image_source
from metarun.data.source import Split

MARK = 255  # stands bottom left in an upright image
CORNERS = ((1, 0), (1, 1), (0, 1), (0, 0))  # where a quarter turn takes the mark, again and again


class Known(NamedTuple):
    """What a coded image says of itself; tensors of the shape of the batch."""

    label: Tensor
    drawing: Tensor
    turn: Tensor


def coded_pictures(counts: Sequence[int]) -> Pictures:
    """One 2 x 2 image a drawing: class and drawing above, the mark and nothing below."""
    assert len(counts) < MARK
    assert max(counts) < MARK
    rows = [[label, drawing, MARK, 0] for label, n in enumerate(counts) for drawing in range(n)]
    pixels = torch.tensor(rows, dtype=torch.uint8).view(-1, 1, 2, 2)
    return Pictures(pixels, tuple(counts), tuple(f"class{i}" for i in range(len(counts))))


def coded_source(
    counts: Sequence[int],
    splits: Mapping[Split, Sequence[int]] | None = None,
    rotations: Rotations = "none",
    groups: Sequence[int] = (),
) -> ImageSource:
    """A source of coded images; every split holds every class unless told otherwise."""
    everything = range(len(counts))
    splits = splits or {"train": everything, "validation": everything, "test": everything}
    return image_source(coded_pictures(counts), splits, rotations, groups)


def read(x: Tensor) -> Known:
    """Read coded images [..., 1, 2, 2] of floats in 0..1."""
    whole = (x[..., 0, :, :] * 255).round().long()
    assert torch.equal(whole.float() / 255, x[..., 0, :, :])
    marks = torch.stack([whole[..., row, column] == MARK for row, column in CORNERS], -1)
    assert (marks.sum(-1) == 1).all()
    turn = marks.long().argmax(-1)
    upright = torch.empty_like(whole)
    for quarter in range(4):
        mine = turn == quarter
        upright[mine] = whole[mine].rot90(-quarter, (-2, -1))
    return Known(upright[..., 0, 0], upright[..., 0, 1], turn)


def sampled() -> str:
    """A digest of some tasks and examples, to be compared between processes."""
    source = coded_source([7, 9, 8, 12, 7, 30], rotations="per_task", groups=[0] * 6)
    tasks = source.tasks("train", 3, 50, ways=5, shots=2, queries=3, seed=9)
    tensors = (tasks.support_x, tasks.query_x, *source.examples(0, 50, seed=0))
    return hashlib.sha256(b"".join(t.numpy().tobytes() for t in tensors)).hexdigest()
