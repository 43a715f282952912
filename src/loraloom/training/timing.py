"""How long batches take: a few are timed, and the others lie on the line between those of their size."""

from __future__ import annotations

import random
import statistics
import time
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

Indices = Sequence[int]
Result = TypeVar("Result")

POINTS = 8
"""Sizes that are timed, from the smallest batch to the largest."""
BUDGET_S = 4.0
"""Seconds after which no further round of timings begins; two are always made, if need be for long."""
_ROUNDS = 5
_LEAST_ROUNDS = 2


@dataclass(frozen=True)
class Timing:
    """Seconds by size, in padded positions: straight lines between measured points."""

    points: tuple[tuple[int, float], ...]
    """(positions, seconds), positions rising."""

    def seconds(self, positions: int) -> float:
        """What one batch of this size takes; beyond the points, in proportion to the nearest."""
        sizes = [size for size, _ in self.points]
        place = bisect_left(sizes, positions)
        if place == len(sizes):
            size, taken = self.points[-1]
            return taken * positions / size
        size, taken = self.points[place]
        if place == 0 or size == positions:
            return taken if size == positions else taken * positions / size
        before, less = self.points[place - 1]
        return less + (taken - less) * (positions - before) / (size - before)

    def total(self, sizes: Sequence[int]) -> float:
        """Seconds of all these batches one after the other."""
        return sum(self.seconds(size) for size in sizes)


def padded(batch: Indices, lengths: Sequence[int]) -> int:
    """Positions of a batch once it is padded: examples × the longest of them, at least 1 each."""
    return len(batch) * max((max(1, lengths[index]) for index in batch), default=0)


def spread(batches: Sequence[Indices], lengths: Sequence[int], count: int = POINTS) -> list[Indices]:
    """Up to `count` batches of different sizes, from the smallest to the largest at even steps of their rank."""
    by_size = {padded(batch, lengths): batch for batch in batches if batch}
    sizes = sorted(padded(batch, lengths) for batch in batches if batch)
    picks = {sizes[round(step * (len(sizes) - 1) / max(1, count - 1))] for step in range(count)} if sizes else set()
    return [by_size[size] for size in sorted(picks)]


def time_batches(
    work: Callable[[Indices], object],
    batches: Sequence[Indices],
    lengths: Sequence[int],
    device: torch.device,
    *,
    budget: float = BUDGET_S,
) -> Timing:
    """Time `work` on each of the batches, in rounds, so that a slow moment of the machine meets them all.

    Sizes come in a mixed order, the last batch at the end of each round: memory in use then is what a run's
    own order would leave of it, holes included.
    """
    taken: list[list[float]] = [[] for _ in batches]
    draw, began = random.Random("timing"), time.perf_counter()
    for number in range(_ROUNDS):
        order = [*draw.sample(range(len(batches) - 1), len(batches) - 1), len(batches) - 1]
        for place in order:
            taken[place].append(timed(lambda place=place: work(batches[place]), device)[1])  # type: ignore[misc]
        if number + 1 >= _LEAST_ROUNDS and time.perf_counter() - began > budget:
            break
    points = [(padded(batch, lengths), statistics.median(times)) for batch, times in zip(batches, taken, strict=True)]
    return Timing(tuple(sorted(points)))


def timed(work: Callable[[], Result], device: torch.device) -> tuple[Result, float]:
    """What `work` returns, and the seconds that it took, the accelerator's included."""
    began = time.perf_counter()
    result = work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return result, time.perf_counter() - began
