"""Speech encoders that write a character per frame (CTC, Graves et al. 2006): Wav2Vec2, HuBERT, WavLM."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoFeatureExtractor, AutoModelForCTC, Wav2Vec2CTCTokenizer, Wav2Vec2FeatureExtractor

from loraloom.data.recordings import Samples
from loraloom.errors import ConfigError
from loraloom.tasks.base import Batch
from loraloom.tasks.models.bases import ResolvedBase
from loraloom.tasks.models.loading import (
    check_backbone,
    draw_heads,
    has_tokenizer,
    load_model,
    load_part,
    load_tokenizer,
)
from loraloom.tasks.speech.listening import Array
from loraloom.tasks.speech.masking import masked_features, span_mask
from loraloom.tasks.speech.speech_parts import LoadedSpeech, SpeechProcessor, SpeechSettings, has_extractor
from loraloom.tasks.speech.transcripts import BLANK, DELIMITER, UNKNOWN, Heard, Span, fit_text

MODELS = ("wav2vec2", "hubert", "wavlm", "wav2vec2-conformer", "unispeech", "unispeech-sat", "data2vec-audio", "sew")
"""Kinds of configuration whose models take samples and give a character per frame."""

HEAD = "lm_head"

_WAVLM = (
    "WavLM's attention reads the weights of q_proj, k_proj, v_proj and out_proj without calling them, so an adapter "
    "acts on its other layers alone; adapter.exclude can name those four"
)


def load_ctc(
    base: ResolvedBase,
    config: Any,
    settings: SpeechSettings,
    *,
    dtype: torch.dtype,
    seed: int,
    quantize: str | None,
) -> LoadedSpeech:
    """The encoder with a head for its own characters, or for those of `settings.vocabulary`, drawn from `seed`.

    Raises BaseModelError, and ConfigError where there is no vocabulary at all.
    """
    tokenizer, own = _tokenizer(base, settings)
    extractor, notes = _extractor(base, config)
    config.vocab_size = config.vocab_size if own else len(tokenizer)
    config.pad_token_id = tokenizer.pad_token_id
    config.apply_spec_augment = False  # the task draws the masks itself, see masking.py
    loaded = load_model(
        AutoModelForCTC,
        base,
        "speech recognition model",
        config=config,
        dtype=dtype,
        seed=seed,
        quantize=quantize,
        keep_whole=(HEAD,),
    )
    # published checkpoints mostly lack the embedding of masked frames, which evaluation does not need
    needed = frozenset(key for key in loaded.missing if not key.endswith("masked_spec_embed"))
    check_backbone(replace(loaded, missing=needed), base)
    heads: tuple[str, ...] = ()
    if not loaded.random and (not own or any(key.startswith(f"{HEAD}.") for key in needed)):
        heads = (HEAD,)
        draw_heads(loaded.model, heads, seed)
    notes += _head_notes(len(tokenizer), own, heads, seed)
    notes += [_WAVLM] if config.model_type == "wavlm" else []
    reader = CTC(loaded.model, SpeechProcessor(extractor, tokenizer), settings)
    return LoadedSpeech(loaded.model, reader.processor, heads, [*notes, *loaded.notes], reader)


def _tokenizer(base: ResolvedBase, settings: SpeechSettings) -> tuple[Any, bool]:
    """The characters that the model writes, and whether they are the checkpoint's own."""
    own = load_tokenizer(base) if has_tokenizer(base) else None
    if own is not None and settings.vocabulary is None:
        return own, True
    if settings.vocabulary is None:
        raise ConfigError(
            f"base model {base.name!r} has no vocabulary of its own, and that of the training transcripts is not "
            "known before they were read"
        )
    if own is not None and own.get_vocab() == settings.vocabulary:
        return own, True
    return character_tokenizer(settings.vocabulary), False


def character_tokenizer(vocabulary: Mapping[str, int]) -> Wav2Vec2CTCTokenizer:
    """transformers' own tokenizer for CTC over these characters, with `DELIMITER` between words."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "vocab.json"
        file.write_text(json.dumps(dict(vocabulary), ensure_ascii=False), encoding="utf-8")
        make: Any = Wav2Vec2CTCTokenizer  # transformers leaves it untyped
        made: Wav2Vec2CTCTokenizer = make(
            str(file),
            pad_token=BLANK,
            unk_token=UNKNOWN,
            word_delimiter_token=DELIMITER,
            bos_token=None,
            eos_token=None,
        )
    return made


def _extractor(base: ResolvedBase, config: Any) -> tuple[Any, list[str]]:
    """The rate and scaling of the model's input; without a file, those that its kind was trained with."""
    if has_extractor(base):
        return load_part(AutoFeatureExtractor, base, "feature extractor"), []
    masked = getattr(config, "feat_extract_norm", "layer") == "layer"
    make: Any = Wav2Vec2FeatureExtractor  # transformers leaves it untyped
    made = make(
        feature_size=1, sampling_rate=16_000, padding_value=0.0, do_normalize=True, return_attention_mask=masked
    )
    return made, [f"{base.name} has no preprocessor_config.json: 16000 Hz and unit variance are assumed"]


def _head_notes(size: int, own: bool, heads: Sequence[str], seed: int) -> list[str]:
    if not heads:
        return [f"the checkpoint's own {size} characters are written"] if own else [f"{size} characters are written"]
    return [f"new head ({HEAD}) for {size} characters, drawn from seed {seed}"]


@dataclass(frozen=True)
class _Layer:
    """What a convolution does to the number of positions."""

    kernel: int
    stride: int


class CTC:
    """How a CTC model of `load_ctc` hears and writes; holds no weights."""

    rows: ClassVar[tuple[str, ...]] = ("input_values", "attention_mask", "frames", "offsets")
    unit: ClassVar[str] = "words"

    def __init__(self, model: Any, processor: SpeechProcessor, settings: SpeechSettings) -> None:
        config = model.config
        self.processor = processor
        self.rate: int = processor.extractor.sampling_rate
        self.longest: float = settings.options.max_seconds
        self._settings = settings
        self._layers = [_Layer(*pair) for pair in zip(config.conv_kernel, config.conv_stride, strict=True)]
        if getattr(config, "add_adapter", False):
            self._layers += [_Layer(1, config.adapter_stride)] * config.num_adapter_layers
        self._channels: int = config.hidden_size
        self._classes: int = config.vocab_size
        self._blank: int = processor.tokenizer.pad_token_id
        self._pieces: dict[int, str] = {number: piece for piece, number in processor.tokenizer.get_vocab().items()}
        self._delimiter: str = getattr(processor.tokenizer, "word_delimiter_token", None) or " "
        special = set(processor.tokenizer.all_special_tokens) - {self._delimiter}
        self._known = {piece for piece in processor.tokenizer.get_vocab() if len(piece) == 1} - {self._delimiter}
        self._silent = {number for number, piece in self._pieces.items() if piece in special}

    # --- what goes in

    def prepare(self, samples: Samples) -> Array:
        """Samples (T,) scaled as the model takes them; what is shorter than one frame is filled with zeros."""
        lacking = self._least() - len(samples)
        if lacking > 0:
            samples = np.pad(samples, (0, lacking))
        scaled = self.processor.extractor(samples, sampling_rate=self.rate, return_tensors="np", padding=False)
        return np.asarray(scaled.input_values[0], dtype=np.float32)

    def _least(self) -> int:
        """Samples that make one frame."""
        length = 1
        for layer in reversed(self._layers):
            length = (length - 1) * layer.stride + layer.kernel
        return length

    def frames(self, length: int) -> int:
        """How many characters the model writes for so many samples, blanks among them."""
        for layer in self._layers:
            length = (length - layer.kernel) // layer.stride + 1
        return max(length, 0)

    def spell(self, text: str) -> list[int]:
        """A transcript as character ids. Raises ValueError saying what of it the model cannot write."""
        fitted, unknown = fit_text(text, self._known)
        if unknown:
            raise ValueError(f"has the characters {' '.join(unknown)!r}, which the model does not write")
        if not fitted:
            raise ValueError("has no character that the model writes")
        numbers = self.processor.tokenizer.get_vocab()
        return [numbers[self._delimiter if character == " " else character] for character in fitted]

    def check(self, labels: Sequence[int], seconds: float) -> str | None:
        """Why a recording cannot be trained on: too few frames for its characters, or too long."""
        # between two equal characters there must be a blank to tell them from one long one
        needed = len(labels) + sum(first == second for first, second in pairwise(labels))
        frames = self.frames(round(seconds * self.rate))
        if frames < needed:
            return f"lasts {seconds:.2f} s, {frames} frames, and its transcript needs {needed}"
        return None

    def collate(self, inputs: Sequence[Array], labels: Sequence[Sequence[int]] | None, training: bool) -> Batch:
        """input_values (W, T), attention_mask where the model takes one, frames (W,); labels one after another."""
        lengths = [len(row) for row in inputs]
        batch: Batch = {
            "input_values": torch.zeros(len(inputs), max(lengths)),
            "frames": torch.tensor([self.frames(length) for length in lengths]),
        }
        for row, samples in zip(batch["input_values"], inputs, strict=True):
            row[: len(samples)] = torch.from_numpy(samples)
        if self.processor.extractor.return_attention_mask:
            batch["attention_mask"] = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
        if labels is not None:
            batch["labels"] = torch.tensor([number for row in labels for number in row])
            batch["label_lengths"] = torch.tensor([len(row) for row in labels])
        return batch | self._masks(batch) if training else batch

    def _masks(self, batch: Batch) -> Batch:
        options = self._settings.options
        masks: Batch = {}
        frames = batch["frames"].tolist()
        if options.mask_time:
            masks["mask_time"] = span_mask(frames, max(frames), options.mask_time, options.mask_time_length)
        if options.mask_feature:
            channels = [self._channels] * len(frames)
            masks["mask_feature"] = span_mask(
                channels, self._channels, options.mask_feature, options.mask_feature_length
            )
        return masks

    # --- what comes out

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, int]:
        """CTC loss summed over the batch, in float32, and the number of characters."""
        logits = self.logits(model, batch)
        loss = functional.ctc_loss(
            logits.log_softmax(-1).transpose(0, 1),
            batch["labels"],
            batch["frames"],
            batch["label_lengths"],
            blank=self._blank,
            reduction="sum",
        )
        return loss, int(batch["label_lengths"].sum())

    def logits(self, model: Any, batch: Batch) -> Tensor:
        """Logits (W, T frames, V), float32."""
        values = batch["input_values"].to(_compute_dtype(model))
        with masked_features(model, batch.get("mask_time"), batch.get("mask_feature")):
            logits: Tensor = model(values, attention_mask=batch.get("attention_mask")).logits
        return logits.float()

    outputs = logits

    def transcribe(self, model: nn.Module, batch: Batch, beams: int | None = None) -> list[Heard]:
        """The most probable character of each frame, repeats and blanks taken out; with the times of words."""
        if beams is not None:
            raise ConfigError("beams: a CTC model writes each frame by itself; leave the setting out")
        best = self.logits(model, batch)[..., : self._classes].argmax(-1).tolist()
        return [
            self._read(row[:frames], offset)
            for row, frames, offset in zip(best, batch["frames"].tolist(), batch["offsets"].tolist(), strict=True)
        ]

    def _read(self, path: Sequence[int], offset: float) -> Heard:
        """Words of one path (T frames,), each from its first character's first frame to its last one's last."""
        step = float(np.prod([layer.stride for layer in self._layers])) / self.rate
        time = partial(_seconds, step, offset)
        spans: list[Span] = []
        word, begun, ended = "", 0, 0
        for frame, number in enumerate([*path, -1]):
            piece = self._pieces.get(number, self._delimiter)
            if piece == self._delimiter:
                spans += [Span(word, time(begun), time(ended))] if word else []
                word = ""
            elif number != self._blank and number not in self._silent:
                repeated = frame > 0 and path[frame - 1] == number
                begun = begun if word else frame
                word += "" if repeated else piece
                ended = frame + 1
        return Heard(" ".join(span.text for span in spans), spans)


def _seconds(step: float, offset: float, frame: int) -> float:
    return offset + frame * step


def _compute_dtype(model: Any) -> torch.dtype:
    """Of the first convolution: the weights of linear layers may be quantised, those of adapters are float32."""
    extractor = model.get_submodule(model.base_model_prefix).feature_extractor
    dtype: torch.dtype = extractor.conv_layers[0].conv.weight.dtype
    return dtype
