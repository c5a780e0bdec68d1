"""The last step of a random draw in one pass of C, where torch takes fifteen.

Curves are so few numbers that drawing them by torch's operations is 3 % of a compiled meta-step.
Without a compiler, for few words or on another device torch does it, to the same bit.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from metarun.kernels.build import DRAWS, library

LEAST = 1 << 10  # words that are worth a call, and the fraction of a second of the first build


def mixed(words: Tensor) -> Tensor:
    """Mix int64 words, in place."""
    kernels = _kernels(words)
    if kernels:
        kernels.mix(_at(words), ctypes.c_int64(words.numel()))
        return words
    words.bitwise_xor_(_shifted(words, 30)).mul_(-4658895280553007687)  # 0xBF58476D1CE4E5B9
    words.bitwise_xor_(_shifted(words, 27)).mul_(-7723592293110705685)  # 0x94D049BB133111EB
    return words.bitwise_xor_(_shifted(words, 31))


def fractions(words: Tensor) -> Tensor:
    """Mix int64 words, and return 53 bits of each as a float64 in [0, 1)."""
    kernels = _kernels(words)
    if not kernels:
        return _shifted(mixed(words), 11).to(torch.float64).mul_(2.0**-53)
    out = torch.empty_like(words, dtype=torch.float64)
    kernels.fractions(_at(words), _at(out), ctypes.c_int64(words.numel()))
    return out


def _kernels(words: Tensor) -> ctypes.CDLL | None:
    fit = words.device.type == "cpu" and words.is_contiguous() and words.numel() >= LEAST
    return library(DRAWS) if fit else None


def _at(values: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(values.data_ptr())


def _shifted(word: Tensor, places: int) -> Tensor:
    left = (1 << (64 - places)) - 1  # int64 has the arithmetic shift only, which drags the sign in
    return (word >> places).bitwise_and_(left)
