"""How near what a model says is to how it was said, how loud it is, and how long it took."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loraloom.errors import DataError
from loraloom.tasks.speech.cepstral import cepstral_distortion, mean_interval, mel_cepstra
from loraloom.tasks.speech.sound import Samples, Shelf, Take

SILENT_BELOW = 1e-3
"""Standard deviation of the samples, as a share of full scale (−60 dB), below which a sentence counts as silent."""
FULL_SCALE = 0.999
"""Samples from which on count as cut off: a file of whole numbers could not hold more."""
CLIPPED_FROM = 1e-3
"""Share of such samples from which a sentence counts as clipped."""


@dataclass(frozen=True)
class Speech:
    """A sentence as a model said it."""

    samples: Samples
    """float32 (T,), shares of full scale, as they came: nothing turned down yet."""
    rate: int
    """Samples per second."""
    computing: float
    """Seconds that it took."""
    mel_l1: float | None = None
    """Mean |Δ log10 mel| given the recording's own past; None where there was no recording."""

    @property
    def seconds(self) -> float:
        """Length in seconds."""
        return len(self.samples) / self.rate

    @property
    def peak(self) -> float:
        """Largest sample."""
        return float(np.abs(self.samples).max(initial=0.0))

    @property
    def rms(self) -> float:
        """Root mean square of the samples, 0 of none."""
        return float(np.sqrt(np.mean(self.samples.astype(np.float64) ** 2))) if len(self.samples) else 0.0

    @property
    def is_silent(self) -> bool:
        """Whether nothing is heard: a level that stays is no sound, however high."""
        return not len(self.samples) or float(self.samples.std(dtype=np.float64)) < SILENT_BELOW

    @property
    def is_clipped(self) -> bool:
        """Whether more than one sample in a thousand lies at full scale or above."""
        return bool(len(self.samples)) and float((np.abs(self.samples) >= FULL_SCALE).mean()) > CLIPPED_FROM

    @property
    def real_time_factor(self) -> float:
        """Seconds of computing per second of sound; of no sound, the seconds."""
        return self.computing / self.seconds if self.seconds else self.computing


@dataclass(frozen=True)
class Reference:
    """The recording that a sentence is scored against."""

    file: str
    take: Take


def describe_speech(speech: Speech) -> Mapping[str, Any]:
    """A sentence as plain data, rounded to what can be heard."""
    return {
        "seconds": round(speech.seconds, 3),
        "peak": round(speech.peak, 4),
        "rms": round(speech.rms, 5),
        "real_time_factor": round(speech.real_time_factor, 3),
    }


def score_speech(predictions: Sequence[Speech], references: Sequence[Reference], shelf: Shelf) -> dict[str, float]:
    """What the predictions are worth, mean over the sentences. Raises DataError when there is nothing to score.

    "mcd", in dB, is the mel-cepstral distortion to the recordings after time warping, with its 95 % interval
    (bootstrap over sentences) as "mcd_low" and "mcd_high"; "mel_l1" the step-by-step distance in log10 mel;
    "seconds_ratio" the length of all that was said over that of the recordings; "real_time_factor" seconds of
    computing per second of sound, measured, and so the one score that differs from run to run; "silent" and
    "clipped" how many sentences are (before the peak is guarded); "n" the sentences.
    """
    if not references:
        raise DataError("evaluation: there are no examples to score")
    distances = [
        distortion(speech, reference, shelf) for speech, reference in zip(predictions, references, strict=True)
    ]
    low, high = mean_interval(distances)
    sound = sum(speech.seconds for speech in predictions)
    real = sum(len(shelf.read(one.file, one.take)) / one.take.rate for one in references)
    scores = {
        "mcd": float(np.mean(distances)),
        "mcd_low": low,
        "mcd_high": high,
        "seconds_ratio": sound / real,
        "real_time_factor": sum(speech.computing for speech in predictions) / max(sound, 1e-9),
        "silent": float(sum(speech.is_silent for speech in predictions)),
        "clipped": float(sum(speech.is_clipped for speech in predictions)),
        "n": float(len(references)),
    }
    near = [speech.mel_l1 for speech in predictions if speech.mel_l1 is not None]
    return {**scores, "mel_l1": float(np.mean(near))} if near else scores


def distortion(speech: Speech, reference: Reference, shelf: Shelf) -> float:
    """Mel-cepstral distortion in dB of one sentence; of no sound at all, that of one silent frame."""
    heard = mel_cepstra(speech.samples, speech.rate) if len(speech.samples) else np.zeros((1, 13))
    return cepstral_distortion(heard, _recorded(reference, shelf))


def _recorded(reference: Reference, shelf: Shelf) -> NDArray[np.float64]:
    return _cached_cepstra(reference, shelf)


@lru_cache(maxsize=4096)
def _cached_cepstra(reference: Reference, shelf: Shelf) -> NDArray[np.float64]:
    """Held-out recordings are compared with at every evaluation."""
    return mel_cepstra(shelf.read(reference.file, reference.take), reference.take.rate)
