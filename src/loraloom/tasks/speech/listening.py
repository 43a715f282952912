"""Recordings as a model hears them: cut into windows that it can take, kept in memory up to a budget."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from loraloom.data.recordings import Samples, read_recording

Array = NDArray[np.float32]

_SMOOTHED = 0.2  # seconds of quiet that make a good place to cut
_GRAIN = 0.02


class Window(NamedTuple):
    """A stretch of a recording, ready for the model."""

    inputs: Array
    """What the model takes: samples (T,), or a spectrogram (mel bands, T)."""
    offset: float
    """Where it begins in the recording, in seconds."""


def quiet_cuts(samples: Samples, rate: int, longest: int) -> list[tuple[int, int]]:
    """Cut samples (T,) into stretches (start, end) of at most `longest` samples, at the quietest places.

    Each cut lies in the second half of what could be taken, at the least energy over 0.2 s. Stretches follow
    on one another; a recording that is short enough is one.
    """
    cuts, start = [0], 0
    while len(samples) - start > longest:
        low = start + longest // 2
        start = low + _quietest(samples[low : start + longest], rate)
        cuts.append(start)
    cuts.append(len(samples))
    return list(pairwise(cuts))


def _quietest(samples: Samples, rate: int) -> int:
    """The middle of the stretch of least energy, as a number of samples, at least 1."""
    grain = max(1, round(_GRAIN * rate))
    whole = samples[: len(samples) // grain * grain].reshape(-1, grain)
    if not len(whole):
        return max(1, len(samples))
    width = min(len(whole), round(_SMOOTHED / _GRAIN))
    energy = np.convolve((whole.astype(np.float64) ** 2).mean(axis=1), np.ones(width), mode="valid")
    return max(1, round((int(energy.argmin()) + width / 2) * grain))


class Listener:
    """Reads recordings, and keeps what came of them for the next epoch."""

    def __init__(self, rate: int, longest: float, prepare: Callable[[Samples], Array], budget: int) -> None:
        """`longest` window in seconds; `prepare` turns samples into inputs; `budget` in bytes."""
        self.rate = rate
        self.longest = longest
        self._prepare = prepare
        self._budget = budget
        self._kept: OrderedDict[str, list[Window]] = OrderedDict()
        self.used = 0
        """Bytes in memory."""

    def windows(self, file: str) -> list[Window]:
        """The windows of one recording, in order. Raises DataError when it cannot be read."""
        if file in self._kept:
            self._kept.move_to_end(file)
            return self._kept[file]
        samples = read_recording(Path(file), self.rate).samples
        limit = max(1, int(self.longest * self.rate))
        windows = [
            Window(self._prepare(samples[start:end]), start / self.rate)
            for start, end in quiet_cuts(samples, self.rate, limit)
        ]
        self._keep(file, windows)
        return windows

    def _keep(self, file: str, windows: list[Window]) -> None:
        """Remember the windows unless they alone pass the budget; the longest unused make room."""
        size = _bytes(windows)
        if size > self._budget:
            return
        self._kept[file] = windows
        self.used += size
        while self.used > self._budget:
            self.used -= _bytes(self._kept.popitem(last=False)[1])


def _bytes(windows: list[Window]) -> int:
    return sum(window.inputs.nbytes for window in windows)
