"""Speech recognition: what is said in a recording, by CTC encoders and by Whisper."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from loraloom.data.columns import Role
from loraloom.data.config import DataConfig
from loraloom.data.files import probe_file, read_files
from loraloom.data.recordings import CLIPPED_FROM, RECORDINGS
from loraloom.data.records import MOST_NAMED, first_few
from loraloom.data.table import Example, Table
from loraloom.errors import BaseModelError, ConfigError, DataError, FormatError
from loraloom.tasks.answers import NOTHING_ASKED
from loraloom.tasks.base import AnswerOptions, BaseModel, Batch, Encoded, Feature, Splits
from loraloom.tasks.models.bases import resolve_base
from loraloom.tasks.models.loading import has_tokenizer, load_config
from loraloom.tasks.speech import ctc, whisper
from loraloom.tasks.speech.listening import Listener, Window
from loraloom.tasks.speech.speech_parts import LoadedSpeech, Recogniser, SpeechOptions, SpeechSettings
from loraloom.tasks.speech.transcripts import (
    NORMALISATIONS,
    Heard,
    Span,
    character_vocabulary,
    normalise,
    score_transcripts,
)
from loraloom.tasks.splits import HELD_OUT_SPLITS, read_splits

TEXT = Role("text", ("text", "transcript", "transcription", "sentence", "normalized_text", "utterance", "label"))

_MIB = 1 << 20


@dataclass(frozen=True)
class Transcript:
    """What the model says of one recording."""

    text: str
    spans: list[Span]
    """Its words (CTC) or segments (Whisper), where the model tells their times."""
    seconds: float
    """How long the recording is."""
    unit: str = "words"


class SpeechRecognition:
    """The task "speech-recognition"; see `loraloom.tasks.base.Task` for what each method is for."""

    name: ClassVar[str] = "speech-recognition"
    metric: ClassVar[str] = "wer"
    higher_is_better: ClassVar[bool] = False
    peft_type: ClassVar[str | None] = None
    asks_for: ClassVar[Literal["text", "file"]] = "file"
    answer_options: ClassVar[frozenset[str]] = frozenset({"beams"})
    shares: ClassVar[frozenset[str]] = frozenset({"wer", "cer"})
    Options: ClassVar[type[SpeechOptions]] = SpeechOptions

    def __init__(self, options: SpeechOptions | None = None) -> None:
        self.options = options or SpeechOptions()
        self._columns: dict[str, str] = {}
        self._skip_bad = False
        self._transcripts: list[str] | None = None
        self._vocabulary: dict[str, int] | None = None
        self._recogniser: Recogniser | None = None
        self._listener: Listener | None = None

    # --- examples

    def read(self, data: DataConfig, *, seed: int) -> Splits:
        """Read recordings and transcripts; without held-out ones, set a part aside by `seed`.

        Silent recordings and those longer than `max_seconds` are refused for training, by name, or left out
        with `skip_bad`: the one teaches to invent words, the other has no place in memory. Raises DataError.
        """

        self._skip_bad = data.skip_bad

        def read(source: str, held_out: bool) -> Table:
            table = self._read_source(source, data, labelled=True, held_out=held_out)
            if not held_out:
                self._columns = dict(table.columns)
            return table if held_out else _usable(table, self.options.max_seconds, data.skip_bad)

        splits, _ = read_splits(data, read, seed=seed, text_role="text", ignore=("file", "text"))
        train = [replace(example, values={**example.values, "training": True}) for example in splits.train]
        self._transcripts = [example.values["text"] for example in train]
        notes = [*splits.notes, *_sound_notes("training", train), *_sound_notes("evaluation", splits.evaluation)]
        return replace(splits, train=train, notes=notes)

    def read_more(self, source: str, data: DataConfig, *, labelled: bool) -> list[Example]:
        """Read further recordings; the columns that training read are looked for first."""
        return self._read_source(source, data, labelled=labelled, held_out=True).examples

    def _read_source(self, source: str, data: DataConfig, *, labelled: bool, held_out: bool) -> Table:
        known = (self._columns["text"],) if "text" in self._columns and held_out else ()
        role = replace(TEXT, candidates=(*known, *TEXT.candidates))
        return read_files(
            source,
            RECORDINGS,
            (role,) if labelled else (),
            data=data,
            split=data.eval_split if held_out else data.split,
            prefer_splits=HELD_OUT_SPLITS if held_out else ("train",),
        )

    def question(self, given: str, line: int) -> Example:
        """An example of one recording's path. Raises DataError when it cannot be read."""
        return Example(probe_file(Path(given).expanduser(), RECORDINGS), given, line)

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
        """A CTC encoder or Whisper; where the base writes no characters yet, those of the training transcripts.

        Raises BaseModelError for a model that neither is, ConfigError for options that it does not have.
        """
        found = resolve_base(base, from_config=from_config)
        config = load_config(found)
        load = self._loader(config.model_type, base)
        if self._vocabulary is None and self._transcripts is not None:
            new = self.options.new_vocabulary and load is ctc.load_ctc
            if new or not has_tokenizer(found):
                self._vocabulary = character_vocabulary(self._spelt(text) for text in self._transcripts)
        settings = SpeechSettings(self.options, self._vocabulary)
        loaded = load(found, config, settings, dtype=dtype, seed=seed, quantize=quantize)
        self._use(loaded)
        return BaseModel(
            model=loaded.model,
            processor=loaded.processor,
            heads=loaded.heads,
            notes=loaded.notes,
            **found.identity,
        )

    @staticmethod
    def _loader(model_type: str, base: str) -> Callable[..., LoadedSpeech]:
        if model_type == "whisper":
            return whisper.load_whisper
        if model_type in ctc.MODELS:
            return ctc.load_ctc
        known = ", ".join(("whisper", *ctc.MODELS))
        raise BaseModelError(
            f"base model {base!r} is of the kind {model_type!r}, which recognises no speech; {known} do"
        )

    def _spelt(self, text: str) -> str:
        return normalise(text, "basic" if self.options.spelling == "plain" else "none")

    def _use(self, loaded: LoadedSpeech) -> None:
        reader = self._recogniser = loaded.recogniser
        if self._listener is None or (self._listener.rate, self._listener.longest) != (reader.rate, reader.longest):
            self._listener = Listener(reader.rate, reader.longest, reader.prepare, self.options.cache_mb * _MIB)

    @property
    def recogniser(self) -> Recogniser:
        """How the loaded model hears and writes; ConfigError before `load`."""
        if self._recogniser is None:
            raise ConfigError(f"task {self.name}: its model is not known before it was loaded")
        return self._recogniser

    def encode(self, examples: Sequence[Example], base: BaseModel) -> Encoded:
        """Spell every transcript; the recording itself is read when it is needed.

        Raises DataError that names the training recordings which the model cannot learn from, unless `skip_bad`
        leaves them out.
        """
        features, faults = [], []
        for example in examples:
            try:
                features.append(self._feature(example))
            except ValueError as fault:
                faults.append(f"{example.place}: {example.values['file']} {fault}")
        if faults and not (self._skip_bad and features):
            raise DataError(f"the model cannot be trained on {_named(faults)}; --skip-bad leaves such ones out")
        notes = [f"left out: the model cannot be trained on {_named(faults)}"] if faults else []
        return Encoded(features, notes=notes)

    def _feature(self, example: Example) -> Feature:
        """One example; ValueError when it is a training example that cannot be learnt from."""
        values, reader = example.values, self.recogniser
        inputs: dict[str, Any] = {"file": values["file"], "seconds": values["seconds"]}
        if values.get("training"):
            inputs["labels"] = reader.spell(values["text"])
            if fault := reader.check(inputs["labels"], values["seconds"]):
                raise ValueError(fault)
        length = max(1, round(min(values["seconds"], reader.longest) * reader.rate))
        return Feature(inputs, length, values.get("text"))

    def collate(self, features: Sequence[Feature], base: BaseModel, *, training: bool = False) -> Batch:
        """Windows of B recordings as one batch of W rows; "owners" (W,) says which recording each is of.

        "offsets" (W,) is where each begins and "seconds" (B,) how long each recording is; labels are there
        if all are known, and none of the recordings is longer than one window. Raises DataError.
        """
        assert self._listener is not None, "collate is called after load"
        heard: list[tuple[int, Window]] = [
            (owner, window)
            for owner, feature in enumerate(features)
            for window in self._listener.windows(feature.inputs["file"])
        ]
        labels = [feature.inputs.get("labels") for feature in features]
        known = None if None in labels or len(heard) > len(features) else [row or [] for row in labels]
        batch = self.recogniser.collate([window.inputs for _, window in heard], known, training)
        return {
            **batch,
            "owners": torch.tensor([owner for owner, _ in heard]),
            "offsets": torch.tensor([window.offset for _, window in heard], dtype=torch.float64),
            "seconds": torch.tensor([feature.inputs["seconds"] for feature in features], dtype=torch.float64),
        }

    # --- results

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, int]:
        """CTC loss or cross entropy summed over the batch, float32; and the number of characters or tokens."""
        return self.recogniser.loss(model, batch)

    @torch.no_grad()
    def predict(self, model: nn.Module, batch: Batch, base: BaseModel) -> list[Transcript]:
        """One transcript per recording, its windows put together again."""
        return self._transcripts_of(model, batch, None)

    @torch.no_grad()
    def answer(
        self,
        model: nn.Module,
        features: Sequence[Feature],
        base: BaseModel,
        options: AnswerOptions,
        say: Callable[[str], None] | None = None,
    ) -> list[Transcript]:
        """As `predict`, with beam search where Whisper is asked for it; `say` hears each transcript."""
        device = next(model.parameters()).device
        batch = {
            name: value.to(device) if isinstance(value, Tensor) else value
            for name, value in self.collate(features, base).items()
        }
        found = self._transcripts_of(model, batch, options.beams)
        for transcript in found if say is not None else ():
            say(transcript.text)  # type: ignore[misc]
        return found

    def _transcripts_of(self, model: nn.Module, batch: Batch, beams: int | None) -> list[Transcript]:
        seconds = batch["seconds"].tolist()
        heard: list[Heard] = []
        for part in self._parts(batch, len(seconds)):
            heard += self.recogniser.transcribe(model, part, beams)
        owners = batch["owners"].tolist()
        rows = [[one for owner, one in zip(owners, heard, strict=True) if owner == row] for row in range(len(seconds))]
        return [
            Transcript(
                " ".join(window.text for window in windows if window.text),
                [span for window in windows for span in window.spans],
                length,
                self.recogniser.unit,
            )
            for windows, length in zip(rows, seconds, strict=True)
        ]

    def _parts(self, batch: Batch, most: int) -> list[Batch]:
        """The windows of a batch, `most` at a time: a long recording takes no more memory than short ones."""
        rows = len(batch["owners"])
        names = [name for name in self.recogniser.rows if name in batch]
        return [{name: batch[name][start : start + most] for name in names} for start in range(0, rows, most)]

    @torch.no_grad()
    def outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        """Logits (W, T, V), float32, without a gradient: a row per window."""
        parts = self._parts(batch, len(batch["seconds"]))
        return torch.cat([self.recogniser.outputs(model, part) for part in parts])

    def score(self, predictions: Sequence[Transcript], references: Sequence[str]) -> dict[str, float]:
        """Word and character error rates with their intervals, and n; `state` says what was normalised."""
        if not references:
            raise DataError("evaluation: there are no recordings to score")
        return score_transcripts([one.text for one in predictions], references, self.options.normalisation)

    def describe(self, prediction: Transcript, options: AnswerOptions = NOTHING_ASKED) -> Mapping[str, Any]:
        """ "text", "seconds" of the recording, and "words" or "segments" with "start" and "end" in seconds."""
        single = prediction.unit.removesuffix("s")
        spans = [
            {single: span.text, "start": round(span.start, 3), "end": round(span.end, 3)} for span in prediction.spans
        ]
        times = {prediction.unit: spans} if spans or prediction.unit == "words" else {}
        return {"text": prediction.text, **times, "seconds": round(prediction.seconds, 3)}

    def state(self) -> dict[str, Any]:
        """The columns that training read, a new vocabulary, the options, and how transcripts are normalised."""
        return {
            "columns": dict(self._columns),
            "vocabulary": self._vocabulary,
            "options": self.options.model_dump(),
            "normalisation": NORMALISATIONS[self.options.normalisation],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take back what `state` gave. Raises FormatError when its vocabulary is none."""
        vocabulary = state.get("vocabulary")
        if vocabulary is not None and not (
            isinstance(vocabulary, dict) and all(isinstance(number, int) for number in vocabulary.values())
        ):
            raise FormatError(f"task state: 'vocabulary' is no mapping of pieces to numbers but {vocabulary!r}")
        self._vocabulary = vocabulary
        self._columns = dict(state.get("columns") or {})
        self.options = SpeechOptions(**(state.get("options") or {}))


# --- what is wrong with recordings, and what is told of them


def _usable(table: Table, longest: float, skip_bad: bool) -> Table:
    """The recordings that can be trained on. Raises DataError naming the others, unless they may be skipped."""
    good, faults = [], []
    for example in table.examples:
        fault = _unfit(example, longest)
        if fault is None:
            good.append(example)
        else:
            faults.append(f"{example.values['file']} {fault}")
    if not faults:
        return table
    if skip_bad and good:
        note = f"{table.name}: left out {_named(faults)}"
        return replace(table, examples=good, notes=[*table.notes, note])
    raise DataError(f"{table.name}: there is no training on {_named(faults)}; --skip-bad leaves such ones out")


def _unfit(example: Example, longest: float) -> str | None:
    values = example.values
    if values.get("silent"):
        return "is silent, which would teach to invent its transcript"
    if values["seconds"] > longest:
        return f"lasts {values['seconds']:.1f} s, options.max_seconds is {longest:g}"
    return None


def _sound_notes(part: str, examples: Sequence[Example]) -> list[str]:
    """How much there is to hear, and which recordings are clipped or silent."""
    seconds = [example.values["seconds"] for example in examples]
    if not seconds:
        return []
    notes = [
        f"{part}: {len(seconds)} recordings, {sum(seconds) / 60:.1f} min, {min(seconds):.2f} to {max(seconds):.2f} s"
    ]
    for word, odd in (
        ("clipped", [one for one in examples if one.values.get("clipped", 0) >= CLIPPED_FROM]),
        ("silent", [one for one in examples if one.values.get("silent")]),
    ):
        if odd:
            names = ", ".join(Path(one.values["file"]).name for one in odd[:MOST_NAMED])
            notes.append(f"{part}: {len(odd)} recordings are {word}: {names}{', …' if len(odd) > MOST_NAMED else ''}")
    return notes


def _named(faults: Sequence[str]) -> str:
    """How many recordings are meant, the first few by name."""
    count = "one recording" if len(faults) == 1 else f"{len(faults)} recordings"
    return f"{count}: {first_few(faults)}"
