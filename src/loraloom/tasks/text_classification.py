"""Text classification: one of several labels for a sentence or a document."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from sklearn.metrics import accuracy_score, f1_score
from torch import Tensor, nn
from torch.nn import functional

from loraloom.data.config import DataConfig
from loraloom.data.labels import Labels
from loraloom.data.split import drop_duplicates, find_leaks, sample_examples, split_examples
from loraloom.data.table import Example, Role, Table, read_table
from loraloom.errors import ConfigError, DataError, FormatError
from loraloom.tasks.base import BaseModel, Batch, Encoded, Feature, Splits
from loraloom.tasks.bases import resolve_base
from loraloom.tasks.classifier import load_classifier
from loraloom.tasks.intervals import macro_f1_interval, wilson_interval
from loraloom.tasks.tokens import pad_rows, token_limit, tokenise, vocabulary_size

TEXT = Role("text", ("text", "sentence", "review", "content", "comment", "tweet", "message", "document", "body"))
LABEL = Role("label", ("label", "labels", "class", "category", "target", "sentiment", "intent", "stars"), "label")


class Prediction(NamedTuple):
    """What the model says of one text."""

    label: int
    """The class number with the highest probability."""
    probabilities: list[float]
    """One per class, in the order of the labels; they sum to 1."""


class TextClassification:
    """The task "text-classification"; see `loraloom.tasks.base.Task` for what each method is for.

    `max_length` cuts texts to so many tokens, special ones included; None leaves it to model and tokenizer.
    """

    name: ClassVar[str] = "text-classification"
    metric: ClassVar[str] = "accuracy"
    higher_is_better: ClassVar[bool] = True

    def __init__(self, max_length: int | None = None) -> None:
        if max_length is not None and (isinstance(max_length, bool) or not isinstance(max_length, int)):
            raise ConfigError(f"max_length: a whole number of tokens is expected, found {max_length!r}")
        if max_length is not None and max_length < 1:
            raise ConfigError(f"max_length: at least 1 token is expected, found {max_length}")
        self.max_length = max_length
        self._labels: Labels | None = None
        self._columns: dict[str, str] = {}

    @property
    def labels(self) -> Labels:
        """The classes, known once `read` or `restore` was called; ConfigError before."""
        if self._labels is None:
            raise ConfigError(f"task {self.name}: its labels are not known before it has read training data")
        return self._labels

    # --- examples

    def read(self, data: DataConfig, *, seed: int) -> Splits:
        """Read training and evaluation examples; without an evaluation file, set a part aside by `seed`.

        Raises DataError for anything that cannot be used, labels included that training never saw.
        """
        table = read_table(data.train, (TEXT, LABEL), columns=data.columns, delimiter=data.delimiter, split=data.split)
        self._labels = Labels.from_examples(table.examples, column=table.columns["label"])
        self._columns = dict(table.columns)
        notes = [*table.notes, _count_note(self._labels, table.examples), *self._labels.notes()]
        examples = table.examples
        if data.drop_duplicates:
            examples, dropped = drop_duplicates(examples)
            notes.append(f"{table.name}: {len(dropped)} rows whose text came before were dropped")
        if data.eval is None and data.eval_split is None:
            train, evaluation = self._set_aside(examples, data, seed, notes)
            return Splits(train, evaluation, notes, {table.name: table.sha256})
        held_out = self._read_further(data.eval or data.train, data, labelled=True)
        self._labels.encode(held_out.examples)  # raises for a label that training never saw
        train = sample_examples(examples, data.limit, seed) if data.limit else examples
        notes += [*held_out.notes, *_leak_notes(train, held_out.examples)]
        hashes = {table.name: table.sha256}
        hashes[_other_name(held_out.name, hashes, data.eval_split)] = held_out.sha256
        return Splits(train, held_out.examples, notes, hashes)

    def read_more(self, source: str, data: DataConfig, *, labelled: bool) -> list[Example]:
        """Read a further file; the columns that training read are looked for first."""
        examples = self._read_further(source, data, labelled=labelled).examples
        if labelled:
            self.labels.encode(examples)
        return examples

    def _read_further(self, source: str, data: DataConfig, *, labelled: bool) -> Table:
        roles = [
            Role(role.name, (*_known(self._columns, role), *role.candidates), role.kind)
            for role in ((TEXT, LABEL) if labelled else (TEXT,))
        ]
        given = {role: name for role, name in data.columns.items() if labelled or role != LABEL.name}
        return read_table(
            source,
            roles,
            columns=given,
            delimiter=data.delimiter,
            split=data.eval_split,
            prefer_splits=("test", "validation"),
        )

    def _set_aside(
        self, examples: list[Example], data: DataConfig, seed: int, notes: list[str]
    ) -> tuple[list[Example], list[Example]]:
        """Part the examples in two; with a limit, evaluation shrinks in proportion."""
        if data.limit:
            examples = sample_examples(examples, round(data.limit / (1 - data.eval_fraction)), seed)
        train, evaluation = split_examples(examples, data.eval_fraction, seed)
        if not evaluation:
            raise DataError(
                f"{data.train}: none of its {len(examples)} rows can be set aside for evaluation, being too "
                "few or too much alike; give more rows, or an evaluation file"
            )
        train = sample_examples(train, data.limit, seed) if data.limit else train
        notes.append(
            f"{data.train}: {len(evaluation)} of {len(examples)} rows were set aside for evaluation (seed "
            f"{seed}), of each label alike, with near-duplicates on one side"
        )
        return train, evaluation

    # --- model

    def load(self, base: str, *, dtype: torch.dtype = torch.float32, seed: int = 0) -> BaseModel:
        """The base model with a head for the labels; a head that the files lack is drawn from `seed`."""
        found = resolve_base(base)
        loaded = load_classifier(found, self.labels.names, dtype=dtype, seed=seed)
        return BaseModel(
            model=loaded.model,
            processor=loaded.tokenizer,
            heads=loaded.heads,
            name=found.name,
            source=found.source,
            fingerprint=found.fingerprint,
            notes=loaded.notes,
        )

    def encode(self, examples: Sequence[Example], base: BaseModel) -> Encoded:
        """Tokenise all texts at once; `reference` is the class number, None where there is no label."""
        model: Any = base.model
        limit = token_limit(model, base.processor, self.max_length)
        texts = [example.values["text"] for example in examples]
        rows = tokenise(texts, base.processor, limit, vocabulary_size(model))
        labelled = [example for example in examples if "label" in example.values]
        numbers = iter(self.labels.encode(labelled))
        features = [
            Feature(
                inputs={name: column[row] for name, column in rows.columns.items()},
                length=len(rows.columns["input_ids"][row]),
                reference=next(numbers) if "label" in example.values else None,
            )
            for row, example in enumerate(examples)
        ]
        return Encoded(features, rows.truncated)

    def collate(self, features: Sequence[Feature], base: BaseModel) -> Batch:
        """input_ids and, where the tokenizer gives them, token_type_ids (B, T); labels (B,) if all are known.

        attention_mask (B, T) is there only when some row is padded.
        """
        names = features[0].inputs
        batch = pad_rows({name: [feature.inputs[name] for feature in features] for name in names}, base.processor)
        labels = [feature.reference for feature in features]
        if None not in labels:
            batch["labels"] = torch.tensor(labels)
        return batch

    # --- results

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, int]:
        """Cross entropy summed over the batch, a float32 scalar whatever the model's precision; and B."""
        labels = batch["labels"]
        return functional.cross_entropy(_logits(model, batch), labels, reduction="sum"), len(labels)

    @torch.no_grad()
    def predict(self, model: nn.Module, batch: Batch) -> list[Prediction]:
        """The most probable label of each row, and the probabilities of all."""
        probabilities = _logits(model, batch).softmax(-1)
        labels = probabilities.argmax(-1).tolist()
        return [Prediction(*row) for row in zip(labels, probabilities.tolist(), strict=True)]

    @torch.no_grad()
    def outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        """Logits (B, number of labels), float32, without a gradient."""
        return _logits(model, batch)

    def score(self, predictions: Sequence[Prediction], references: Sequence[int]) -> dict[str, float]:
        """Accuracy (Wilson interval), macro-F1 (bootstrap interval, always the same draws), and n.

        Macro-F1 is the mean over the labels that occur among predictions or references. Raises DataError
        when there is nothing to score.
        """
        if not references:
            raise DataError("evaluation: there are no examples to score")
        predicted = [prediction.label for prediction in predictions]
        hits = int(accuracy_score(references, predicted, normalize=False))
        low, high = wilson_interval(hits, len(references))
        f1_low, f1_high = macro_f1_interval(predicted, references)
        return {
            "accuracy": hits / len(references),
            "accuracy_low": low,
            "accuracy_high": high,
            "macro_f1": float(f1_score(references, predicted, average="macro", zero_division=0)),
            "macro_f1_low": f1_low,
            "macro_f1_high": f1_high,
            "n": float(len(references)),
        }

    def describe(self, prediction: Prediction) -> Mapping[str, Any]:
        """The label's name, its probability as "score", and "scores" of all labels by name."""
        scores = dict(zip(self.labels.names, prediction.probabilities, strict=True))
        return {
            "label": self.labels.names[prediction.label],
            "score": prediction.probabilities[prediction.label],
            "scores": scores,
        }

    def state(self) -> dict[str, Any]:
        """Labels in their order, the columns that training read, and the length that texts were cut to."""
        return {
            "labels": list(self.labels.names),
            "columns": dict(self._columns),
            "max_length": self.max_length,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take back what `state` gave. Raises FormatError when it holds no list of labels."""
        labels = state.get("labels")
        if not isinstance(labels, list) or len(labels) < 2 or not all(isinstance(name, str) for name in labels):
            raise FormatError(f"task state: 'labels' is no list of at least two label names but {labels!r}")
        self._labels = Labels(tuple(labels))
        self._columns = dict(state.get("columns") or {})
        self.max_length = state.get("max_length")


def _logits(model: nn.Module, batch: Batch) -> Tensor:
    """Logits (B, number of labels) in float32."""
    logits: Tensor = model(**{name: tensor for name, tensor in batch.items() if name != "labels"}).logits
    return logits.float()


def _known(columns: Mapping[str, str], role: Role) -> tuple[str, ...]:
    return (columns[role.name],) if role.name in columns else ()


def _other_name(name: str, taken: Mapping[str, str], split: str | None) -> str:
    """A name for a second split of the same dataset."""
    return f"{name}:{split or 'evaluation'}" if name in taken else name


def _count_note(labels: Labels, examples: Sequence[Example]) -> str:
    counts = labels.counts(examples)
    shown = ", ".join(f"{name} ({count})" for name, count in list(counts.items())[:8])
    return f"{len(counts)} labels: {shown}" + (", …" if len(counts) > 8 else "")


def _leak_notes(train: Sequence[Example], evaluation: Sequence[Example]) -> list[str]:
    """A warning when evaluation examples are also among the training examples."""
    leaks = find_leaks(train, evaluation)
    if not leaks:
        return []
    exact = sum(leak.exact for leak in leaks)
    first = leaks[0]
    return [
        f"{len(leaks)} of {len(evaluation)} evaluation examples repeat training examples "
        f"({exact} word for word, {len(leaks) - exact} nearly), e.g. {first.evaluation.place} as "
        f"{first.train.place}: scores on them say little"
    ]
