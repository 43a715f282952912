"""Mel spectrograms: how loud each band of the ear's scale is in each frame of a recording."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional
from transformers import SpeechT5FeatureExtractor
from transformers.audio_utils import mel_filter_bank, optimal_fft_length

from loraloom.errors import ConfigError


@dataclass(frozen=True)
class MelBank:
    """A short-time Fourier transform with Hann windows, and triangular mel filters of unit area (Slaney).

    Frames are centred on multiples of `hop`, the signal being reflected at its ends: N samples have
    1 + N // hop frames.
    """

    rate: int
    """Samples per second."""
    window: int
    """Samples under one window."""
    hop: int
    """Samples from one frame to the next."""
    n_fft: int
    """Size of the transform, at least `window`."""
    bands: int = 80
    low: float = 80.0
    """Lowest frequency of the first band, Hz."""
    high: float = 7600.0
    """Highest frequency of the last band, Hz."""
    floor: float = 1e-10
    """Amplitudes below count as this one in logarithms."""

    def __post_init__(self) -> None:
        if not 0 < self.hop <= self.window <= self.n_fft or not 0 <= self.low < self.high <= self.rate / 2:
            raise ConfigError(
                f"mel spectrogram: expected 0 < hop <= window <= n_fft and 0 <= low < high <= {self.rate / 2:g} Hz, "
                f"found {self.hop}, {self.window}, {self.n_fft} and {self.low:g}, {self.high:g}"
            )

    @classmethod
    def of(cls, extractor: SpeechT5FeatureExtractor) -> MelBank:
        """The bank that a feature extractor's target spectrograms are made with."""
        rate = extractor.sampling_rate
        window = extractor.win_length * rate // 1000
        return cls(
            rate,
            window=window,
            hop=extractor.hop_length * rate // 1000,
            n_fft=optimal_fft_length(window),
            bands=extractor.num_mel_bins,
            low=float(extractor.fmin),
            high=float(extractor.fmax),
            floor=float(extractor.mel_floor),
        )

    @cached_property
    def filters(self) -> Tensor:
        """(n_fft // 2 + 1, bands), float32."""
        found = mel_filter_bank(
            num_frequency_bins=self.n_fft // 2 + 1,
            num_mel_filters=self.bands,
            min_frequency=self.low,
            max_frequency=self.high,
            sampling_rate=self.rate,
            norm="slaney",
            mel_scale="slaney",
        )
        return torch.from_numpy(found).float()

    @cached_property
    def hann(self) -> Tensor:
        """(n_fft,): the window, zero at both sides where the transform is larger."""
        return _centred(torch.hann_window(self.window, periodic=True), self.n_fft)

    def frames(self, samples: int) -> int:
        """How many frames a recording of so many samples has."""
        return 1 + samples // self.hop

    def linear(self, samples: Tensor) -> Tensor:
        """Amplitudes (…, T, n_fft // 2 + 1) of a signal (…, N), on its device."""
        half = self.n_fft // 2
        flat = samples.reshape(-1, samples.shape[-1])
        # What is shorter than half a window cannot be reflected that far; silence follows it.
        flat = functional.pad(flat, (0, max(0, half + 1 - flat.shape[-1])))
        window = self.hann.to(samples)
        found = torch.stft(flat, self.n_fft, self.hop, window=window, center=True, return_complex=True).abs()
        found = found.transpose(-1, -2)[:, : self.frames(samples.shape[-1])]
        return found.reshape(*samples.shape[:-1], *found.shape[1:])

    def amplitudes(self, samples: Tensor) -> Tensor:
        """Mel amplitudes (…, T, bands) of a signal (…, N), exact also where a run computes in bf16."""
        with torch.autocast(samples.device.type, enabled=False):
            return self.linear(samples) @ self.filters.to(samples)

    def log10(self, samples: Tensor) -> Tensor:
        """log10 of the mel amplitudes (…, T, bands), which SpeechT5 speaks in."""
        return self.amplitudes(samples).clamp(min=self.floor).log10()


def _centred(window: Tensor, size: int) -> Tensor:
    left = (size - len(window)) // 2
    return functional.pad(window, (left, size - len(window) - left))
