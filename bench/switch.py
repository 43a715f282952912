"""What it costs to change the active adapter or a weight, on a model with 84 sites."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable

from bench.forward import attached
from bench.models import llama

LAYERS = 12
"""Of seven linear sites each: 84."""


def measure(rounds: int = 2000) -> dict[str, float]:
    """Median milliseconds of one change."""
    adapters = attached(llama(layers=LAYERS, width=96), 3)
    sites = len(adapters.plan("a0").sites)
    names, weights = itertools.cycle(adapters.names), itertools.cycle((0.3, 0.7))
    changes: dict[str, Callable[[], object]] = {
        f"change the active adapter, {sites} sites": lambda: adapters.activate(next(names)),
        f"change a weight, {sites} sites": lambda: adapters.set_weight("a0", next(weights)),
    }
    return {name: _median_ms(change, rounds) for name, change in changes.items()}


def _median_ms(change: Callable[[], object], rounds: int) -> float:
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        change()
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e3


if __name__ == "__main__":
    for name, value in measure().items():
        print(f"{value:8.4f} ms  {name}")
