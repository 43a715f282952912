"""What the families of speech models have in common: text to tokens, and what a model needs beside its weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, SpeechT5FeatureExtractor, VitsTokenizer

from loraloom.errors import DataError
from loraloom.tasks.base import Batch
from loraloom.tasks.speech.mel import MelBank
from loraloom.tasks.speech.speakers import Speakers

SEED = 20
"""Seed of what models draw by chance as they speak, so that the same words sound the same."""


ALPHABET = "abcdefghijklmnopqrstuvwxyz ,.;:!?'\"-()"
"""What a tokenizer knows in any case that is made of a run's own texts."""


@dataclass(frozen=True)
class Sentence:
    """One sentence, ready for a model."""

    tokens: list[int]
    speaker: str
    samples: Tensor | None
    """How it was said (N,) at the model's rate; None where it is to be said."""


@dataclass(frozen=True)
class Limits:
    """Where a voice that does not find its end is cut off."""

    frames_per_token: float
    """Most frames of the spectrogram that a token of the text may take on average."""
    stop: float = 0.5
    """Probability of the end from which SpeechT5 stops."""


@dataclass(frozen=True)
class Processor:
    """What turns text into tokens and spectrograms into sound, beside a model."""

    tokenizer: PreTrainedTokenizerBase
    bank: MelBank
    """The spectrogram that the model learns from, at its rate."""
    extractor: SpeechT5FeatureExtractor | None = None
    vocoder: Callable[[Tensor], Tensor] | None = None
    """log10 mel amplitudes (T, bands) → waveform (N,); None where the model makes waveforms itself."""

    def save_pretrained(self, folder: Any) -> None:
        """Write the tokenizer's and the extractor's files, with which the folder is a base again."""
        self.tokenizer.save_pretrained(folder)
        if self.extractor is not None:
            self.extractor.save_pretrained(folder)

    def tokens(self, text: str) -> list[int]:
        """Token ids of a text."""
        found: list[int] = self.tokenizer(text)["input_ids"]
        return found


class Family(Protocol):
    """How one family of models learns and speaks. Without a state: `model.config` says which one it is."""

    def batch(self, sentences: Sequence[Sentence], model: Any, processor: Processor, speakers: Speakers) -> Batch:
        """B sentences as padded tensors, with what was said where every one of them was."""
        ...

    def fault(self, tokens: int, samples: int | None, model: Any, processor: Processor) -> str | None:
        """Why a sentence of so many tokens and samples (None: not said yet) does not fit the model."""
        ...

    def loss(self, model: nn.Module, batch: Batch, segment: int) -> tuple[Tensor, int]:
        """Sum of the losses and over how many items; `segment` is in frames, for models that learn by pieces."""
        ...

    def outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        """Raw outputs (B, …), float32, always with the same draws."""
        ...

    def distances(self, model: nn.Module, batch: Batch, processor: Processor) -> list[float]:
        """Of each sentence: mean |Δ log10 mel| of what the model makes of the recording's own past."""
        ...

    def speak(
        self, model: nn.Module, batch: Batch, row: int, processor: Processor, limits: Limits, seed: int
    ) -> Tensor:
        """The waveform (N,) of one row, float32 on the CPU."""
        ...


@contextmanager
def own_draws(device: torch.device, seed: int = SEED) -> Iterator[None]:
    """Draw by chance from `seed`, and leave the caller's generators as they were."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def pad_tokens(sentences: Sequence[Sentence], pad: int) -> Batch:
    """input_ids and attention_mask (B, T)."""
    longest = max(len(sentence.tokens) for sentence in sentences)
    ids = torch.full((len(sentences), longest), pad)
    mask = torch.zeros_like(ids)
    for row, sentence in enumerate(sentences):
        ids[row, : len(sentence.tokens)] = torch.tensor(sentence.tokens)
        mask[row, : len(sentence.tokens)] = 1
    return {"input_ids": ids, "attention_mask": mask}


def unknown_characters(tokenizer: Any, texts: Iterable[str]) -> Counter[str]:
    """How often characters occur that the tokenizer has no token for."""
    counts = Counter(character for text in texts for character in text if not character.isspace())
    if isinstance(tokenizer, VitsTokenizer):
        if tokenizer.phonemize or tokenizer.is_uroman:
            return Counter()
        known = {
            c for c in counts if c in tokenizer.encoder or (tokenizer.normalize and c.lower() in tokenizer.encoder)
        }
    else:
        unknown = tokenizer.unk_token_id
        known = {c for c in counts if unknown not in tokenizer(c, add_special_tokens=False)["input_ids"]}
    return Counter({character: count for character, count in counts.items() if character not in known})


def unknown_note(tokenizer: Any, texts: Iterable[str]) -> list[str]:
    """One sentence that names the characters that the tokenizer does not know, if there are any."""
    found = unknown_characters(tokenizer, texts)
    if not found:
        return []
    shown = ", ".join(f"{character!r} ({count})" for character, count in found.most_common(8))
    more = ", …" if len(found) > 8 else ""
    return [f"{len(found)} characters have no token and will not be heard: {shown}{more}"]


def one_speaker(model: Any, speakers: Speakers) -> int | None:
    """How many voices a model with a table of speakers has, None where it has no table."""
    count = int(getattr(model.config, "num_speakers", 1))
    if count <= 1:
        return None
    if len(speakers.counts) > count:
        raise DataError(f"the recordings have {len(speakers.counts)} speakers, the base model has room for {count}")
    return count
