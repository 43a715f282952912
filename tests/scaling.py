"""How long work takes as it grows. No machine is promised a number of seconds; growth tells good code from bad."""

from __future__ import annotations

import time
from collections.abc import Callable

NOISE_S = 0.05
"""Below this, what is measured is the machine."""


def seconds_of(work: Callable[[], object]) -> float:
    """Processor time of the faster of two runs."""
    found = []
    for _ in range(2):
        start = time.process_time()
        work()
        found.append(time.process_time() - start)
    return min(found)


def grows_about_linearly(few: Callable[[], object], many: Callable[[], object], times: float) -> bool:
    """Whether `many`, which is `times` as much work as `few`, takes well under the square of that."""
    return seconds_of(many) < max(NOISE_S, seconds_of(few)) * times**1.7
