"""What a task is: the only thing that the training loop knows of text, images or speech.

A task turns files into examples, a name into a base model, examples into batches, and batches into a
loss, predictions and a score. One file in this folder per task; `training` sees these protocols alone.
`Task` is what every task does. What only some do (write freely, leave files, draw their scores) are
protocols of their own, below it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, get_args, runtime_checkable

import torch
from pydantic import BaseModel as Settings
from pydantic import ConfigDict, model_validator
from torch import Tensor, nn

from loraloom.adapters import AdapterSet
from loraloom.data.config import DataConfig
from loraloom.data.table import Example
from loraloom.tasks.answers import NOTHING_ASKED, AnswerOptions

__all__ = [
    "NOTHING_ASKED",
    "AnswerOptions",
    "Answers",
    "BaseModel",
    "Batch",
    "DrawsSamples",
    "DrawsScores",
    "Encoded",
    "Feature",
    "LeavesFiles",
    "Splits",
    "Task",
    "TaskOptions",
    "WritesExports",
]

Batch = dict[str, Any]
"""Named tensors; a list, tuple or mapping of tensors may stand in the place of one (boxes per picture)."""


class TaskOptions(Settings):
    """Settings of one task alone, the `options` of a configuration. Each field is described, with its unit."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _yes_is_no_number(cls, data: dict[str, Any]) -> dict[str, Any]:
        """Refuse true and false where a number is meant: YAML's `yes` would silently be 1."""
        for name, value in data.items():
            field = cls.model_fields.get(name)
            if isinstance(value, bool) and field is not None and not _takes_bool(field.annotation):
                raise ValueError(f"'{name}' is {value}, which is no value that it can have")
        return data


def _takes_bool(annotation: Any) -> bool:
    return annotation in (bool, Any) or any(_takes_bool(part) or part is True for part in get_args(annotation))


@dataclass(frozen=True)
class Splits:
    """The examples of one run, and what was found and decided while reading them."""

    train: list[Example]
    evaluation: list[Example]
    notes: list[str] = field(default_factory=list)
    """One sentence each: detected columns, dropped rows, how the split was made, leaks."""
    hashes: dict[str, str] = field(default_factory=dict)
    """sha256 of each file read, by the name it was given."""


@dataclass(frozen=True)
class Feature:
    """One example, ready to be batched."""

    inputs: dict[str, Any]
    """What `Task.collate` needs, e.g. token ids as a list of int, or the file that a picture is read from."""
    length: int
    """Size along the axis that batches are padded on (T); batches are made of like lengths."""
    reference: Any = None
    """What the prediction is scored against, None when unknown."""


@dataclass(frozen=True)
class Encoded:
    """Features of a set of examples, in their order."""

    features: list[Feature]
    truncated: int = 0
    """How many examples were longer than the model takes and were cut."""
    notes: list[str] = field(default_factory=list)
    """One sentence each on what was left out or changed."""


@dataclass(frozen=True)
class BaseModel:
    """A base model as a task loaded it."""

    model: nn.Module
    processor: Any
    """Tokenizer, image processor or the like; its `save_pretrained` writes what loading it again needs."""
    heads: tuple[str, ...]
    """The task's own modules by path, e.g. a classifier: trained, saved and restored with the adapter."""
    name: str
    """As the user gave it; a short name is written out to the full one."""
    source: str
    """Where it was found: "folder", "cache", "hub" or "package"; "config" for random weights."""
    fingerprint: str
    """sha256 of the weights file(s), or of the configuration: tells an adapter for another base."""
    notes: list[str] = field(default_factory=list)
    """One sentence each on what was decided while loading: which head is new, which was kept."""
    targets: str | tuple[str, ...] = "all-linear"
    """Which modules an adapter changes where the settings name none: of a convolutional model also convolutions."""
    rates: Mapping[str, float] = field(default_factory=dict)
    """Learning rate of parts of the model, by path, over that of the run; 1 for what is not named."""


class Task(Protocol):
    """One task. Instances hold what was learnt from the data (labels, lengths) in `state`."""

    name: ClassVar[str]
    """As on the command line, e.g. "text-classification"."""
    metric: ClassVar[str]
    """The score that picks the best checkpoint, a key of what `score` returns."""
    higher_is_better: ClassVar[bool]
    peft_type: ClassVar[str | None]
    """PEFT's word for the task in adapter_config.json, e.g. "SEQ_CLS", where it has one."""
    asks_for: ClassVar[Literal["text", "file"]]
    """What one question to `predict` is: a text, or the path of a picture or recording."""
    answer_options: ClassVar[frozenset[str]]
    """Which fields of AnswerOptions mean something here."""
    shares: ClassVar[frozenset[str]]
    """Scores that are shares of one, and shown in per cent."""

    def read(self, data: DataConfig, *, seed: int) -> Splits:
        """Read and check the files of a run; afterwards the task knows its labels. Raises DataError."""
        ...

    def read_more(self, source: str, data: DataConfig, *, labelled: bool) -> list[Example]:
        """Read one further file for evaluation (labelled) or prediction. Raises DataError."""
        ...

    def question(self, given: str, line: int) -> Example:
        """An example made of one text, or one file's path, from the command line. Raises DataError."""
        ...

    def load(
        self,
        base: str,
        *,
        dtype: torch.dtype = torch.float32,
        seed: int = 0,
        from_config: bool = False,
        quantize: str | None = None,
    ) -> BaseModel:
        """Load the base model with a head for this task, a new one by `seed`. Raises BaseModelError.

        With `from_config`, `base` is a transformers configuration, and all weights are drawn by `seed`.
        `quantize` ("int8", "int4", "nf4") holds the weights of its linear layers in fewer bits.
        """
        ...

    def encode(self, examples: Sequence[Example], base: BaseModel) -> Encoded:
        """Tokenise every example, or say which file it is decoded from."""
        ...

    def collate(self, features: Sequence[Feature], base: BaseModel, *, training: bool = False) -> Batch:
        """Pad B features into tensors, e.g. input_ids (B, T).

        With `training`, examples may be varied by chance (flips, masks), drawn from torch's global
        generator, which the loop seeds for every step: a resumed run draws the same.
        """
        ...

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, int]:
        """Sum of the losses over the batch, a float32 scalar, and over how many items it is the sum."""
        ...

    def predict(self, model: nn.Module, batch: Batch, base: BaseModel) -> list[Any]:
        """One prediction per row of the batch, of the kind `score` compares with references."""
        ...

    def score(self, predictions: Sequence[Any], references: Sequence[Any]) -> dict[str, float]:
        """Every metric of the task by name; `metric` among them; `<name>_low`, `<name>_high` bound 95 %."""
        ...

    def outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        """The model's raw output (B, ...) in float32: shows whether an adapter changes anything (D9)."""
        ...

    def describe(self, prediction: Any, options: AnswerOptions = NOTHING_ASKED) -> Mapping[str, Any]:
        """A prediction as plain data for the command line and JSON, e.g. {"label": …, "score": …}."""
        ...

    def state(self) -> dict[str, Any]:
        """What `restore` needs, as JSON data: labels, column names, maximal length."""
        ...

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take back what `state` gave, from an adapter folder's run.json."""
        ...


@runtime_checkable
class Answers(Protocol):
    """A task whose answer to a user is not what is scored: text that is written on, a voice that speaks."""

    def answer(
        self,
        model: nn.Module,
        features: Sequence[Feature],
        base: BaseModel,
        options: AnswerOptions,
        say: Callable[[str], None] | None = None,
    ) -> list[Any]:
        """One answer per feature, of the kind that `describe` tells; `say` hears text as it is written."""
        ...


@runtime_checkable
class LeavesFiles(Protocol):
    """A task whose predictions can be looked at or heard: a picture with boxes, a recording."""

    def write_file(self, prediction: Any, example: Example, stem: Path, options: AnswerOptions) -> Path:
        """Write the prediction as a file whose name is `stem` with a suffix; returns its path."""
        ...


@runtime_checkable
class DrawsSamples(Protocol):
    """A task whose training can be watched: pictures of fixed prompts from fixed seeds."""

    def draw_samples(self, base: BaseModel, folder: Path, step: int) -> list[Path]:
        """Write what the model makes after `step` steps into `folder`, made if need be; nothing if not asked to.

        The global random state is left as it was, or the next step seeds it anyway.
        """
        ...


@runtime_checkable
class WritesExports(Protocol):
    """A task whose adapters other programs read in formats of their own."""

    def write_exports(self, base: BaseModel, adapters: AdapterSet, name: str, folder: Path, title: str) -> list[str]:
        """Write the adapter `name` into `folder` as those programs have it, files of no other name called `title`.

        Returns a sentence for each file that could not hold it.
        """
        ...


@runtime_checkable
class DrawsScores(Protocol):
    """A task whose scores are better seen than read: a confusion matrix."""

    def draw_scores(self, predictions: Sequence[Any], references: Sequence[Any], folder: Path) -> list[Path]:
        """Draw PNGs into `folder`, which exists; returns their paths."""
        ...
