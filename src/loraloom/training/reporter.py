"""What a run tells while it goes on: plain events, which the command line or a page shows in its own way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True)
class RunPlan:
    """What a run is about to do, told before the first step and before anything is written."""

    method: str
    base: str
    device: str
    precision: str
    processes: int
    train_examples: int
    evaluation_examples: int
    steps: int
    """Optimiser steps in all."""
    first_step: int
    """How many of them are done already: 0 unless the run is resumed."""
    batch_size: int
    trained_parameters: int
    total_parameters: int
    sites: tuple[Mapping[str, Any], ...] = ()
    """One row per adapted layer; empty for full fine-tuning."""


@dataclass(frozen=True)
class StepEvent:
    """The newest step whose loss is known."""

    step: int
    """Steps done, from 1."""
    steps: int
    epoch: float
    """Passes over the training examples that are done."""
    loss: float
    """Mean over the items of the step's batch."""
    grad_norm: float
    """Euclidean norm of all gradients, before clipping."""
    learning_rate: float
    examples_per_second: float
    seconds_left: float
    """For the remaining training steps, at the rate so far."""
    memory_mib: float
    """In use now: of the accelerator, or resident on a CPU."""
    score: float | None
    """The newest evaluation's score, None before the first."""


@dataclass(frozen=True)
class EvalEvent:
    """One evaluation on the held-out examples."""

    step: int
    epoch: float
    metric: str
    score: float
    metrics: Mapping[str, float]
    best: bool
    """Whether it is the best score so far."""


@dataclass(frozen=True)
class RunResult:
    """A finished run."""

    out: Path
    record: dict[str, Any] = field(repr=False)
    """The content of run.json."""

    @property
    def metrics(self) -> dict[str, float]:
        """Scores of the trained model on the held-out examples."""
        return dict(self.record["metrics"]["trained"])

    @property
    def base_metrics(self) -> dict[str, float]:
        """Scores of the base model with its new, untrained head on the same examples."""
        return dict(self.record["metrics"]["base"])

    @property
    def notes(self) -> list[str]:
        """Everything that was noted during the run, one sentence each."""
        return list(self.record["notes"])


class Reporter(Protocol):
    """Who is told of a run's events; only the main process tells."""

    def started(self, plan: RunPlan) -> None:
        """The run is checked and about to begin."""

    def note(self, text: str) -> None:
        """One sentence that the user should know: a detected column, truncated texts, a halved batch."""

    def step(self, event: StepEvent) -> None:
        """Steps were done."""

    def evaluated(self, event: EvalEvent) -> None:
        """The held-out examples were scored."""

    def finished(self, result: RunResult) -> None:
        """The output folder is complete."""


class SilentReporter:
    """Tells nobody."""

    def started(self, plan: RunPlan) -> None:
        """Nothing."""

    def note(self, text: str) -> None:
        """Nothing."""

    def step(self, event: StepEvent) -> None:
        """Nothing."""

    def evaluated(self, event: EvalEvent) -> None:
        """Nothing."""

    def finished(self, result: RunResult) -> None:
        """Nothing."""


class Notebook:
    """A reporter that also keeps every note, for the record, and tells each sentence only once."""

    def __init__(self, inner: Reporter) -> None:
        self._inner = inner
        self.notes: list[str] = []
        self.started = inner.started
        self.step = inner.step
        self.evaluated = inner.evaluated
        self.finished = inner.finished

    def note(self, text: str) -> None:
        """Keep the note and pass it on, unless it was told before."""
        if text not in self.notes:
            self.notes.append(text)
            self._inner.note(text)
