"""From a mel spectrogram back to a waveform: HiFi-GAN where one is named, Griffin-Lim otherwise."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import SpeechT5HifiGan

from loraloom.errors import BaseModelError
from loraloom.tasks.models.bases import resolve_base
from loraloom.tasks.models.loading import load_part
from loraloom.tasks.speech.mel import MelBank

ROUNDS = 32
"""Rounds of Griffin-Lim."""
_MOMENTUM = 0.99
_REFINEMENTS = 40
_TINY = 1e-10


def linear_from_mel(mel: Tensor, bank: MelBank) -> Tensor:
    """Amplitudes (T, n_fft // 2 + 1), none negative, whose mel amplitudes are near `mel` (T, bands).

    Starts at the filters' pseudo-inverse and goes on with multiplicative updates of non-negative least
    squares (Lee & Seung 2001, eq. 4), each of which comes nearer. Frequencies that no band reads stay 0.
    """
    filters = bank.filters.to(mel)
    read = filters.sum(1) > 0
    wanted = mel @ filters.T
    found = (mel @ torch.linalg.pinv(filters)).clamp(min=0.0)
    # What is exactly 0 would stay so.
    found = torch.where(read, found.clamp(min=_TINY), torch.zeros_like(found))
    for _ in range(_REFINEMENTS):
        found = found * (wanted / ((found @ filters) @ filters.T).clamp(min=_TINY))
    return found


def griffin_lim(amplitudes: Tensor, bank: MelBank, *, rounds: int = ROUNDS, seed: int = 0) -> Tensor:
    """A signal ((T - 1) · hop,) whose short-time spectrum has nearly these amplitudes (T, n_fft // 2 + 1).

    Phases start at random, by `seed`, and are made consistent with each other round by round (Griffin & Lim
    1984), with momentum (Perraudin et al. 2013). Same input and seed, same bytes.
    """
    wanted = max(0, len(amplitudes) - 1) * bank.hop
    # A signal shorter than half a window has no spectrum: silence follows what is too short.
    least = bank.n_fft // (2 * bank.hop) + 2
    amplitudes = functional.pad(amplitudes, (0, 0, 0, max(0, least - len(amplitudes))))
    generator = torch.Generator().manual_seed(seed)
    spectrum = amplitudes.float().T[None]
    phases = torch.rand(spectrum.shape, generator=generator) * 2 * math.pi
    angles = torch.polar(torch.ones_like(phases), phases).to(spectrum.device)
    window = bank.hann.to(spectrum)
    before = torch.zeros_like(angles)
    length = (len(amplitudes) - 1) * bank.hop
    for _ in range(rounds):
        now = _spectrum(_signal(spectrum * angles, bank, window, length), bank, window)
        angles = now + _MOMENTUM * (now - before)
        angles = angles / angles.abs().clamp(min=1e-16)
        before = now
    return _signal(spectrum * angles, bank, window, length)[0, :wanted]


def _signal(spectrum: Tensor, bank: MelBank, window: Tensor, length: int) -> Tensor:
    return torch.istft(spectrum, bank.n_fft, bank.hop, window=window, center=True, length=length)


def _spectrum(signal: Tensor, bank: MelBank, window: Tensor) -> Tensor:
    return torch.stft(signal, bank.n_fft, bank.hop, window=window, center=True, return_complex=True)


class GriffinLim:
    """Speaks log10 mel amplitudes (T, bands) as a waveform, with no learnt part."""

    def __init__(self, bank: MelBank) -> None:
        self._bank = bank

    def __call__(self, log_mel: Tensor) -> Tensor:
        """(T, bands) → (samples,), float32 on the CPU; of fewer than two frames, nothing."""
        # 10² is far above any amplitude of a recording at full scale; a bad model must not overflow.
        mel = torch.pow(10.0, log_mel.float().cpu().clamp(max=2.0))
        with torch.autocast("cpu", enabled=False):
            return griffin_lim(linear_from_mel(mel, self._bank), self._bank)


class HifiGan:
    """Speaks log10 mel amplitudes (T, bands) through a trained SpeechT5HifiGan."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model.eval().requires_grad_(False)

    def __call__(self, log_mel: Tensor) -> Tensor:
        """(T, bands) → (samples,), float32 on the CPU."""
        self._model.to(log_mel.device)
        waveform: Tensor = self._model(log_mel.float())
        return waveform.float().cpu()


def load_vocoder(name: str, bank: MelBank) -> HifiGan:
    """The HiFi-GAN of a folder or name. Raises BaseModelError when it is none, or is for other spectrograms."""
    base = resolve_base(name)
    model = load_part(SpeechT5HifiGan, base, "vocoder", use_safetensors=True, dtype=torch.float32)
    bands, hop = model.config.model_in_dim, math.prod(model.config.upsample_rates)
    rate = getattr(model.config, "sampling_rate", bank.rate)
    if (bands, hop, rate) != (bank.bands, bank.hop, bank.rate):
        raise BaseModelError(
            f"vocoder {name!r} makes {hop} samples at {rate} Hz of a frame of {bands} mel bands; the base model's "
            f"spectrograms have {bank.bands} bands, {bank.hop} samples a frame at {bank.rate} Hz"
        )
    return HifiGan(model)
