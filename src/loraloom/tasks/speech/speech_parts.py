"""What the two ways of recognising speech share: settings, a processor, and how each of them is called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from pydantic import Field
from torch import Tensor, nn

from loraloom.data.recordings import Samples
from loraloom.tasks.base import Batch, TaskOptions
from loraloom.tasks.models.bases import ResolvedBase
from loraloom.tasks.speech.listening import Array
from loraloom.tasks.speech.transcripts import Heard, Normalisation


class SpeechOptions(TaskOptions):
    """Settings of speech recognition."""

    max_seconds: float = Field(
        default=30.0,
        gt=0,
        description="Longest recording to train on, in seconds. Longer ones are refused (or left out with skip_bad); "
        "for evaluation and prediction they are cut into windows of at most that length at the quietest places.",
    )
    normalisation: Normalisation = Field(
        default="basic",
        description="What is done to both sides before they are scored: 'basic' (NFKC, lower case, no punctuation but "
        "apostrophes inside of words) or 'none'.",
    )
    new_vocabulary: bool = Field(
        default=False,
        description="Write the characters of the training transcripts through a new head, though the base has a "
        "vocabulary (CTC models).",
    )
    spelling: Literal["plain", "written"] = Field(
        default="plain",
        description="How a new vocabulary spells transcripts: 'plain' as 'basic' scoring sees them, 'written' as they "
        "stand.",
    )
    mask_time: float = Field(default=0.05, ge=0, lt=1, description="Share of frames masked in training, at most.")
    mask_time_length: int = Field(default=10, ge=1, description="Frames in a row that are masked together.")
    mask_feature: float = Field(
        default=0.02, ge=0, lt=1, description="Share of channels (Whisper: mel bands) masked in training, at most."
    )
    mask_feature_length: int = Field(default=8, ge=1, description="Channels in a row that are masked together.")
    language: str | None = Field(
        default=None, description="Language that is spoken, for multilingual Whisper, e.g. 'en'; None lets it tell."
    )
    translate: bool = Field(default=False, description="Multilingual Whisper: write English whatever is spoken.")
    timestamps: bool = Field(default=False, description="Whisper: write when each segment was said, in predictions.")
    cache_mb: int = Field(default=2048, ge=0, description="Memory for decoded recordings, in MiB.")


@dataclass(frozen=True)
class SpeechSettings:
    """What loading a recogniser depends on beside the base."""

    options: SpeechOptions
    vocabulary: Mapping[str, int] | None
    """Piece to id of a new vocabulary; None keeps the checkpoint's own."""


@dataclass(frozen=True)
class SpeechProcessor:
    """What stands before and behind the model."""

    extractor: Any
    """transformers' feature extractor: rate, scaling, spectrogram."""
    tokenizer: Any

    def save_pretrained(self, folder: str | Path) -> None:
        """Write preprocessor_config.json and the tokenizer's files, as transformers reads them."""
        self.extractor.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


class Recogniser(Protocol):
    """One way of recognising speech: what goes into its models, and what comes out of them."""

    processor: SpeechProcessor
    rate: int
    """Samples per second that the model was made for."""
    longest: float
    """Seconds that one window may last."""

    @property
    def rows(self) -> tuple[str, ...]:
        """Names of the tensors of a batch that have one row per window."""
        ...

    @property
    def unit(self) -> str:
        """What the spans of a transcript are: "words" or "segments"."""
        ...

    def prepare(self, samples: Samples) -> Array:
        """One window's samples (T,) as the model takes them."""
        ...

    def spell(self, text: str) -> list[int]:
        """A transcript as ids. Raises ValueError saying what is wrong with it."""
        ...

    def check(self, labels: Sequence[int], seconds: float) -> str | None:
        """Why a recording with this transcript cannot be trained on; None when it can."""
        ...

    def collate(self, inputs: Sequence[Array], labels: Sequence[Sequence[int]] | None, training: bool) -> Batch:
        """One batch of W windows; with `training`, masked by chance."""
        ...

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, int]:
        """Sum of the losses, a float32 scalar, and over how many items."""
        ...

    def outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        """Logits (W, T, V), float32."""
        ...

    def transcribe(self, model: nn.Module, batch: Batch, beams: int | None = None) -> list[Heard]:
        """What each window says."""
        ...


@dataclass(frozen=True)
class LoadedSpeech:
    """A base model that recognises speech."""

    model: Any
    processor: SpeechProcessor
    heads: tuple[str, ...]
    notes: list[str]
    recogniser: Recogniser


def has_extractor(base: ResolvedBase) -> bool:
    """Whether the base's folder says how recordings are prepared."""
    return any((base.folder / name).is_file() for name in ("preprocessor_config.json", "processor_config.json"))
