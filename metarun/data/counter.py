"""Random numbers without a generator: a draw is a pure function of a key and of where it stands.

The key (seed, split, purpose, ...) names a stream; coordinates (task, class, ...) name a number in
it. Whoever asks for that number gets the same one, alone or among a million, on every device.
Nothing is carried from draw to draw, so there is nothing to save, to restore or to share.
"""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor

from metarun.kernels.draws import fractions, mixed

Key = tuple[int | str, ...]
GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15, the stride of SplitMix64


def bits(key: Key, *coordinates: Tensor) -> Tensor:
    """Hash a key and int64 coordinates to 64 random bits, int64 of the shape they broadcast to.

    One coordinate c gives output c of the SplitMix64 stream (Steele et al., 2014) that the key
    seeds; each further one gives an output of the stream seeded by what the others gave.
    """
    return mixed(_word(key, coordinates))


def uniform(key: Key, *coordinates: Tensor) -> Tensor:
    """Draw float64 numbers in [0, 1) of 53 random bits each."""
    return fractions(_word(key, coordinates))


def integers(bound: int | Tensor, key: Key, *coordinates: Tensor) -> Tensor:
    """Draw int64 numbers in 0..bound-1; no value is favoured by more than bound / 2**53."""
    return (uniform(key, *coordinates) * bound).long()


def normal(key: Key, *coordinates: Tensor) -> Tensor:
    """Draw float64 standard normals (Box and Muller, 1958); devices may differ in the last bit."""
    radius = uniform((*key, "radius"), *coordinates).neg_().log1p_().mul_(-2.0).sqrt_()
    return uniform((*key, "angle"), *coordinates).mul_(2.0 * math.pi).cos_().mul_(radius)


def smallest(count: int, keys: Tensor) -> Tensor:
    """Return where the `count` smallest keys of each row stand, smallest first.

    With random keys this is an ordered draw without repetition, for all rows at once.
    """
    return torch.topk(keys, count, dim=-1, largest=False, sorted=True).indices


def _word(key: Key, coordinates: tuple[Tensor, ...]) -> Tensor:
    """Return what is mixed last."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    seed = int.from_bytes(digest, "little", signed=True)
    first, *others = coordinates
    word = (first + 1).mul_(GOLDEN).add_(seed)
    for coordinate in others:
        word = (coordinate + 1).mul_(GOLDEN) + mixed(word)
    return word
