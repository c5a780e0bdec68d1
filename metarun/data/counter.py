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

Key = tuple[int | str, ...]
GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15, the stride of SplitMix64


def bits(key: Key, *coordinates: Tensor) -> Tensor:
    """Hash a key and int64 coordinates to 64 random bits, int64 of the shape they broadcast to.

    One coordinate c gives output c of the SplitMix64 stream (Steele et al., 2014) that the key
    seeds; each further one gives an output of the stream seeded by what the others gave.
    """
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    state: int | Tensor = int.from_bytes(digest, "little", signed=True)
    for coordinate in coordinates:
        word = (coordinate + 1).mul_(GOLDEN) + state
        word.bitwise_xor_(_shifted(word, 30)).mul_(-4658895280553007687)  # 0xBF58476D1CE4E5B9
        word.bitwise_xor_(_shifted(word, 27)).mul_(-7723592293110705685)  # 0x94D049BB133111EB
        state = word.bitwise_xor_(_shifted(word, 31))
    assert isinstance(state, Tensor), "a draw needs a coordinate"
    return state


def uniform(key: Key, *coordinates: Tensor) -> Tensor:
    """Draw float64 numbers in [0, 1) of 53 random bits each."""
    return _shifted(bits(key, *coordinates), 11).to(torch.float64).mul_(2.0**-53)


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


def _shifted(word: Tensor, places: int) -> Tensor:
    left = (1 << (64 - places)) - 1  # int64 has the arithmetic shift only, which drags the sign in
    return (word >> places).bitwise_and_(left)
