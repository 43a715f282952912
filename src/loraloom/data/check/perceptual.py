"""Which pictures look the same, though their bytes differ: scaled, saved again, a little brighter.

A difference hash (dHash: N. Krawetz, "Kind of like that", The Hacker Factor Blog, 2013): the picture is made
16 × 17 grey, and each pixel is 1 when its right neighbour is clearly brighter. Pictures are near when at most
`NEAR` of the 256 bits differ and the small grey pictures agree too. Candidates share one of `NEAR + 1` bands of
bits unchanged, as any two must that differ in `NEAR` bits at most; so looking up takes about constant time.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIDE = 16
"""Rows of the small grey picture, and bits in each."""

NEAR = 10
"""Bits of 256 that may differ."""

_STEP = 3  # of 255: less is noise of the encoder on flat ground
_SHADE = 10.0  # of 255: the mean by which the small pictures may differ, once their means are equal
_LEAST_BITS = 8  # pictures with fewer edges than this, such as flat ones, all look the same to the hash
_MOST_SHARED = 200  # keeps frames of one film from costing time by the square

Look = bytes
"""The small grey picture, `SIDE` · (`SIDE` + 1) bytes, row by row."""


def look_of(image: Image.Image) -> Look:
    """The small grey picture of an RGB picture."""
    return image.convert("L").resize((SIDE + 1, SIDE), Image.Resampling.BOX).tobytes()


def difference_hash(look: Look) -> int:
    """256 bits, row by row: is the right neighbour clearly brighter?"""
    grey = _grey(look)
    return int.from_bytes(np.packbits(grey[:, 1:] - grey[:, :-1] >= _STEP).tobytes(), "big")


def _grey(look: Look) -> NDArray[np.int16]:
    return np.frombuffer(look, np.uint8).reshape(SIDE, SIDE + 1).astype(np.int16)


@dataclass
class PictureIndex:
    """Pictures that can be asked for one that looks the same as another."""

    _looks: dict[int, Look] = field(default_factory=dict)
    _hashes: dict[int, int] = field(default_factory=dict)
    _bands: dict[tuple[int, int], list[int]] = field(default_factory=lambda: defaultdict(list))

    def add(self, number: int, look: Look) -> None:
        """Put a picture in, under a number of the caller's."""
        bits = difference_hash(look)
        if bits.bit_count() < _LEAST_BITS:
            return
        self._looks[number], self._hashes[number] = look, bits
        for band in _cut(bits):
            if len(self._bands[band]) < _MOST_SHARED:
                self._bands[band].append(number)

    def nearest(self, look: Look) -> int | None:
        """The number of the picture that differs in the fewest bits, the first of equals; None when none is near."""
        bits = difference_hash(look)
        if bits.bit_count() < _LEAST_BITS:
            return None
        asked = {number for band in _cut(bits) for number in self._bands.get(band, ())}
        near = sorted((distance, number) for number in asked if (distance := self._distance(number, bits)) <= NEAR)
        return next((number for _, number in near if _shades_apart(look, self._looks[number]) <= _SHADE), None)

    def _distance(self, number: int, bits: int) -> int:
        return (self._hashes[number] ^ bits).bit_count()


def _shades_apart(one: Look, other: Look) -> float:
    """The mean difference of two small pictures, 0 to 255, once their means are equal."""
    first, second = _grey(one).astype(np.float64), _grey(other).astype(np.float64)
    return float(np.abs((first - first.mean()) - (second - second.mean())).mean())


def _cut(bits: int) -> list[tuple[int, int]]:
    """The bands of a hash, each with its number."""
    bounds = [SIDE * SIDE * band // (NEAR + 1) for band in range(NEAR + 2)]
    return [(band, bits >> low & ((1 << high - low) - 1)) for band, (low, high) in enumerate(pairwise(bounds))]
