"""Batches of like length in a seeded order: little padding, and the same order again after a resume.

Everything here is a function of its arguments alone, on every machine and in every process: no clock, no
global random state, no hash order.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import pairwise

from loraloom.errors import ConfigError

Batches = list[list[int]]

JITTER = 0.05
"""By how much of its length an example may be moved when batches are made of like lengths."""


def length_batches(
    lengths: Sequence[int], batch_size: int, *, seed: int, epoch: int, jitter: float = JITTER
) -> Batches:
    """Indices of all examples, each once, in batches of `batch_size` (one may be smaller), for one epoch.

    Batches hold examples of like length, so that padding to the longest costs little. Which examples meet
    and in which order the batches come is drawn from `seed` and `epoch`: lengths are ordered after a
    random move of up to one position, or `jitter` of the length where that is more; the small batch, if
    any, falls anywhere among the lengths. Raises ConfigError for a batch size below 1.
    """
    _check_size(batch_size)
    draw = random.Random(f"batches/{seed}/{epoch}")
    # lengths are whole numbers: a move of less than 1 only mixes those that are equal, at no cost
    keys = [length + draw.random() * max(1.0, jitter * length) for length in lengths]
    order = sorted(range(len(keys)), key=keys.__getitem__)
    sizes = [batch_size] * (len(order) // batch_size)
    if len(order) % batch_size:
        sizes.insert(draw.randint(0, len(sizes)), len(order) % batch_size)
    batches, start = [], 0
    for size in sizes:
        batches.append(order[start : start + size])
        start += size
    draw.shuffle(batches)
    return batches


def sorted_batches(lengths: Sequence[int], batch_size: int) -> Batches:
    """Batches for evaluation, longest first: the least padding, and too large a batch fails at once."""
    _check_size(batch_size)
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def padding_share(lengths: Sequence[int], batches: Sequence[Sequence[int]]) -> float:
    """What part of all positions is padding when every batch is padded to its longest, 0 to 1."""
    used = sum(lengths[index] for batch in batches for index in batch)
    padded = sum(len(batch) * max(lengths[index] for index in batch) for batch in batches if batch)
    return 1 - used / padded if padded else 0.0


def micro_batches(batch: Sequence[int], parts: int) -> Batches:
    """Part a batch, in order, into `parts` that differ by one in size at most; fewer where it is too small.

    As a batch of `length_batches` goes from short to long, each part again holds like lengths.
    Raises ConfigError for less than one part.
    """
    if parts < 1:
        raise ConfigError(f"expected at least one micro-batch, found {parts}")
    parts = min(parts, len(batch))
    bounds = [len(batch) * part // parts for part in range(parts + 1)] if parts else [0]
    return [list(batch[low:high]) for low, high in pairwise(bounds)]


def shard_batch(batch: Sequence[int], process: int, processes: int) -> list[int]:
    """What one of several processes takes of a global batch: every `processes`-th index.

    Sizes differ by one at most, and lengths are shared out evenly; a batch smaller than the number of
    processes leaves the last ones nothing. Raises ConfigError for a process that there is not.
    """
    if not 0 <= process < processes:
        raise ConfigError(f"expected a process from 0 to {processes - 1}, found {process}")
    return list(batch[process::processes])


def _check_size(batch_size: int) -> None:
    if batch_size < 1:
        raise ConfigError(f"batch_size: expected at least 1, found {batch_size}")
