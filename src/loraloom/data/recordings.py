"""Recordings: what a sound file holds, and its samples at the rate that a model was made for.

    probe_recording → seconds, rate, channels, loudness     read_recording → float32 samples (T,)

Every fault is told by the file's name. Samples are fractions of full scale, ±1.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import gcd
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.signal import firwin, resample_poly

from loraloom.data.files import Media
from loraloom.errors import DataError, MissingExtraError

Samples = NDArray[np.float32]

SILENT_BELOW = 1e-4
"""Standard deviation of the samples, as a share of full scale (−80 dB), below which nothing is heard."""

CLIPPED_FROM = 1e-3
"""Share of clipped samples from which a recording is called clipped."""

_FULL_SCALE = 0.99  # eight-bit files end at 127/128
_FLAT = 3  # equal samples in a row at full scale: a wave that was cut off, not one that touches its peak
_SUFFIXES = (".wav", ".flac", ".ogg", ".mp3")
_UNKNOWN_SIZES = (0, 0xFFFFFFFF)  # written by programs that stream and cannot go back to the header


@dataclass(frozen=True)
class Recording:
    """Samples of one recording, mixed down to one channel."""

    samples: Samples
    """float32 (T,), fractions of full scale; an offset from zero is left as it is."""
    rate: int
    """Samples per second."""
    facts: Mapping[str, Any]
    """What `probe_recording` tells of the file, before it was mixed down and resampled."""

    @property
    def seconds(self) -> float:
        """Length in seconds."""
        return len(self.samples) / self.rate


def probe_recording(path: Path) -> dict[str, Any]:
    """What a file holds, told from all of its samples: a file that this takes can be read.

    "seconds", "rate" (Hz) and "channels" of the file; "peak" of its loudest channel and "rms" of all
    channels mixed, as shares of full scale; "clipped", the share of samples that lie flat at full scale;
    "silent", whether the mix varies by less than SILENT_BELOW. Raises DataError naming the file and what
    is wrong: missing, empty, no recording, cut off, without samples, or with samples that are no numbers.
    Raises MissingExtraError without the soundfile library.
    """
    channels, rate = _decode(path)
    return _facts(channels, rate)


def read_recording(path: Path | str, rate: int | None = None) -> Recording:
    """The samples of a file, its channels mixed to one and resampled to `rate` (Hz; None: the file's own).

    Raises as `probe_recording` does.
    """
    channels, own_rate = _decode(Path(path))
    mixed = channels.mean(axis=1, dtype=np.float32)
    target = rate or own_rate
    return Recording(resample(mixed, own_rate, target), target, _facts(channels, own_rate))


def resample(samples: Samples, rate: int, target: int) -> Samples:
    """Samples (T,) at `rate` as float32 (⌈T · target / rate⌉,) at `target`, both in Hz.

    A polyphase filter (Kaiser window, β = 10, 64 zero crossings) leaves what lies below 0.9 of the lower
    Nyquist frequency as it is, to 0.01 dB, and takes away what lies above 1.0 of it, by 90 dB.
    """
    if rate == target:
        return samples
    common = gcd(rate, target)
    up, down = target // common, rate // common
    # "line": the level at both ends goes on beyond them, so that an offset makes no click there
    resampled = resample_poly(samples, up, down, window=_low_pass(max(up, down)), padtype="line")
    return np.ascontiguousarray(resampled, dtype=np.float32)


@lru_cache(maxsize=16)
def _low_pass(factor: int) -> NDArray[np.float64]:
    """Coefficients (128 · factor + 1,) that pass what lies below 0.95 / factor of the Nyquist frequency."""
    return np.asarray(firwin(128 * factor + 1, 0.95 / factor, window=("kaiser", 10.0)))


def _decode(path: Path) -> tuple[Samples, int]:
    """All samples of a file (T, channels) and its rate. Raises DataError."""
    soundfile = _soundfile()
    _check_file(path)
    try:
        with soundfile.SoundFile(path) as file:
            stated, rate = file.frames, file.samplerate
            samples = file.read(dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, OSError, ValueError, MemoryError) as error:
        raise DataError(f"{path} is no recording that can be read ({_reason(error)}); expected {_expected()}") from None
    _check_samples(path, samples, stated)
    return samples, rate


def _check_file(path: Path) -> None:
    """Refuse what the library would take, or would tell of in its own words."""
    if not path.exists():
        raise DataError(f"{path} does not exist")
    if not path.is_file():
        raise DataError(f"{path} is no file; expected a recording: {_expected()}")
    try:
        size = path.stat().st_size
        missing = _missing_bytes(path, size) if size else 0
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    if not size:
        raise DataError(f"{path} is empty (zero bytes); expected a recording: {_expected()}")
    if missing:
        raise DataError(f"{path} is cut off: {missing} of the bytes of sound that its header states are missing")


def _missing_bytes(path: Path, size: int) -> int:
    """How many bytes of a WAV file's sound are not there; the library reads such a file without a word."""
    with path.open("rb") as file:
        head = file.read(12)
        if len(head) < 12 or head[:4] != b"RIFF" or head[8:] != b"WAVE":
            return 0
        while len(chunk := file.read(8)) == 8:
            name, length = chunk[:4], struct.unpack("<I", chunk[4:])[0]
            if name == b"data":
                return 0 if length in _UNKNOWN_SIZES else max(0, length - (size - file.tell()))
            file.seek(length + length % 2, 1)
    return 0


def _check_samples(path: Path, samples: Samples, stated: int) -> None:
    """Refuse a recording without samples, with fewer than stated, or with some that are no numbers."""
    if not len(samples):
        raise DataError(f"{path} holds no samples; expected a recording that lasts")
    if 0 < len(samples) < stated < 2**62:  # a stream whose length is not known states a very large one
        raise DataError(f"{path} is cut off: {len(samples)} of the {stated} samples that it states can be read")
    finite = np.isfinite(samples)
    if not finite.all():
        first = int(np.flatnonzero(~finite.all(axis=1))[0])
        raise DataError(f"{path} holds {int((~finite).sum())} samples that are no numbers, the first at sample {first}")


def _facts(channels: Samples, rate: int) -> dict[str, Any]:
    """Facts of samples (T, channels)."""
    mixed = channels.mean(axis=1, dtype=np.float64)
    return {
        "seconds": len(channels) / rate,
        "rate": rate,
        "channels": channels.shape[1],
        "peak": float(np.abs(channels).max()),
        "rms": float(np.sqrt(np.mean(mixed**2))),
        "clipped": max(_clipped(channel) for channel in channels.T),
        "silent": bool(mixed.std() < SILENT_BELOW),
    }


def _clipped(samples: Samples) -> float:
    """The share of samples (T,) in runs of `_FLAT` or more equal ones at full scale."""
    loud = np.abs(samples) >= _FULL_SCALE
    if loud.sum() < _FLAT:
        return 0.0
    same = loud[1:] & (samples[1:] == samples[:-1])
    edges = np.flatnonzero(np.diff(np.concatenate(([False], same, [False])).astype(np.int8)))
    runs = edges[1::2] - edges[::2] + 1
    return float(runs[runs >= _FLAT].sum() / len(samples))


def _soundfile() -> Any:
    """The soundfile library, which brings libsndfile."""
    try:
        import soundfile
    except (ImportError, OSError) as error:
        raise MissingExtraError('recordings are read by soundfile; pip install "loraloom[speech]"') from error
    return soundfile


def _reason(error: Exception) -> str:
    """What the library says, without the file's name, which the sentence has already."""
    said = str(getattr(error, "error_string", "") or error).strip() or type(error).__name__
    return said.splitlines()[0].rstrip(".")


def _expected() -> str:
    return f"{', '.join(_SUFFIXES[:-1])} or {_SUFFIXES[-1]}"


RECORDINGS = Media(
    kind="recording",
    suffixes=frozenset(_SUFFIXES),
    candidates=("file", "file_name", "audio", "path", "audio_path", "audio_file", "wav", "filename", "recording"),
    probe=probe_recording,
)
