"""Timing two or more ways of doing a thing turn by turn in one process: the ratio of medians.

Machines drift; a ratio of runs that alternate drifts far less than two timings made one after the other.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Timing:
    """Seconds per run of one side."""

    runs: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.runs)


def take_turns(sides: Mapping[str, Callable[[], object]], *, rounds: int, warmup: int = 2) -> dict[str, Timing]:
    """Run every side once per round, in an order that turns with the round, and time each run."""
    for _ in range(warmup):
        for side in sides.values():
            side()
    runs: dict[str, list[float]] = {name: [] for name in sides}
    names = list(sides)
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            start = time.perf_counter()
            sides[name]()
            runs[name].append(time.perf_counter() - start)
    return {name: Timing(tuple(times)) for name, times in runs.items()}


def ratio(timings: Mapping[str, Timing], side: str, base: str) -> float:
    """Median of `side` over median of `base`."""
    return timings[side].median / timings[base].median
