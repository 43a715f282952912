"""Distances between recordings: exact warping, and a distortion that means what its formula says."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.signal import resample

from loraloom.tasks.speech.cepstral import (
    cepstra_of,
    cepstral_distortion,
    frame_distances,
    mean_interval,
    mel_cepstra,
    warp,
)

Array = NDArray[np.floating]
RATE = 16_000


def plain_warp(costs: Array) -> tuple[float, int]:
    """The recurrence as it stands in the books, cell by cell."""
    n, m = costs.shape
    total, cells = np.full((n + 1, m + 1), np.inf), np.zeros((n + 1, m + 1), dtype=int)
    total[0, 0] = 0.0
    for i in range(n):
        for j in range(m):
            before = [
                (total[i, j], cells[i, j]),
                (total[i, j + 1], cells[i, j + 1]),
                (total[i + 1, j], cells[i + 1, j]),
            ]
            best = min(before, key=lambda pair: pair[0])
            total[i + 1, j + 1], cells[i + 1, j + 1] = best[0] + costs[i, j], best[1] + 1
    return float(total[n, m]), int(cells[n, m])


def talk(pitch: float, formants: tuple[float, ...], *, seconds: float = 1.0, seed: int = 0) -> NDArray[np.float32]:
    """Four sounds after each other, a buzz through formants that move."""
    times = np.arange(int(RATE * seconds)) / RATE
    steps = 1.0 + 0.25 * np.floor(4 * times / seconds)
    waves = []
    for number in range(1, int(6000 / pitch)):
        loudness = sum(np.exp(-(((number * pitch - formant * steps) / 150) ** 2)) for formant in formants)
        waves.append(loudness * np.sin(2 * np.pi * number * pitch * times + number))
    noise = np.random.default_rng(seed).normal(0, 1e-4, len(times))
    return (0.05 * np.sum(waves, axis=0) + noise).astype(np.float32)


@pytest.mark.parametrize("shape", [(1, 1), (1, 6), (6, 1), (5, 5), (9, 4), (4, 9), (23, 31)])
def test_warping_is_that_of_the_double_loop(shape: tuple[int, int]) -> None:
    costs = np.random.default_rng(sum(shape)).random(shape)
    total, cells = warp(costs)
    expected = plain_warp(costs)
    assert total == pytest.approx(expected[0], rel=1e-12)
    assert cells == expected[1]


def test_warping_of_equal_costs_takes_the_diagonal() -> None:
    assert warp(np.ones((7, 7))) == (7.0, 7)
    assert warp(np.zeros((3, 8))) == plain_warp(np.zeros((3, 8)))


def test_warping_needs_frames() -> None:
    with pytest.raises(ValueError, match="0 and 3"):
        warp(np.zeros((0, 3)))


def test_a_ripple_of_one_cepstrum_counts_in_decibels() -> None:
    """Two spectra that differ by A · cos(3ω) dB differ by A / √2 dB in the root mean square."""
    bands = (np.arange(80) + 0.5) / 80
    flat = np.ones((1, 80))
    ripple = 10.0 ** (6.0 * np.cos(3 * math.pi * bands) / 20.0)
    distance = frame_distances(cepstra_of(flat), cepstra_of(ripple[None]))
    assert distance[0, 0] == pytest.approx(6.0 / math.sqrt(2.0), rel=1e-9)


def test_cepstra_beyond_the_order_do_not_count() -> None:
    bands = (np.arange(80) + 0.5) / 80
    fine = 10.0 ** (6.0 * np.cos(20 * math.pi * bands) / 20.0)
    assert np.abs(cepstra_of(fine[None])).max() < 1e-9


def test_a_recording_is_nowhere_from_itself_at_any_volume() -> None:
    spoken = talk(120, (500, 1500))
    cepstra = mel_cepstra(spoken, RATE)
    assert cepstra.shape == (81, 13)
    assert cepstral_distortion(cepstra, cepstra) == 0.0
    assert cepstral_distortion(cepstra, mel_cepstra(spoken * 0.1, RATE)) < 1e-4


def test_a_slower_reading_is_near_and_another_voice_far() -> None:
    spoken = talk(120, (500, 1500))
    slower = talk(120, (500, 1500), seconds=1.3, seed=1)
    other = talk(190, (800, 2300), seed=2)
    own = mel_cepstra(spoken, RATE)
    near = cepstral_distortion(own, mel_cepstra(slower, RATE))
    far = cepstral_distortion(own, mel_cepstra(other, RATE))
    assert near < 0.5 and far > 4.0


def test_without_warping_the_slower_reading_would_be_far() -> None:
    """So that the test above shows the warping at work."""
    own = mel_cepstra(talk(120, (500, 1500)), RATE)
    slower = mel_cepstra(talk(120, (500, 1500), seconds=1.3, seed=1), RATE)
    straight = np.diagonal(frame_distances(own, slower[: len(own)])).mean()
    assert straight > 1.5 * cepstral_distortion(own, slower)


def test_silence_has_cepstra_of_zero() -> None:
    assert not mel_cepstra(np.zeros(RATE // 2, dtype=np.float32), RATE).any()
    assert np.isfinite(mel_cepstra(np.full(10, 0.1, dtype=np.float32), RATE)).all()


def test_the_same_sound_at_two_rates_is_near() -> None:
    spoken = talk(120, (500, 1500))
    finer = resample(spoken, len(spoken) * 22_050 // RATE).astype(np.float32)
    assert cepstral_distortion(mel_cepstra(spoken, RATE), mel_cepstra(finer, 22_050)) < 1.5


def test_the_interval_of_a_mean_holds_it_and_is_repeatable() -> None:
    values = [5.0, 6.0, 7.0, 8.5, 4.5]
    low, high = mean_interval(values)
    assert low < np.mean(values) < high
    assert (low, high) == mean_interval(values)
    assert mean_interval([3.0]) == (3.0, 3.0)
