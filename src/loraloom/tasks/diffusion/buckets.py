"""Sizes of about one area and several shapes, so that pictures train without being cut square.

Every picture goes to the bucket whose shape is nearest to its own, is scaled to cover it, and loses what
stands over on both sides alike.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

Size = tuple[int, int]
"""(width, height) in pixels."""
WIDEST = 2.0
"""Longest side of a bucket over the side of the square of the same area."""


@dataclass(frozen=True)
class Fit:
    """How one picture comes to its bucket."""

    scaled: Size
    """What it is resized to; covers the bucket."""
    left: int
    """Pixels cut off on the left of the resized picture."""
    top: int
    """Pixels cut off above."""
    bucket: Size

    @property
    def lost(self) -> float:
        """Share of the resized picture's area that is cut off."""
        return 1 - math.prod(self.bucket) / math.prod(self.scaled)


def make_buckets(size: Size, step: int) -> list[Size]:
    """Sizes of at most the area of `size`, sides multiples of `step`, widest shape last; `size` is among them.

    >>> make_buckets((64, 64), 16)
    [(32, 128), (48, 80), (64, 64), (80, 48), (128, 32)]
    """
    area = math.prod(size)
    side = math.sqrt(area)
    least, most = math.ceil(side / WIDEST / step) * step, int(side * WIDEST) // step * step
    found = {size}
    for width in range(least, most + 1, step):
        height = min(int(area / width) // step * step, most)
        if height >= least:
            found.add((width, height))
    largest = {size for size in found if not any(_within(size, other) for other in found)}
    return sorted(largest, key=lambda one: (one[0] / one[1], one))


def _within(one: Size, other: Size) -> bool:
    return one != other and one[0] <= other[0] and one[1] <= other[1]


def nearest_bucket(size: Size, buckets: Sequence[Size]) -> Size:
    """The bucket whose aspect is nearest to that of `size`, the larger one of equals."""
    aspect = math.log(size[0] / size[1])
    return min(buckets, key=lambda one: (round(abs(math.log(one[0] / one[1]) - aspect), 9), -math.prod(one)))


def fit(size: Size, bucket: Size) -> Fit:
    """Scale to cover, cut the middle out."""
    scale = max(bucket[0] / size[0], bucket[1] / size[1])
    scaled = (max(bucket[0], round(size[0] * scale)), max(bucket[1], round(size[1] * scale)))
    return Fit(scaled, (scaled[0] - bucket[0]) // 2, (scaled[1] - bucket[1]) // 2, bucket)


def apply(picture: Image.Image, how: Fit) -> Image.Image:
    """The picture at its bucket's size, RGB."""
    if picture.size != how.scaled:
        picture = picture.resize(how.scaled, Image.Resampling.LANCZOS)
    width, height = how.bucket
    return picture.crop((how.left, how.top, how.left + width, how.top + height))


def bucket_lengths(buckets: Sequence[Size]) -> dict[Size, int]:
    """A number per bucket, as `Feature.length`: so far apart that batches of like length keep buckets together.

    The loop moves a length by up to 1, or 5 % of it (data/batches.py, JITTER), when it makes batches: only at the
    border between two buckets can a batch hold both.
    """
    lengths, number = {}, 1
    for bucket in buckets:
        lengths[bucket] = number
        number += max(1, math.ceil(0.05 * number))
    return lengths
