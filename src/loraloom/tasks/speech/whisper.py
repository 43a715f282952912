"""Whisper (Radford et al. 2022): a spectrogram is read whole, and its text written token by token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoFeatureExtractor, AutoModelForSpeechSeq2Seq, WhisperFeatureExtractor

from loraloom.data.recordings import Samples
from loraloom.errors import BaseModelError, ConfigError
from loraloom.tasks.base import Batch
from loraloom.tasks.language.vocabulary import train_tokenizer
from loraloom.tasks.models.bases import ResolvedBase
from loraloom.tasks.models.loading import (
    check_backbone,
    has_tokenizer,
    load_model,
    load_part,
    load_tokenizer,
    silent,
)
from loraloom.tasks.speech.listening import Array
from loraloom.tasks.speech.masking import span_mask
from loraloom.tasks.speech.speech_parts import LoadedSpeech, SpeechProcessor, SpeechSettings, has_extractor
from loraloom.tasks.speech.transcripts import Heard, Span, fit_text

_STRIDE = 2  # frames of the spectrogram per position of the encoder
_IGNORED = -100


def load_whisper(
    base: ResolvedBase,
    config: Any,
    settings: SpeechSettings,
    *,
    dtype: torch.dtype,
    seed: int,
    quantize: str | None,
) -> LoadedSpeech:
    """The model with its own tokenizer; beside a bare configuration, one of the transcripts' characters.

    Raises BaseModelError, and ConfigError for options that the model does not have.
    """
    extractor = _extractor(base, config)
    tokenizer, notes = _tokenizer(base, config, settings)
    config.apply_spec_augment = False  # the task draws the masks itself, see masking.py
    loaded = load_model(
        AutoModelForSpeechSeq2Seq,
        base,
        "speech recognition model",
        config=config,
        dtype=dtype,
        seed=seed,
        quantize=quantize,
        keep_whole=("proj_out",),
    )
    check_backbone(loaded, base)
    reader = Whisper(loaded.model, SpeechProcessor(extractor, tokenizer), settings)
    return LoadedSpeech(loaded.model, reader.processor, (), [*notes, *loaded.notes], reader)


def _extractor(base: ResolvedBase, config: Any) -> Any:
    """The spectrogram, as long as the encoder's positions allow. Raises BaseModelError when it cannot be."""
    make: Any = WhisperFeatureExtractor  # transformers leaves it untyped
    made = (
        load_part(AutoFeatureExtractor, base, "feature extractor")
        if has_extractor(base)
        else make(feature_size=config.num_mel_bins)
    )
    frames = _STRIDE * config.max_source_positions
    seconds = frames * made.hop_length / made.sampling_rate
    if seconds != int(seconds):
        raise BaseModelError(
            f"base model {base.name!r}: its {config.max_source_positions} positions are {seconds:.3f} s, whole "
            "seconds are expected; change max_source_positions, or hop_length and sampling_rate"
        )
    made.chunk_length, made.nb_max_frames, made.n_samples = int(seconds), frames, int(seconds) * made.sampling_rate
    return made


def _tokenizer(base: ResolvedBase, config: Any, settings: SpeechSettings) -> tuple[Any, list[str]]:
    if has_tokenizer(base):
        return load_tokenizer(base), []
    if settings.vocabulary is None or not base.random:
        raise BaseModelError(f"base model {base.name!r}: {base.folder} holds no tokenizer, tokenizer.json is expected")
    pieces = [piece for piece in settings.vocabulary if len(piece) == 1 and piece != "|"]
    tokenizer = train_tokenizer([" ".join(pieces)], len(pieces) + 8, kind="char", begin=True, end=True)
    config.vocab_size = len(tokenizer)
    config.pad_token_id, config.bos_token_id = tokenizer.pad_token_id, tokenizer.bos_token_id
    config.decoder_start_token_id, config.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
    config.begin_suppress_tokens = config.suppress_tokens = None
    return tokenizer, [f"{len(tokenizer)} characters are written"]


class Whisper:
    """How a model of `load_whisper` hears and writes; holds no weights."""

    rows: tuple[str, ...] = ("input_features", "offsets")
    unit: str = "segments"

    def __init__(self, model: Any, processor: SpeechProcessor, settings: SpeechSettings) -> None:
        config, options = model.config, settings.options
        tokenizer = processor.tokenizer
        self.processor = processor
        self.rate: int = processor.extractor.sampling_rate
        self.longest: float = min(options.max_seconds, processor.extractor.chunk_length)
        self._options = options
        self._limit: int = config.max_target_positions
        self._own = hasattr(tokenizer, "set_prefix_tokens")
        self._multilingual = hasattr(model.generation_config, "lang_to_id")
        self._check_language()
        if self._own:
            _set_prefix(tokenizer, options.language, options.translate, self._multilingual)
        self._prefix: list[int] = tokenizer.prefix_tokens if self._own else [tokenizer.bos_token_id]
        self._end: int = tokenizer.eos_token_id
        self._known = {piece for piece in tokenizer.get_vocab() if len(piece) == 1}
        self._first_time = tokenizer.get_vocab().get("<|0.00|>")
        self._position = processor.extractor.chunk_length / config.max_source_positions
        if options.timestamps and self._first_time is None:
            raise ConfigError("options.timestamps: this model's tokenizer has no timestamps; leave the option out")

    def _check_language(self) -> None:
        if not self._multilingual and (self._options.language or self._options.translate):
            raise ConfigError("options.language, options.translate: this model knows one language only; leave both out")

    # --- what goes in

    def prepare(self, samples: Samples) -> Array:
        """The log-mel spectrogram (mel bands, frames) of samples (T,), with silence up to the model's length."""
        found = self.processor.extractor(samples, sampling_rate=self.rate, return_tensors="np")
        return np.asarray(found.input_features[0], dtype=np.float32)

    def spell(self, text: str) -> list[int]:
        """A transcript as token ids, with those that begin and end it. Raises ValueError saying what is wrong."""
        if not self._own:
            text, unknown = fit_text(text, self._known)
            if unknown:
                raise ValueError(f"has the characters {' '.join(unknown)!r}, which the model does not write")
        ids: list[int] = self.processor.tokenizer(text).input_ids
        if len(ids) - 1 > self._limit:
            raise ValueError(f"has {len(ids)} tokens, {self._limit + 1} at most can be written")
        return ids

    def check(self, labels: Sequence[int], seconds: float) -> str | None:
        """Why a recording cannot be trained on: longer than the encoder's positions."""
        if seconds > self.processor.extractor.chunk_length:
            return f"lasts {seconds:.2f} s, and the model hears {self.processor.extractor.chunk_length} s at once"
        return None

    def collate(self, inputs: Sequence[Array], labels: Sequence[Sequence[int]] | None, training: bool) -> Batch:
        """input_features (W, mel bands, frames); decoder_input_ids and labels (W, T), −100 where not learnt."""
        batch: Batch = {"input_features": torch.from_numpy(np.stack(inputs))}
        if training:
            self._mask(batch["input_features"])
        if labels is None:
            return batch
        width = max(len(row) for row in labels) - 1
        batch["decoder_input_ids"] = torch.full((len(labels), width), self._end)
        batch["labels"] = torch.full((len(labels), width), _IGNORED)
        for row, ids in enumerate(labels):
            batch["decoder_input_ids"][row, : len(ids) - 1] = torch.tensor(ids[:-1])
            # the prefix (language, task) is given when the model writes, so it is not learnt
            given = len(self._prefix) - 1
            batch["labels"][row, given : len(ids) - 1] = torch.tensor(ids[1 + given :])
        return batch

    def _mask(self, features: Tensor) -> None:
        """Mask frames and mel bands of (W, mel bands, frames) in place, by zeros, as transformers does."""
        options = self._options
        rows, bands, frames = features.shape
        time = span_mask([frames] * rows, frames, options.mask_time, options.mask_time_length)
        band = span_mask([bands] * rows, bands, options.mask_feature, options.mask_feature_length)
        features.masked_fill_(time[:, None, :] | band[:, :, None], 0.0)

    # --- what comes out

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, int]:
        """Cross entropy summed over the tokens, in float32, and their number."""
        labels = batch["labels"]
        logits = self._logits(model, batch["input_features"], batch["decoder_input_ids"])
        loss = functional.cross_entropy(logits.transpose(1, 2), labels, reduction="sum", ignore_index=_IGNORED)
        return loss, int((labels != _IGNORED).sum())

    def outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        """Logits (W, P, V) behind each token of the prefix, float32."""
        features = batch["input_features"]
        prefix = torch.tensor(self._prefix, device=features.device).expand(len(features), -1)
        return self._logits(model, features, prefix)

    def _logits(self, model: Any, features: Tensor, tokens: Tensor) -> Tensor:
        features = features.to(model.model.encoder.conv1.weight.dtype)
        logits: Tensor = model(input_features=features, decoder_input_ids=tokens, use_cache=False).logits
        return logits.float()

    def transcribe(self, model: Any, batch: Batch, beams: int | None = None) -> list[Heard]:
        """Text by greedy search, or by beam search; with times where the option asks for them."""
        features = batch["input_features"].to(model.model.encoder.conv1.weight.dtype)
        settings: dict[str, Any] = {"max_new_tokens": self._limit - len(self._prefix)}
        if self._multilingual:
            settings["task"] = "translate" if self._options.translate else "transcribe"
            settings["language"] = self._options.language
        if self._options.timestamps:
            settings["return_timestamps"] = True
        with silent():
            ids = model.generate(features, num_beams=beams or 1, do_sample=False, **settings)
        return [self._read(row, offset) for row, offset in zip(ids.tolist(), batch["offsets"].tolist(), strict=True)]

    def _read(self, ids: Sequence[int], offset: float) -> Heard:
        """Text of one window, and its segments where timestamps stand between them."""
        decode = self.processor.tokenizer.decode
        text = " ".join(decode(ids, skip_special_tokens=True).split())
        if not self._options.timestamps or self._first_time is None:
            return Heard(text, [])
        spans: list[Span] = []
        words: list[int] = []
        begun = offset
        for number in ids:
            if number < self._first_time:
                words.append(number)
                continue
            time = offset + (number - self._first_time) * self._position
            said = " ".join(decode(words, skip_special_tokens=True).split())
            spans += [Span(said, begun, time)] if said else []
            words, begun = [], time
        rest = " ".join(decode(words, skip_special_tokens=True).split())
        spans += [Span(rest, begun, offset + self.longest)] if rest else []
        return Heard(" ".join(span.text for span in spans), spans)


def _set_prefix(tokenizer: Any, language: str | None, translate: bool, multilingual: bool) -> None:
    """Let labels begin as generation does. Raises ConfigError for a language that there is not."""
    task = ("translate" if translate else "transcribe") if multilingual else None
    try:
        tokenizer.set_prefix_tokens(language=language, task=task if language else None, predict_timestamps=False)
        _ = tokenizer.prefix_tokens
    except ValueError as error:
        raise ConfigError(f"options.language: {language!r} is none that the model knows ({error})") from None
