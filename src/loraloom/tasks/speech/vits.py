"""VITS and MMS-TTS (Kim et al. 2021): text to a waveform at once, through latents that a recording also gives.

transformers runs the model but does not train it, so the loss is here, from the paper:

    linear spectrogram ─ posterior encoder → z ─ decoder → waveform of a slice      45 · L1 of its mel spectrogram
                                             z ─ flow → z_p ── alignment search ──  KL to the text's prior
                                                                 ↓ durations        duration predictor's likelihood

What the paper adds is not: the discriminators and their adversarial and feature-matching losses. Without them
a decoder sounds duller than one that was trained against them; a pretrained one keeps much of its own.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModelForTextToWaveform, VitsConfig, VitsTokenizer

from loraloom.errors import BaseModelError
from loraloom.tasks.base import Batch
from loraloom.tasks.models.bases import ResolvedBase
from loraloom.tasks.models.loading import LoadedModel, check_backbone, has_tokenizer, load_model, load_tokenizer
from loraloom.tasks.speech.alignment import align
from loraloom.tasks.speech.mel import MelBank
from loraloom.tasks.speech.speakers import Speakers
from loraloom.tasks.speech.voice import ALPHABET, Limits, Processor, Sentence, one_speaker, own_draws, pad_tokens

MEL_WEIGHT = 45.0
"""Weight of the mel loss (Kim et al. 2021, §3.2)."""
_LOG_FLOOR = 1e-5
_LONGEST_TOKEN = 10.0


class Vits:
    """The family "vits"; see `loraloom.tasks.speech.voice.Family`."""

    def batch(self, sentences: Sequence[Sentence], model: Any, processor: Processor, speakers: Speakers) -> Batch:
        """input_ids and attention_mask (B, T), speaker_id (B,) of models with several; samples (B, F · hop) and
        frames (B,) if all were said."""
        batch = pad_tokens(sentences, model.config.pad_token_id or 0)
        if one_speaker(model, speakers) is not None:
            batch["speaker_id"] = torch.tensor([speakers.number(one.speaker) for one in sentences])
        said = [one.samples for one in sentences if one.samples is not None]
        if len(said) == len(sentences):
            hop = processor.bank.hop
            batch["frames"] = torch.tensor([len(samples) // hop for samples in said])
            whole = [samples[: len(samples) // hop * hop] for samples in said]
            batch["samples"] = nn.utils.rnn.pad_sequence(whole, batch_first=True)
        return batch

    def fault(self, tokens: int, samples: int | None, model: Any, processor: Processor) -> str | None:
        """Fewer frames than tokens: no alignment gives each token one."""
        frames = tokens if samples is None else samples // processor.bank.hop
        if frames < tokens:
            return f"its recording has {frames} frames, too few for the {tokens} tokens of its text"
        return None

    def loss(self, model: nn.Module, batch: Batch, segment: int) -> tuple[Tensor, int]:
        """Sum over the sentences of 45 · mel + KL + duration, each a mean over its own frames or tokens; and B."""
        with _exactly(batch):
            said = _Said(model, batch)
            means, log_deviations, durations = _expand(said, batch)
            kl = _divergence(said, means, log_deviations)
            length = _duration_loss(model, said, durations)
            mel = _slice_loss(model, said, batch, segment)
            return (MEL_WEIGHT * mel + kl + length).sum(), len(batch["input_ids"])

    @torch.no_grad()
    def outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        """(B, N): the text's prior, log-durations, and of recordings the flow's latents and the waveform."""
        device = batch["input_ids"].device
        with own_draws(device), _exactly(batch):
            text = _Text(model, batch)
            parts = [text.means, text.log_deviations, _log_durations(model, text)]
        if "samples" in batch:
            with own_draws(device), _exactly(batch):
                said = _Said(model, batch)
                parts += [said.flowed, model.decoder(said.latents, said.condition)]  # type: ignore[operator]
        return torch.cat([part.float().flatten(1) for part in parts], dim=1)

    @torch.no_grad()
    def distances(self, model: nn.Module, batch: Batch, processor: Processor) -> list[float]:
        """Mean |Δ log10 mel| between each recording and what the decoder makes of its own latents."""
        with own_draws(batch["input_ids"].device), _exactly(batch):
            said = _Said(model, batch)
            made: Tensor = model.decoder(said.latents, said.condition)[:, 0]  # type: ignore[operator]
        found = _log_mel(model, made.float()) - _log_mel(model, batch["samples"].float())
        errors = found.abs().mean(1) * said.mask[:, 0] / math.log(10.0)
        return [float(value) for value in errors.sum(1) / said.mask.sum((1, 2))]

    @torch.no_grad()
    def speak(
        self, model: nn.Module, batch: Batch, row: int, processor: Processor, limits: Limits, seed: int
    ) -> Tensor:
        """One row alone, so that its noise does not depend on the company; no token lasts over ten times the usual."""
        ids = batch["input_ids"][row : row + 1, : int(batch["attention_mask"][row].sum())]
        speaker = int(batch["speaker_id"][row]) if "speaker_id" in batch else None
        longest = math.log(_LONGEST_TOKEN * max(1.0, limits.frames_per_token))
        core: Any = model
        bound = core.duration_predictor.register_forward_hook(lambda module, given, made: made.clamp(max=longest))
        try:
            with own_draws(ids.device, seed), _exactly(batch):
                waveform: Tensor = core(input_ids=ids, attention_mask=torch.ones_like(ids), speaker_id=speaker).waveform
        finally:
            bound.remove()
        return waveform[0].float().cpu()


def _exactly(batch: Batch) -> torch.autocast:
    """Compute in fp32 even in a run that computes in bf16, where the splines would fail."""
    return torch.autocast(batch["input_ids"].device.type, enabled=False)


class _Text:
    """What the text encoder makes of B sentences of T tokens; C channels of the flow."""

    def __init__(self, model: Any, batch: Batch) -> None:
        dtype = model.text_encoder.embed_tokens.weight.dtype
        mask = batch["attention_mask"]
        found = model.text_encoder(
            input_ids=batch["input_ids"], padding_mask=mask[..., None].to(dtype), attention_mask=mask, return_dict=True
        )
        self.hidden: Tensor = found.last_hidden_state.transpose(1, 2)
        """(B, D, T)"""
        self.means: Tensor = found.prior_means.transpose(1, 2)
        """(B, C, T)"""
        self.log_deviations: Tensor = found.prior_log_variances.transpose(1, 2)
        """(B, C, T): transformers' name says variances, its code takes them for log σ."""
        self.text_mask: Tensor = mask[:, None].to(dtype)
        """(B, 1, T)"""
        speaker = batch.get("speaker_id")
        self.condition: Tensor | None = None if speaker is None else model.embed_speaker(speaker)[..., None]
        """(B, E, 1), of models with several speakers."""


class _Said(_Text):
    """Beside that, what the posterior encoder hears in B recordings of F frames."""

    def __init__(self, model: Any, batch: Batch) -> None:
        super().__init__(model, batch)
        dtype = self.text_mask.dtype
        spectrogram = _linear(model, batch["samples"]).to(dtype)
        index = torch.arange(spectrogram.shape[-1], device=spectrogram.device)
        self.mask: Tensor = (index < batch["frames"][:, None])[:, None].to(dtype)
        """(B, 1, F)"""
        heard = model.posterior_encoder(spectrogram * self.mask, self.mask, self.condition)
        self.latents: Tensor = heard[0]
        """z (B, C, F)"""
        self.log_deviations_heard: Tensor = heard[2]
        self.flowed: Tensor = model.flow(self.latents, self.mask, self.condition)
        """z_p (B, C, F)"""


def _expand(said: _Said, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Means and log-deviations of each frame's token (B, C, F), and frames per token (B, 1, T)."""
    frames = said.mask.shape[-1]
    owners = torch.zeros(len(said.mask), frames, dtype=torch.long, device=said.mask.device)
    durations = torch.zeros_like(said.text_mask)
    for row, (tokens, length) in enumerate(zip(batch["attention_mask"].sum(1), batch["frames"], strict=True)):
        path = align(said.flowed[row, :, :length], said.means[row, :, :tokens], said.log_deviations[row, :, :tokens])
        owners[row, :length] = path
        durations[row, 0] = torch.bincount(path, minlength=durations.shape[-1]).to(durations)
    index = owners[:, None].expand(-1, said.means.shape[1], -1)
    return said.means.gather(2, index), said.log_deviations.gather(2, index), durations


def _divergence(said: _Said, means: Tensor, log_deviations: Tensor) -> Tensor:
    """KL (B,) per frame between what is heard and what the text predicts, summed over channels.

    log σ_p − log σ_q − ½ + (z_p − μ_p)² / (2 σ_p²): the KL's estimate at the sample z (Kim et al. 2021, eq. 3, 4).
    """
    distance = 0.5 * (said.flowed - means).float().square() * torch.exp(-2.0 * log_deviations.float())
    divergence = (log_deviations - said.log_deviations_heard).float() - 0.5 + distance
    return (divergence * said.mask).sum((1, 2)) / said.mask.float().sum((1, 2))


def _duration_loss(model: Any, said: _Said, durations: Tensor) -> Tensor:
    """(B,) per token: the stochastic predictor's bound on −log p(durations), or squared error of their logs."""
    tokens = said.text_mask.float().sum((1, 2))
    if model.config.use_stochastic_duration_prediction:
        bound: Tensor = model.duration_predictor(said.hidden, said.text_mask, said.condition, durations=durations)
        return bound.float() / tokens
    predicted = model.duration_predictor(said.hidden, said.text_mask, said.condition)
    actual = torch.log(durations.float() + 1e-6)
    errors: Tensor = (predicted.float() - actual).square() * said.text_mask
    return errors.sum((1, 2)) / tokens


def _log_durations(model: Any, text: _Text) -> Tensor:
    """(B, 1, T), drawn where the predictor is stochastic."""
    given: dict[str, Any] = {}
    if model.config.use_stochastic_duration_prediction:
        given = {"reverse": True, "noise_scale": model.noise_scale_duration}
    found: Tensor = model.duration_predictor(text.hidden, text.text_mask, text.condition, **given) * text.text_mask
    return found


def _slice_loss(model: Any, said: _Said, batch: Batch, segment: int) -> Tensor:
    """L1 (B,) between log mel spectrograms of a slice of each recording and of the decoder's waveform for it.

    Where a slice begins is drawn from torch's global generator.
    """
    hop = _hop(model.config)
    segment = min(segment, int(batch["frames"].min()))
    drawn = torch.rand(len(said.latents)).to(batch["frames"].device)
    starts = (drawn * (batch["frames"] - segment + 1)).long().tolist()
    latents = torch.stack([said.latents[row, :, first : first + segment] for row, first in enumerate(starts)])
    first_last = [(first * hop, (first + segment) * hop) for first in starts]
    wanted = torch.stack([batch["samples"][row, first:last] for row, (first, last) in enumerate(first_last)])
    made = model.decoder(latents, said.condition)[:, 0]
    return (_log_mel(model, made.float()) - _log_mel(model, wanted.float())).abs().mean((1, 2))


def _hop(config: Any) -> int:
    return math.prod(config.upsample_rates)


def _linear(model: Any, samples: Tensor) -> Tensor:
    """Linear spectrogram (B, bins, N // hop) of samples (B, N), as VITS takes it.

    Unlike `MelBank.linear`, the signal is reflected by (n_fft − hop) / 2, so that a frame covers its own hop.
    """
    n_fft, hop = 2 * (model.config.spectrogram_bins - 1), _hop(model.config)
    edge = (n_fft - hop) // 2
    reach = min(edge, samples.shape[-1] - 1)
    padded = functional.pad(samples.float()[:, None], (reach, reach), mode="reflect")[:, 0]
    padded = functional.pad(padded, (edge - reach, edge - reach))
    window = torch.hann_window(n_fft, device=samples.device)
    found: Any = torch.stft(padded, n_fft, hop, window=window, center=False, return_complex=True)
    amplitudes: Tensor = torch.sqrt(found.real.square() + found.imag.square() + 1e-6)
    return amplitudes


def _log_mel(model: Any, samples: Tensor) -> Tensor:
    """ln of the mel amplitudes (B, bands, F) of samples (B, N)."""
    filters = vits_bank(model.config).filters.to(samples)
    return (filters.T @ _linear(model, samples)).clamp(min=_LOG_FLOOR).log()


def vits_bank(config: VitsConfig) -> MelBank:
    """80 mel bands from 0 Hz to half the rate, over the spectrogram of a configuration."""
    n_fft, rate = 2 * (config.spectrogram_bins - 1), config.sampling_rate
    bands = min(80, config.spectrogram_bins // 4)
    return MelBank(rate, window=n_fft, hop=_hop(config), n_fft=n_fft, bands=bands, low=0.0, high=rate / 2)


def load_vits(
    base: ResolvedBase,
    config: VitsConfig,
    texts: Sequence[str],
    *,
    dtype: torch.dtype,
    seed: int,
    quantize: str | None,
) -> tuple[LoadedModel, Processor, list[str]]:
    """The model, what it needs beside it, and notes. Of a bare configuration, weights and tokenizer are new."""
    notes = []
    if base.random and not has_tokenizer(base):
        tokenizer: Any = make_tokenizer([*texts, ALPHABET])
        notes.append(f"a tokenizer of {len(tokenizer)} characters was made of the alphabet and the training texts")
        config.vocab_size, config.pad_token_id = tokenizer.vocab_size, tokenizer.pad_token_id
    else:
        tokenizer = load_tokenizer(base)
    if config.num_speakers > 1 and not config.speaker_embedding_size:
        raise BaseModelError(f"base model {base.name!r}: num_speakers is {config.num_speakers}, but their size is 0")
    if dtype != torch.float32:
        notes.append("VITS stays in fp32: the splines that its durations come from have no roots in bf16")
    loaded = load_model(
        AutoModelForTextToWaveform, base, "VITS model", config=config, dtype=torch.float32, seed=seed, quantize=quantize
    )
    check_backbone(loaded, base)
    notes.append("VITS is trained without its discriminators: mel, KL and duration losses alone")
    return loaded, Processor(tokenizer, vits_bank(config)), notes


def make_tokenizer(texts: Iterable[str]) -> VitsTokenizer:
    """A tokenizer of the characters that occur, case folded, with a blank between any two as VITS has it."""
    found = sorted({character for text in texts for character in text.lower()} | {" "})
    pieces = ["<pad>", *found, "<unk>"]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "vocab.json"
        file.write_text(json.dumps({piece: number for number, piece in enumerate(pieces)}), encoding="utf-8")
        return VitsTokenizer(str(file), phonemize=False)
