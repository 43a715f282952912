"""Speech synthesis: a text said aloud, in a voice that was learnt from recordings."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from loraloom.data.config import DataConfig
from loraloom.data.files import METADATA
from loraloom.data.table import Example, Table, read_table
from loraloom.errors import BaseModelError, ConfigError, DataError, FormatError
from loraloom.tasks.base import (
    NOTHING_ASKED,
    AnswerOptions,
    BaseModel,
    Batch,
    Encoded,
    Feature,
    Splits,
    TaskOptions,
)
from loraloom.tasks.models.bases import resolve_base
from loraloom.tasks.models.loading import load_config
from loraloom.tasks.speech.sound import Shelf, Take, write_wav
from loraloom.tasks.speech.speakers import NOBODY, Speakers, read_vectors
from loraloom.tasks.speech.speech_pairs import IDENTITY, SPEAKER, TEXT, SpeechReader
from loraloom.tasks.speech.speech_scores import Reference, Speech, describe_speech, score_speech
from loraloom.tasks.speech.speecht5 import SpeechT5, load_speecht5
from loraloom.tasks.speech.vits import Vits, load_vits
from loraloom.tasks.speech.voice import SEED, Family, Limits, Processor, Sentence, unknown_note
from loraloom.tasks.splits import HELD_OUT_SPLITS, read_splits, with_words

FAMILIES: dict[str, Family] = {"speecht5": SpeechT5(), "vits": Vits()}
"""By the `model_type` of a configuration."""
DEFAULT_TARGETS = {
    "speecht5": ("all-linear", "speech_decoder_postnet.*.conv"),
    "vits": ("all-linear", "feed_forward.conv_*", "decoder.*.convs2.*"),
}
"""Linear layers, and the convolutions that shape the sound; of VITS those that PEFT computes alike."""
_FRAMES_PER_TOKEN = 20.0
_ROOM = 1.25
"""How much longer than the slowest sentence of training a sentence may take."""


class SpeechSynthesisOptions(TaskOptions):
    """Settings of speech synthesis."""

    speaker_embeddings: str | None = Field(
        default=None,
        description="SpeechT5: a .safetensors file with a vector for each speaker by name, or an .npy file with one "
        "for all. null: each name stands for a random direction, always the same.",
    )
    vocoder: str | None = Field(
        default=None,
        description="SpeechT5: a SpeechT5HifiGan, folder or name, that makes spectrograms audible. null: Griffin-Lim.",
    )
    trim: bool = Field(default=True, description="Cut the silence at both ends of recordings, but for 50 ms.")
    normalise: bool = Field(default=False, description="Bring every recording's loudest sample to 0.95 of full scale.")
    max_seconds: float = Field(default=20.0, gt=0, description="Longest recording that is taken, in seconds.")
    stop_threshold: float = Field(
        default=0.5, gt=0, lt=1, description="SpeechT5: probability of the end from which a sentence ends."
    )
    max_frames_per_token: float | None = Field(
        default=None,
        gt=0,
        description="Where a sentence that does not end is cut off, in frames of the spectrogram per token of the "
        "text. null: a quarter over the slowest sentence of training.",
    )
    segment: int = Field(
        default=32, ge=2, description="VITS: frames of each recording that the decoder learns from at a step."
    )


class SpeechSynthesis:
    """The task "speech-synthesis"; see `loraloom.tasks.base.Task` for what each method is for."""

    name: ClassVar[str] = "speech-synthesis"
    metric: ClassVar[str] = "mcd"
    higher_is_better: ClassVar[bool] = False
    peft_type: ClassVar[str | None] = None
    asks_for: ClassVar[Literal["text", "file"]] = "text"
    answer_options: ClassVar[frozenset[str]] = frozenset({"speaker", "seed"})
    shares: ClassVar[frozenset[str]] = frozenset()
    Options: ClassVar[type[TaskOptions]] = SpeechSynthesisOptions

    def __init__(self, options: SpeechSynthesisOptions | None = None) -> None:
        self.options = options or SpeechSynthesisOptions()
        self._speakers: Speakers | None = None
        self._columns: dict[str, str] = {}
        self._train: list[Example] = []
        self._frames_per_token: float | None = self.options.max_frames_per_token
        self._shelf = Shelf()

    @property
    def speakers(self) -> Speakers:
        """Who was recorded, known once `read` or `restore` was called; ConfigError before."""
        if self._speakers is None:
            raise ConfigError(f"task {self.name}: its speakers are not known before it has read training data")
        return self._speakers

    # --- examples

    def read(self, data: DataConfig, *, seed: int) -> Splits:
        """Read recordings and what is said in them; without an evaluation file, set a part aside by `seed`.

        Raises DataError for anything that cannot be used, held-out speakers included that training never heard.
        """
        splits, table = read_splits(
            data,
            lambda source, held_out: self._read(source, data, held_out=held_out),
            seed=seed,
            text_role=TEXT.name,
            stratify_by=SPEAKER.name,
            ignore=IDENTITY,
            accept=self._accept,
        )
        self._train = splits.train
        return replace(splits, notes=[*splits.notes, *self._voices(table)])

    def _read(self, source: str, data: DataConfig, *, held_out: bool) -> Table:
        reader = SpeechReader(self._columns, self.options.max_seconds)
        if held_out:
            return reader.read(source, data, split=data.eval_split, prefer=HELD_OUT_SPLITS)
        table = reader.read(source, data, split=data.split, prefer=("train",))
        given = self.options.speaker_embeddings
        vectors = read_vectors(given) if given is not None else None
        self._speakers = Speakers.of([example.values[SPEAKER.name] for example in table.examples], vectors)
        self._columns = dict(table.columns)
        return table

    def _accept(self, held_out: Sequence[Example]) -> None:
        for example in held_out:
            self.speakers.check(example.values[SPEAKER.name], example.place)

    def _voices(self, table: Table) -> list[str]:
        counts = self.speakers.counts
        if list(counts) == [NOBODY]:
            return [f"{table.name}: no speakers are named: all recordings count as one voice"]
        shown = ", ".join(f"{name or '(none)'} ({count})" for name, count in list(counts.items())[:8])
        return [f"{len(counts)} speakers: {shown}" + (", …" if len(counts) > 8 else "")]

    def read_more(self, source: str, data: DataConfig, *, labelled: bool) -> list[Example]:
        """Read a further folder or table; for prediction, texts are enough."""
        if labelled:
            examples = with_words(self._read(source, data, held_out=True), data, TEXT.name).examples
            self._accept(examples)
            return examples
        table = next((str(path) for name in METADATA if (path := Path(source) / name).is_file()), source)
        columns = {role: name for role, name in data.columns.items() if role in (TEXT.name, SPEAKER.name)}
        rows = read_table(
            table,
            SpeechReader(self._columns, self.options.max_seconds).roles(),
            columns=columns,
            delimiter=data.delimiter,
            split=data.eval_split,
            prefer_splits=HELD_OUT_SPLITS,
            required_roles=(TEXT.name,),
            skip_bad=data.skip_bad,
        )
        self._accept([example for example in rows.examples if SPEAKER.name in example.values])
        return rows.examples

    def question(self, given: str, line: int) -> Example:
        """A text to say. Raises DataError for one without a letter or digit."""
        if not any(character.isalnum() for character in given):
            raise DataError(f"text:{line}: {given!r} holds nothing that could be said")
        return Example({TEXT.name: given}, "text", line)

    # --- model

    def load(
        self,
        base: str,
        *,
        dtype: torch.dtype = torch.float32,
        seed: int = 0,
        from_config: bool = False,
        quantize: str | None = None,
    ) -> BaseModel:
        """A SpeechT5 or VITS model with its tokenizer and settings; it has no head of ours."""
        found = resolve_base(base, from_config=from_config)
        config: Any = load_config(found)
        texts = [example.values[TEXT.name] for example in self._train]
        settings: dict[str, Any] = {"dtype": dtype, "seed": seed, "quantize": quantize}
        if config.model_type == "speecht5":
            loaded, processor, notes = load_speecht5(found, config, texts, vocoder=self.options.vocoder, **settings)
        elif config.model_type == "vits":
            loaded, processor, notes = load_vits(found, config, texts, **settings)
        else:
            known = " or ".join(FAMILIES)
            raise BaseModelError(
                f"base model {found.name!r}: its model_type is {config.model_type!r}; {known} can learn to speak"
            )
        self._measure_pace(processor)
        return BaseModel(
            model=loaded.model,
            processor=processor,
            heads=(),
            notes=[*notes, *loaded.notes, *unknown_note(processor.tokenizer, texts)],
            targets=DEFAULT_TARGETS[config.model_type],
            **found.identity,
        )

    def _measure_pace(self, processor: Processor) -> None:
        """How many frames a token takes at most, from the training examples where there are any."""
        if self._frames_per_token is not None or not self._train:
            return
        frames_per_second = processor.bank.rate / processor.bank.hop
        paces = [
            example.values["seconds"] * frames_per_second / max(1, len(processor.tokens(example.values[TEXT.name])))
            for example in self._train
        ]
        self._frames_per_token = round(_ROOM * max(paces), 3)

    def encode(self, examples: Sequence[Example], base: BaseModel) -> Encoded:
        """Tokenise every text; `reference` says which recording it is scored against, None where there is none.

        Raises DataError, naming the place, for a text without a token that the model knows, or a pair that
        the model cannot take.
        """
        return Encoded([self._feature(example, base) for example in examples])

    def _feature(self, example: Example, base: BaseModel) -> Feature:
        processor: Processor = base.processor
        tokens = processor.tokens(example.values[TEXT.name])
        if not set(tokens) - set(processor.tokenizer.all_special_ids):
            raise DataError(f"{example.place}: its text holds no character that the base model's tokenizer knows")
        reference = None
        samples = None
        if "file" in example.values:
            reference = Reference(example.values["file"], self._take(processor))
            samples = len(self._shelf.read(reference.file, reference.take))
        fault = FAMILIES[_kind(base.model)].fault(len(tokens), samples, base.model, processor)
        if fault is not None:
            raise DataError(f"{example.place}: {fault}")
        speaker = example.values.get(SPEAKER.name, self.speakers.usual)
        length = len(tokens) if samples is None else processor.bank.frames(samples)
        return Feature({"tokens": tokens, "speaker": speaker}, length, reference)

    def _take(self, processor: Processor) -> Take:
        return Take(processor.bank.rate, self.options.trim, self.options.normalise)

    def collate(self, features: Sequence[Feature], base: BaseModel, *, training: bool = False) -> Batch:
        """Texts, speakers and, where all are known, recordings as the model takes them; see the families."""
        sentences = [
            Sentence(feature.inputs["tokens"], feature.inputs["speaker"], self._samples(feature))
            for feature in features
        ]
        return FAMILIES[_kind(base.model)].batch(sentences, base.model, base.processor, self.speakers)

    def _samples(self, feature: Feature) -> Tensor | None:
        if feature.reference is None:
            return None
        return torch.from_numpy(self._shelf.read(feature.reference.file, feature.reference.take))

    # --- results

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, int]:
        """The family's own loss: summed over frames (SpeechT5) or sentences (VITS), a float32 scalar; and these."""
        return FAMILIES[_kind(model)].loss(model, batch, self.options.segment)

    @torch.no_grad()
    def predict(self, model: nn.Module, batch: Batch, base: BaseModel) -> list[Speech]:
        """Each sentence said, one at a time and always with the same draws; and how near the model is step by step."""
        said = [self._say(model, batch, row, base, SEED) for row in range(len(batch["input_ids"]))]
        if "labels" not in batch and "samples" not in batch:
            return said
        distances = FAMILIES[_kind(model)].distances(model, batch, base.processor)
        return [replace(speech, mel_l1=distance) for speech, distance in zip(said, distances, strict=True)]

    @torch.no_grad()
    def answer(
        self,
        model: nn.Module,
        features: Sequence[Feature],
        base: BaseModel,
        options: AnswerOptions,
        say: Callable[[str], None] | None = None,
    ) -> list[Speech]:
        """Each text said by the speaker that was asked for. Raises DataError for one that training never heard."""
        if options.speaker is not None:
            self.speakers.check(options.speaker, "--speaker")
            features = [replace(feature, inputs={**feature.inputs, "speaker": options.speaker}) for feature in features]
        device = next(model.parameters()).device
        unsaid = [replace(feature, reference=None) for feature in features]
        batch = {name: tensor.to(device) for name, tensor in self.collate(unsaid, base).items()}
        seed = SEED if options.seed is None else options.seed
        return [self._say(model, batch, row, base, seed) for row in range(len(features))]

    def _say(self, model: nn.Module, batch: Batch, row: int, base: BaseModel, seed: int) -> Speech:
        processor: Processor = base.processor
        limits = Limits(self._frames_per_token or _FRAMES_PER_TOKEN, self.options.stop_threshold)
        began = time.perf_counter()
        waveform = FAMILIES[_kind(model)].speak(model, batch, row, processor, limits, seed)
        return Speech(waveform.numpy(), processor.bank.rate, time.perf_counter() - began)

    @torch.no_grad()
    def outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        """What the family makes of texts and recordings (B, …), float32, always with the same draws."""
        return FAMILIES[_kind(model)].outputs(model, batch)

    def score(self, predictions: Sequence[Speech], references: Sequence[Reference]) -> dict[str, float]:
        """Mel-cepstral distortion to the recordings, its interval, and the rest; see `score_speech`."""
        return score_speech(predictions, references, self._shelf)

    def describe(self, prediction: Speech, options: AnswerOptions = NOTHING_ASKED) -> Mapping[str, Any]:
        """Length in seconds, loudness as shares of full scale, and seconds of computing per second of sound."""
        return describe_speech(prediction)

    def write_file(self, prediction: Speech, example: Example, stem: Path, options: AnswerOptions) -> Path:
        """Write a 16-bit WAV file that does not clip. Raises OutputError."""
        return write_wav(stem.with_name(f"{stem.name}.wav"), prediction.samples, prediction.rate)

    # --- state

    def state(self) -> dict[str, Any]:
        """Columns, speakers with their vectors, and the pace at which a sentence is cut off."""
        return {
            "columns": dict(self._columns),
            "speakers": self.speakers.state(),
            "frames_per_token": self._frames_per_token,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take back what `state` gave. Raises FormatError when it holds no speakers."""
        self._speakers = Speakers.from_state(state.get("speakers"))
        self._columns = dict(state.get("columns") or {})
        pace = state.get("frames_per_token")
        if pace is not None and not (isinstance(pace, int | float) and math.isfinite(pace) and pace > 0):
            raise FormatError(f"task state: 'frames_per_token' is no positive number but {pace!r}")
        self._frames_per_token = self.options.max_frames_per_token or pace


def _kind(model: Any) -> str:
    return str(model.config.model_type)
