"""How far one recording of a sentence is from another: mel-cepstral distortion with dynamic time warping.

Mel cepstra describe the shape of the spectrum on the ear's scale and leave its loudness out; warping lines
up two speakers who take their time differently. Nothing here needs a model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from loraloom.tasks.speech.mel import MelBank

Array = NDArray[np.floating]

ORDER = 13
"""Coefficients compared, c1 to c13; c0 is loudness."""
FLOOR_DB = 60.0
"""Bands weaker than the loudest one of the recording by more than this count as just so weak."""
_WINDOW, _HOP = 0.050, 0.0125
_TO_DECIBEL = 10.0 * math.sqrt(2.0) / math.log(10.0)


@lru_cache(maxsize=4)
def _bank(rate: int) -> MelBank:
    window = int(rate * _WINDOW)
    highest = min(7600.0, rate / 2)
    return MelBank(rate, window=window, hop=int(rate * _HOP), n_fft=1 << (window - 1).bit_length(), high=highest)


@lru_cache(maxsize=4)
def _cosines(order: int, bands: int) -> NDArray[np.float64]:
    """(order, bands): cos(π m (k + ½) / K) · 2 / K for m = 1 … order."""
    m, k = np.arange(1, order + 1)[:, None], np.arange(bands)[None, :]
    table: NDArray[np.float64] = np.cos(np.pi * m * (k + 0.5) / bands) * 2.0 / bands
    return table


def mel_cepstra(samples: Array, rate: int, *, order: int = ORDER) -> NDArray[np.float64]:
    """Mel cepstra c1 … c_order (T frames of 12.5 ms, order) of a recording (samples,).

    The log amplitude of K = 80 mel bands is taken as ln|S(ω)| = c0 + Σ c_m cos(mω), as in mel-cepstral
    analysis (Fukada et al. 1992), so that c_m = 2/K Σ_k ln S_k cos(π m (k + ½) / K). Bands are floored 60 dB
    below the loudest: what is under it is the room, and a recording keeps its cepstra at any volume.
    """
    mel = _bank(rate).amplitudes(torch.from_numpy(np.ascontiguousarray(samples, dtype=np.float32))).numpy()
    return cepstra_of(mel.astype(np.float64), order=order)


def cepstra_of(mel: Array, *, order: int = ORDER) -> NDArray[np.float64]:
    """Mel cepstra (T, order) of mel amplitudes (T, K); all zero where there is no sound at all."""
    loudest = float(mel.max(initial=0.0))
    if loudest <= 0.0:
        return np.zeros((len(mel), order))
    log = np.log(np.maximum(mel, loudest * 10.0 ** (-FLOOR_DB / 20.0)))
    found: NDArray[np.float64] = log @ _cosines(order, mel.shape[1]).T
    return found


def frame_distances(first: Array, second: Array) -> NDArray[np.float64]:
    """Distortion in dB of every frame (n, order) against every frame (m, order): (n, m).

    10√2/ln 10 · ‖Δc‖ (Kubichek 1993), which is the RMS difference of the two smoothed log spectra in dB.
    """
    squares = (first**2).sum(1)[:, None] + (second**2).sum(1)[None, :] - 2.0 * first @ second.T
    # The difference of like numbers leaves rounding of either sign where frames are the same.
    scale = (first**2).sum(1)[:, None] + (second**2).sum(1)[None, :]
    squares[squares < 1e-12 * scale] = 0.0
    return np.asarray(_TO_DECIBEL * np.sqrt(squares), dtype=np.float64)


def warp(costs: Array) -> tuple[float, int]:
    """Dynamic time warping (Sakoe & Chiba 1978) over costs (n, m): the least sum along a path, and its cells.

    Paths go from the first to the last cell in steps of (1, 1), (1, 0) and (0, 1), each cell counted once.
    Exact: all cells of an anti-diagonal, which do not depend on each other, are worked out at once. Of equal
    predecessors the diagonal is taken.
    """
    n, m = costs.shape
    if not n or not m:
        raise ValueError(f"a path needs frames on both sides, found {n} and {m}")
    # Entry i + 1 of a diagonal is its cell in row i; entry 0 lies outside, but for the start of all paths.
    empty = np.full(n + 1, np.inf)
    last, corner = (empty, np.zeros(n + 1)), (empty.copy(), np.zeros(n + 1))
    corner[0][0] = 0.0
    for diagonal in range(n + m - 1):
        low, high = max(0, diagonal - m + 1), min(n - 1, diagonal)
        rows = slice(low, high + 1)
        below = slice(low + 1, high + 2)
        total, cells = _nearest(corner, last, rows, below)
        index = np.arange(low, high + 1)
        now = (np.full(n + 1, np.inf), np.zeros(n + 1))
        now[0][below] = total + costs[index, diagonal - index]
        now[1][below] = cells + 1
        corner, last = last, now
    return float(last[0][n]), int(last[1][n])


_Diagonal = tuple[NDArray[np.float64], NDArray[np.float64]]


def _nearest(corner: _Diagonal, last: _Diagonal, rows: slice, below: slice) -> _Diagonal:
    """For each cell of a diagonal: the least total among its three predecessors, and that path's cells."""
    total, cells = corner[0][rows], corner[1][rows]
    for other, count in ((last[0][rows], last[1][rows]), (last[0][below], last[1][below])):
        better = other < total
        total, cells = np.where(better, other, total), np.where(better, count, cells)
    return total, cells


def cepstral_distortion(first: Array, second: Array) -> float:
    """Mel-cepstral distortion in dB between mel cepstra (n, order) and (m, order): the mean along the warp.

    The path is the one of the least sum; 0 for the same recording, some 4 to 8 dB between two readings of a
    sentence, more between voices.
    """
    total, cells = warp(frame_distances(first, second))
    return total / cells


def mean_interval(values: Sequence[float], *, resamples: int = 1000, seed: int = 0) -> tuple[float, float]:
    """95 % interval of a mean by the percentile bootstrap (Efron 1979), repeatable by its seed."""
    rows = np.asarray(values, dtype=np.float64)
    drawn = np.random.default_rng(seed).integers(0, len(rows), size=(resamples, len(rows)))
    low, high = np.quantile(rows[drawn].mean(axis=1), [0.025, 0.975])
    return float(low), float(high)
