"""Random draws in C: torch's to the last bit, and where C does not fit, torch's themselves."""

from __future__ import annotations

from shutil import which

import pytest
import torch
from torch import Tensor

from metarun.data.counter import bits, normal, uniform
from metarun.kernels import draws
from metarun.kernels.build import DRAWS

ROWS, COLUMNS = torch.arange(-50, 2000)[:, None], torch.arange(17)
COMPILER = any(map(which, ("cc", "gcc", "clang")))
KERNELS = pytest.mark.skipif(not COMPILER, reason="no C compiler")


@pytest.fixture
def by_torch(monkeypatch: pytest.MonkeyPatch):
    """Draw by torch's operations from now on."""
    return lambda: monkeypatch.setattr(draws, "library", lambda sources: None)


@KERNELS
@pytest.mark.parametrize("draw", [bits, uniform, normal])
def test_a_draw_is_the_same_bit_for_bit(draw, by_torch):
    drawn = draw((3, "train"), ROWS, COLUMNS)
    by_torch()
    assert torch.equal(drawn, draw((3, "train"), ROWS, COLUMNS))
    assert not torch.equal(drawn, draw((4, "train"), ROWS, COLUMNS)), "the control"


@KERNELS
@pytest.mark.parametrize(
    "words",
    [torch.tensor([0, -1, 1, 2**63 - 1, -(2**63)]), torch.arange(4096)],
    ids=["ends", "all"],
)
def test_each_kernel_gives_what_torch_gives(
    words: Tensor, by_torch, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(draws, "LEAST", 1)
    mixed, fractions = draws.mixed(words.clone()), draws.fractions(words.clone())
    by_torch()
    assert torch.equal(mixed, draws.mixed(words.clone()))
    assert torch.equal(fractions, draws.fractions(words.clone()))
    assert fractions.min() >= 0
    assert fractions.max() < 1


@KERNELS
def test_c_is_asked_for_many_words_in_a_row_and_no_others(monkeypatch: pytest.MonkeyPatch):
    asked: list[object] = []
    monkeypatch.setattr(draws, "library", asked.append)  # which gives none: torch draws
    many = torch.arange(2 * draws.LEAST)
    draws.mixed(many.clone()[::2])
    draws.mixed(torch.arange(draws.LEAST - 1))
    assert not asked
    assert torch.equal(
        draws.mixed(many.view(2, -1).clone().t()), draws.mixed(many.view(2, -1).clone()).t()
    )
    assert asked == [DRAWS]
