"""A recording as training and scoring take it, and a waveform as a user gets it."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loraloom.data.recordings import SILENT_BELOW, read_recording
from loraloom.errors import DataError, MissingExtraError, OutputError

Samples = NDArray[np.float32]

PEAK = 0.99
"""Largest sample that is written to a file, as a share of full scale."""
_QUIET_DB, _FRAME, _MARGIN = 40.0, 0.020, 0.050
_NORMAL_PEAK = 0.95
_CACHED = 256 << 20


@dataclass(frozen=True)
class Take:
    """How recordings are taken: the same for training, for held-out ones, and later runs."""

    rate: int
    """Samples per second."""
    trim: bool = True
    """Cut the silence at both ends."""
    normalise: bool = False
    """Bring the loudest sample to 0.95 of full scale."""


class Shelf:
    """Recordings by path and take, the last ones used being kept, up to 256 MiB."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[str, Take], Samples] = OrderedDict()
        self._size = 0

    def read(self, path: str, take: Take) -> Samples:
        """Samples (T,). Raises DataError, naming the file, when it cannot be read or nothing is heard."""
        key = (path, take)
        if key not in self._kept:
            found = read_take(path, take)
            self._kept[key] = found
            self._size += found.nbytes
            while self._size > _CACHED and len(self._kept) > 1:
                self._size -= self._kept.popitem(last=False)[1].nbytes
        self._kept.move_to_end(key)
        return self._kept[key]


def read_take(path: str, take: Take) -> Samples:
    """The samples (T,) of a file, resampled, trimmed and levelled as `take` says. Raises DataError."""
    samples = read_recording(path, take.rate).samples
    if samples.std() < SILENT_BELOW:
        raise DataError(f"{path} is silent: nothing can be learnt of a voice there")
    if take.trim:
        samples = trim_silence(samples, take.rate)
    if take.normalise:
        samples = samples * np.float32(_NORMAL_PEAK / np.abs(samples).max())
    return np.ascontiguousarray(samples, dtype=np.float32)


def trim_silence(samples: Samples, rate: int) -> Samples:
    """Samples without what lies before the first and after the last sound, but for 50 ms on either side.

    Sound is a frame of 20 ms within 40 dB of the loudest one; samples in which there is none come back whole.
    """
    size = max(1, int(rate * _FRAME))
    frames = -(-len(samples) // size)
    padded = np.zeros(frames * size, dtype=np.float64)
    padded[: len(samples)] = samples
    power = (padded.reshape(frames, size) ** 2).mean(1)
    heard = np.flatnonzero(power > max(power.max() * 10.0 ** (-_QUIET_DB / 10.0), 1e-20))
    if not len(heard):
        return samples
    margin = int(rate * _MARGIN)
    return samples[max(0, heard[0] * size - margin) : (heard[-1] + 1) * size + margin]


def guard_peak(samples: Samples) -> Samples:
    """Samples turned down as a whole, if need be, so that none is above 0.99 of full scale."""
    peak = float(np.abs(samples).max(initial=0.0))
    return samples if peak <= PEAK else (samples * np.float32(PEAK / peak)).astype(np.float32)


def write_wav(path: Path, samples: Samples, rate: int) -> Path:
    """Write samples (T,) as a 16-bit WAV file that does not clip. Raises OutputError, MissingExtraError."""
    soundfile = _soundfile()
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    try:
        soundfile.write(part, guard_peak(samples), rate, subtype="PCM_16", format="WAV")
        part.replace(path)
    except (OSError, soundfile.SoundFileError) as error:
        part.unlink(missing_ok=True)
        raise OutputError(f"{path} cannot be written ({error})") from error
    return path


def _soundfile() -> Any:
    try:
        import soundfile
    except (ImportError, OSError) as error:
        raise MissingExtraError('recordings are written by soundfile; pip install "loraloom[speech]"') from error
    return soundfile
