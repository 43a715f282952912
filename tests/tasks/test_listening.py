"""Long recordings are cut where it is quiet."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from loraloom.tasks.speech.listening import quiet_cuts

RATE = 1000


def test_cuts_fall_into_the_pauses_and_lose_nothing() -> None:
    generator = np.random.default_rng(0)
    wave = generator.normal(0, 0.3, 60 * RATE).astype(np.float32)
    for pause in (8, 17, 25, 33, 42, 51):
        wave[pause * RATE : pause * RATE + 400] *= 0.01
    cuts = quiet_cuts(wave, RATE, 10 * RATE)
    assert cuts[0][0] == 0 and cuts[-1][1] == len(wave)
    assert all(first[1] == second[0] for first, second in pairwise(cuts))
    assert all(0 < end - start <= 10 * RATE for start, end in cuts)
    quiet = [end for _, end in cuts[:-1] if np.abs(wave[end - 50 : end + 50]).max() < 0.05]
    assert len(quiet) == len(cuts) - 1


def test_what_fits_is_left_whole() -> None:
    wave = np.ones(500, dtype=np.float32)
    assert quiet_cuts(wave, RATE, 500) == [(0, 500)]
    assert quiet_cuts(wave[:0], RATE, 500) == [(0, 0)]


def test_even_sound_and_tiny_windows_are_cut() -> None:
    wave = np.ones(5000, dtype=np.float32)
    for longest in (1, 7, 130, 999):
        cuts = quiet_cuts(wave, RATE, longest)
        assert max(end - start for start, end in cuts) <= longest
        assert sum(end - start for start, end in cuts) == 5000
