"""SpeechT5 (Ao et al. 2022): text to a mel spectrogram, frame after frame, for a speaker given as a vector.

The loss is the model's own: L1 on the spectrogram before and after its postnet, cross entropy of the end,
and guided attention (Tachibana et al. 2018). The decoder's prenet drops out half of its units even as it
speaks (Shen et al. 2018, §2.2): wherever something is compared, the draws are always the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForTextToSpectrogram, SpeechT5Config, SpeechT5FeatureExtractor
from transformers.models.speecht5.modeling_speecht5 import shift_spectrograms_right

from loraloom.errors import BaseModelError
from loraloom.tasks.base import Batch
from loraloom.tasks.language.vocabulary import train_tokenizer
from loraloom.tasks.models.bases import ResolvedBase
from loraloom.tasks.models.loading import (
    LoadedModel,
    check_backbone,
    has_tokenizer,
    load_model,
    load_part,
    load_tokenizer,
)
from loraloom.tasks.speech.mel import MelBank
from loraloom.tasks.speech.speakers import Speakers
from loraloom.tasks.speech.vocoder import GriffinLim, load_vocoder
from loraloom.tasks.speech.voice import ALPHABET, Limits, Processor, Sentence, own_draws, pad_tokens

IGNORED = -100.0
"""Stands in labels where there is no frame."""
_CHARACTERS = 500


class SpeechT5:
    """The family "speecht5"; see `loraloom.tasks.speech.voice.Family`."""

    def batch(self, sentences: Sequence[Sentence], model: Any, processor: Processor, speakers: Speakers) -> Batch:
        """input_ids and attention_mask (B, T), speaker_embeddings (B, E); labels (B, F, bands) if all were said.

        Labels are cut to a whole number of the decoder's steps, and padded with -100.
        """
        config = model.config
        batch = pad_tokens(sentences, config.pad_token_id)
        size = config.speaker_embedding_dim
        batch["speaker_embeddings"] = torch.stack([speakers.vector(one.speaker, size) for one in sentences])
        spectrograms = [processor.bank.log10(one.samples) for one in sentences if one.samples is not None]
        if len(spectrograms) == len(sentences):
            step = config.reduction_factor
            cut = [frames[: max(step, len(frames) // step * step)] for frames in spectrograms]
            batch["labels"] = nn.utils.rnn.pad_sequence(cut, batch_first=True, padding_value=IGNORED)
        return batch

    def fault(self, tokens: int, samples: int | None, model: Any, processor: Processor) -> str | None:
        """Too long for the tables of positions, or too short to have a frame of the decoder."""
        config = model.config
        if tokens > config.max_text_positions:
            return f"its text has {tokens} tokens, the base model takes {config.max_text_positions}"
        frames = 0 if samples is None else processor.bank.frames(samples) // config.reduction_factor
        if frames > config.max_speech_positions:
            return f"its recording has {frames} steps, the base model takes {config.max_speech_positions}"
        if samples is not None and not frames:
            return f"its recording has {samples} samples, too few for one step of the decoder"
        return None

    def loss(self, model: nn.Module, batch: Batch, segment: int) -> tuple[Tensor, int]:
        """The model's loss, which is a mean over frames, times the frames of the batch; and these."""
        frames = int((batch["labels"][..., 0] != IGNORED).sum())
        loss: Tensor = self._forced(model, batch).loss
        return loss.float() * frames, frames

    @torch.no_grad()
    def outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        """Spectrogram (B, F, bands) after the recording's own frames; of texts alone, the encoder's (B, T, D)."""
        with own_draws(batch["input_ids"].device):
            if "labels" in batch:
                found: Tensor = self._forced(model, batch).spectrogram
            else:
                encoder: Any = model.speecht5.encoder  # type: ignore[union-attr]
                found = encoder(batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
        return found.float()

    @torch.no_grad()
    def distances(self, model: nn.Module, batch: Batch, processor: Processor) -> list[float]:
        """Mean |Δ log10 mel| of each row over its frames and bands, each frame after the recording's own."""
        found, labels = self.outputs(model, batch), batch["labels"]
        there = labels[..., 0] != IGNORED
        errors = (found - labels).abs().mean(-1) * there
        return [float(value) for value in errors.sum(1) / there.sum(1)]

    @torch.no_grad()
    def speak(
        self, model: nn.Module, batch: Batch, row: int, processor: Processor, limits: Limits, seed: int
    ) -> Tensor:
        """One row alone: with others in a batch, rounding would make a sentence depend on its company."""
        ids = batch["input_ids"][row : row + 1, : int(batch["attention_mask"][row].sum())]
        core: Any = model
        with own_draws(ids.device, seed), _end_held(core.speech_decoder_postnet):
            log_mel: Tensor = core.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                speaker_embeddings=self._cast(model, batch["speaker_embeddings"][row : row + 1]),
                threshold=limits.stop,
                maxlenratio=limits.frames_per_token,
            )
        assert processor.vocoder is not None
        return processor.vocoder(log_mel.float())

    def _forced(self, model: nn.Module, batch: Batch) -> Any:
        """The model's output where each frame follows the recording's own ones."""
        labels = batch["labels"]
        there = (labels[..., 0] != IGNORED).long()
        config: Any = model.config
        step = int(config.reduction_factor)
        shifted, mask = shift_spectrograms_right(labels, step, there)
        return model(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            decoder_input_values=self._cast(model, shifted),
            decoder_attention_mask=mask,
            speaker_embeddings=self._cast(model, batch["speaker_embeddings"]),
            labels=labels,
            use_cache=False,
        )

    def _cast(self, model: nn.Module, values: Tensor) -> Tensor:
        prenet: Any = model.speecht5.decoder.prenet  # type: ignore[union-attr]
        found: Tensor = values.to(prenet.encode_positions.alpha.dtype)
        return found


@contextmanager
def _end_held(postnet: Any) -> Iterator[None]:
    """Let the postnet see the last frame go on, by as many frames as its convolutions reach.

    In training nearly every row has something after its end. Where there is nothing, which is how sentences
    are said, a postnet that learnt little ends them with a bang.
    """
    reach = sum(layer.conv.kernel_size[0] // 2 for layer in postnet.layers)
    plain = postnet.postnet

    def held(frames: Tensor) -> Tensor:
        length = frames.shape[1]
        longer = torch.cat([frames, frames[:, -1:].expand(-1, reach, -1)], dim=1)
        found: Tensor = plain(longer)[:, :length]
        return found

    postnet.postnet = held
    try:
        yield
    finally:
        del postnet.postnet


def load_speecht5(
    base: ResolvedBase,
    config: SpeechT5Config,
    texts: Sequence[str],
    *,
    dtype: torch.dtype,
    seed: int,
    quantize: str | None,
    vocoder: str | None,
) -> tuple[LoadedModel, Processor, list[str]]:
    """The model, what it needs beside it, and notes. Of a bare configuration, weights and tokenizer are new."""
    notes = []
    if base.random and not has_tokenizer(base):
        # Letters that these texts lack may stand in those that the model is adapted to.
        tokenizer: Any = train_tokenizer([*texts, ALPHABET], _CHARACTERS, kind="char", end=True, lower=True)
        notes.append(f"a tokenizer of {len(tokenizer)} characters was made of the alphabet and the training texts")
        config.vocab_size = len(tokenizer)
        config.pad_token_id, config.bos_token_id = tokenizer.pad_token_id, tokenizer.bos_token_id
        config.eos_token_id = config.decoder_start_token_id = tokenizer.eos_token_id
    else:
        tokenizer = load_tokenizer(base)
    _check_dropout(base, config)
    if (base.folder / "preprocessor_config.json").is_file():
        extractor: Any = load_part(SpeechT5FeatureExtractor, base, "feature extractor")
    else:
        extractor = SpeechT5FeatureExtractor(num_mel_bins=config.num_mel_bins)
        notes.append("no preprocessor_config.json: spectrograms are made with SpeechT5's usual settings, at 16 kHz")
    bank = MelBank.of(extractor)
    loaded = load_model(
        AutoModelForTextToSpectrogram,
        base,
        "SpeechT5 model",
        config=config,
        dtype=dtype,
        seed=seed,
        quantize=quantize,
        keep_whole=("speech_decoder_postnet",),
    )
    check_backbone(loaded, base)
    if vocoder is None:
        notes.append("no vocoder is named: spectrograms are made audible by Griffin-Lim, which sounds hollow")
    speaking = GriffinLim(bank) if vocoder is None else load_vocoder(vocoder, bank)
    return loaded, Processor(tokenizer, bank, extractor, speaking), notes


def _check_dropout(base: ResolvedBase, config: SpeechT5Config) -> None:
    """The prenet keeps units with the probability that it should drop them with: right at one half alone."""
    if config.speech_decoder_prenet_dropout != 0.5 and base.random:
        raise BaseModelError(
            f"base model {base.name!r}: speech_decoder_prenet_dropout is {config.speech_decoder_prenet_dropout}; "
            "transformers applies it rightly at 0.5 alone"
        )
