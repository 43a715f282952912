"""What a task is: the only thing that the training loop knows of text, images or speech.

A task turns files into examples, a name into a base model, examples into batches, and batches into a
loss, predictions and a score. One file in this folder per task; `training` sees this protocol alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from loraloom.data.config import DataConfig
from loraloom.data.table import Example

Batch = dict[str, Tensor]


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
    """What `Task.collate` needs, e.g. token ids as a list of int."""
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


@dataclass(frozen=True)
class BaseModel:
    """A base model as a task loaded it."""

    model: nn.Module
    processor: Any
    """Tokenizer, image processor or the like."""
    heads: tuple[str, ...]
    """The task's own modules by path, e.g. a classifier: trained, saved and restored with the adapter."""
    name: str
    """As the user gave it; a short name is written out to the full one."""
    source: str
    """Where it was found: "folder", "cache", "hub" or "package"."""
    fingerprint: str
    """sha256 of the weights file(s): tells an adapter for another base."""
    notes: list[str] = field(default_factory=list)
    """One sentence each on what was decided while loading: which head is new, which was kept."""


class Task(Protocol):
    """One task. Instances hold what was learnt from the data (labels, lengths) in `state`."""

    name: ClassVar[str]
    """As on the command line, e.g. "text-classification"."""
    metric: ClassVar[str]
    """The score that picks the best checkpoint, a key of what `score` returns."""
    higher_is_better: ClassVar[bool]

    def read(self, data: DataConfig, *, seed: int) -> Splits:
        """Read and check the files of a run; afterwards the task knows its labels. Raises DataError."""
        ...

    def read_more(self, source: str, data: DataConfig, *, labelled: bool) -> list[Example]:
        """Read one further file for evaluation (labelled) or prediction. Raises DataError."""
        ...

    def load(self, base: str, *, dtype: torch.dtype = torch.float32, seed: int = 0) -> BaseModel:
        """Load the base model with a head for this task, a new one by `seed`. Raises BaseModelError."""
        ...

    def encode(self, examples: Sequence[Example], base: BaseModel) -> Encoded:
        """Tokenise or decode every example."""
        ...

    def collate(self, features: Sequence[Feature], base: BaseModel) -> Batch:
        """Pad B features into tensors, e.g. input_ids (B, T)."""
        ...

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, int]:
        """Sum of the losses over the batch, a float32 scalar, and over how many items it is the sum."""
        ...

    def predict(self, model: nn.Module, batch: Batch) -> list[Any]:
        """One prediction per row of the batch, of the kind `score` compares with references."""
        ...

    def score(self, predictions: Sequence[Any], references: Sequence[Any]) -> dict[str, float]:
        """Every metric of the task by name; `metric` among them; `<name>_low`, `<name>_high` bound 95 %."""
        ...

    def outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        """The model's raw output (B, ...) in float32: shows whether an adapter changes anything (D9)."""
        ...

    def describe(self, prediction: Any) -> Mapping[str, Any]:
        """A prediction as plain data for the command line and JSON, e.g. {"label": …, "score": …}."""
        ...

    def state(self) -> dict[str, Any]:
        """What `restore` needs, as JSON data: labels, column names, maximal length."""
        ...

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take back what `state` gave, from an adapter folder's run.json."""
        ...
