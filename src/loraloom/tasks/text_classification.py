"""Text classification: one of several labels for a sentence or a document."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from pydantic import Field
from sklearn.metrics import accuracy_score, f1_score
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerBase

from loraloom.data.config import DataConfig
from loraloom.data.labels import Labels
from loraloom.data.table import Example, Role, Table, read_table
from loraloom.errors import ConfigError, DataError, FormatError
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
from loraloom.tasks.intervals import macro_f1_interval, wilson_interval
from loraloom.tasks.language.tokens import pad_rows, token_limit, tokenise, use_padding, vocabulary_size
from loraloom.tasks.language.vocabulary import train_tokenizer
from loraloom.tasks.models.bases import ResolvedBase, resolve_base
from loraloom.tasks.models.classifier import load_classifier
from loraloom.tasks.models.loading import has_tokenizer, load_config, load_tokenizer
from loraloom.tasks.splits import HELD_OUT_SPLITS, read_splits, with_words

TEXT = Role("text", ("text", "sentence", "review", "content", "comment", "tweet", "message", "document", "body"))
LABEL = Role("label", ("label", "labels", "class", "category", "target", "sentiment", "intent", "stars"), "label")


class Prediction(NamedTuple):
    """What the model says of one text."""

    label: int
    """The class number with the highest probability."""
    probabilities: list[float]
    """One per class, in the order of the labels; they sum to 1."""


class TextClassificationOptions(TaskOptions):
    """Settings of text classification."""

    max_length: int | None = Field(
        default=None, ge=1, description="Tokens after which a text is cut, special ones included. null: no own limit."
    )


class TextClassification:
    """The task "text-classification"; see `loraloom.tasks.base.Task` for what each method is for."""

    name: ClassVar[str] = "text-classification"
    metric: ClassVar[str] = "accuracy"
    higher_is_better: ClassVar[bool] = True
    peft_type: ClassVar[str | None] = "SEQ_CLS"
    asks_for: ClassVar[Literal["text", "file"]] = "text"
    answer_options: ClassVar[frozenset[str]] = frozenset({"top_k"})
    shares: ClassVar[frozenset[str]] = frozenset({"accuracy", "macro_f1"})
    Options: ClassVar[type[TaskOptions]] = TextClassificationOptions

    def __init__(self, options: TextClassificationOptions | None = None) -> None:
        self.options = options or TextClassificationOptions()
        self._labels: Labels | None = None
        self._columns: dict[str, str] = {}
        self._texts: list[str] = []

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
        splits, table = read_splits(
            data,
            lambda source, held_out: self._read(source, data, held_out=held_out),
            seed=seed,
            text_role=TEXT.name,
            stratify_by=LABEL.name,
            ignore=(LABEL.name,),
            accept=self._accept,
        )
        self._texts = [example.values["text"] for example in splits.train]
        return replace(splits, notes=[*splits.notes, self.labels.count_note(table.examples), *self.labels.notes()])

    def _accept(self, held_out: Sequence[Example]) -> None:
        self.labels.encode(held_out)

    def read_more(self, source: str, data: DataConfig, *, labelled: bool) -> list[Example]:
        """Read a further file; the columns that training read are looked for first."""
        examples = with_words(self._read_further(source, data, labelled=labelled), data, TEXT.name).examples
        if labelled:
            self.labels.encode(examples)
        return examples

    def question(self, given: str, line: int) -> Example:
        """A text to classify."""
        return Example({"text": given}, "text", line)

    def _read(self, source: str, data: DataConfig, *, held_out: bool) -> Table:
        if held_out:
            return self._read_further(source, data, labelled=True)
        table = read_table(
            source,
            (TEXT, LABEL),
            columns=data.columns,
            delimiter=data.delimiter,
            split=data.split,
            where=data.where,
            skip_bad=data.skip_bad,
        )
        self._labels = Labels.from_examples(table.examples, column=table.columns["label"])
        self._columns = dict(table.columns)
        return table

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
            prefer_splits=HELD_OUT_SPLITS,
            where=data.where if labelled else None,
            skip_bad=data.skip_bad,
        )

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
        """The base model with a head for the labels; a head that the files lack is drawn from `seed`."""
        found = resolve_base(base, from_config=from_config)
        tokenizer = self._tokenizer(found)
        loaded = load_classifier(
            AutoModelForSequenceClassification,
            found,
            self.labels.names,
            "text classification model",
            dtype=dtype,
            seed=seed,
            quantize=quantize,
        )
        use_padding(tokenizer, loaded.model)
        return BaseModel(
            model=loaded.model,
            processor=tokenizer,
            heads=loaded.heads,
            notes=loaded.notes,
            **found.identity,
        )

    def _tokenizer(self, base: ResolvedBase) -> PreTrainedTokenizerBase:
        """The base's own; beside a bare configuration without one, made from the training texts."""
        if not base.random or has_tokenizer(base):
            return load_tokenizer(base)
        return train_tokenizer(self._texts, load_config(base).get_text_config().vocab_size, end=True)

    def encode(self, examples: Sequence[Example], base: BaseModel) -> Encoded:
        """Tokenise all texts at once; `reference` is the class number, None where there is no label."""
        model: Any = base.model
        limit = token_limit(model, base.processor, self.options.max_length)
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

    def collate(self, features: Sequence[Feature], base: BaseModel, *, training: bool = False) -> Batch:
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
    def predict(self, model: nn.Module, batch: Batch, base: BaseModel) -> list[Prediction]:
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

    def describe(self, prediction: Prediction, options: AnswerOptions = NOTHING_ASKED) -> Mapping[str, Any]:
        """The label's name, its probability as "score", and "scores" by name: of all labels, or of the `top_k`."""
        scores = dict(zip(self.labels.names, prediction.probabilities, strict=True))
        if options.top_k is not None:
            best = sorted(scores, key=lambda name: -scores[name])[: options.top_k]
            scores = {name: scores[name] for name in best}
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
            "max_length": self.options.max_length,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take back what `state` gave. Raises FormatError when it holds no list of labels."""
        labels = state.get("labels")
        if not isinstance(labels, list) or len(labels) < 2 or not all(isinstance(name, str) for name in labels):
            raise FormatError(f"task state: 'labels' is no list of at least two label names but {labels!r}")
        self._labels = Labels(tuple(labels))
        self._columns = dict(state.get("columns") or {})
        self.options = self.options.model_copy(update={"max_length": state.get("max_length")})


def _logits(model: nn.Module, batch: Batch) -> Tensor:
    """Logits (B, number of labels) in float32."""
    logits: Tensor = model(**{name: tensor for name, tensor in batch.items() if name != "labels"}).logits
    return logits.float()


def _known(columns: Mapping[str, str], role: Role) -> tuple[str, ...]:
    return (columns[role.name],) if role.name in columns else ()
