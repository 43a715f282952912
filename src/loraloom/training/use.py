"""Using a finished run: scores over further labelled examples, and answers to new questions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from loraloom.data.batches import sorted_batches
from loraloom.data.table import Example
from loraloom.errors import ConfigError, DataError
from loraloom.tasks.base import NOTHING_ASKED, AnswerOptions, Answers, DrawsScores, Feature, LeavesFiles
from loraloom.training.files import writing
from loraloom.training.restore import Opened
from loraloom.training.scoring import predict_features
from loraloom.training.stepper import within_memory


@dataclass(frozen=True)
class Predicted:
    """One example and what the model says of it."""

    example: Example
    result: Mapping[str, Any]
    """As the task describes it, e.g. {"label": …, "score": …}; with "file" where one was written."""


def _ignore(note: str) -> None:
    """Nobody to tell."""


def evaluate(
    opened: Opened,
    source: str,
    *,
    without_adapter: bool = False,
    figures: Path | None = None,
    note: Callable[[str], None] = _ignore,
) -> dict[str, float]:
    """Every metric of the task over a file of labelled examples.

    `without_adapter` scores the base alone, beneath a head that was never trained; `figures` is a folder to
    draw what the task has to show of its scores into. Raises DataError, ConfigError, OutputError.
    """
    examples = opened.task.read_more(source, opened.data, labelled=True)
    features = _encode(opened, examples, note)
    if without_adapter and opened.adapters is None:
        raise ConfigError(f"'{opened.folder}' was trained with method 'full': it has no adapter to leave out")
    with opened.adapters.disable() if without_adapter and opened.adapters is not None else nullcontext():
        predictions = _predictions(opened, features, note)
    references = [feature.reference for feature in features]
    if figures is not None:
        draw_scores(opened.task, predictions, references, figures)
    return dict(opened.task.score(predictions, references))


def draw_scores(task: Any, predictions: Sequence[Any], references: Sequence[Any], folder: Path) -> list[Path]:
    """What a task has to show of its scores, as PNGs in `folder`. Raises ConfigError when it has nothing."""
    if not isinstance(task, DrawsScores):
        raise ConfigError(f"task {task.name} draws no figures of its scores")
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        return task.draw_scores(predictions, references, folder)


def predict(
    opened: Opened,
    *,
    texts: Sequence[str] | None = None,
    files: Sequence[str] | None = None,
    source: str | None = None,
    options: AnswerOptions = NOTHING_ASKED,
    save: Path | None = None,
    say: Callable[[str], None] | None = None,
    note: Callable[[str], None] = _ignore,
) -> list[Predicted]:
    """What the model says of texts or files, or of every example of `source`, in their order.

    `save` is a folder for what can be looked at or heard: pictures with boxes, recordings. `say` hears text
    as it is written. Raises DataError, ConfigError for options that the task does not know.
    """
    check_options(opened, options)
    if save is not None and not isinstance(opened.task, LeavesFiles):
        raise ConfigError(f"task {opened.task.name} writes no files of its predictions")
    examples = _examples(opened, texts, files, source)
    features = _encode(opened, examples, note)
    answers = _answers(opened, features, options, say, note)
    results = [dict(opened.task.describe(answer, options)) for answer in answers]
    if save is not None:
        _save(opened, save, examples, answers, results, options)
    return [Predicted(example, result) for example, result in zip(examples, results, strict=True)]


def check_options(opened: Opened, options: AnswerOptions) -> None:
    """Raise ConfigError for an option that means nothing to the task."""
    task = opened.task
    for name in sorted(name for name, value in options.model_dump().items() if value is not None):
        if name not in task.answer_options:
            known = ", ".join(sorted(task.answer_options)) or "none"
            raise ConfigError(f"{name}: means nothing for task {task.name}; its options are {known}")


def _examples(
    opened: Opened, texts: Sequence[str] | None, files: Sequence[str] | None, source: str | None
) -> list[Example]:
    if source is not None:
        return opened.task.read_more(source, opened.data, labelled=False)
    kind = opened.task.asks_for
    if (texts and kind != "text") or (files and kind != "file"):
        raise ConfigError(f"task {opened.task.name} takes a {kind}, not a {'text' if texts else 'file'}")
    return [opened.task.question(given, line) for line, given in enumerate(texts or files or (), start=1)]


def _encode(opened: Opened, examples: Sequence[Example], note: Callable[[str], None]) -> list[Feature]:
    encoded = opened.task.encode(examples, opened.base)
    for sentence in encoded.notes:
        note(sentence)
    if encoded.truncated:
        note(f"{encoded.truncated} of {len(examples)} examples were longer than the model takes and were cut")
    return encoded.features


def _predictions(opened: Opened, features: Sequence[Feature], note: Callable[[str], None]) -> list[Any]:
    size = int(opened.record["settings"]["batch_size"])
    predictions, _ = within_memory(
        lambda micro: predict_features(opened, features, micro), size, opened.processes, note
    )
    return predictions


@torch.no_grad()
def _answers(
    opened: Opened,
    features: Sequence[Feature],
    options: AnswerOptions,
    say: Callable[[str], None] | None,
    note: Callable[[str], None],
) -> list[Any]:
    """The task's answers where they differ from what is scored, else its predictions."""
    task = opened.task
    if not isinstance(task, Answers):
        return _predictions(opened, features, note)

    def answer(size: int) -> list[Any]:
        found: dict[int, Any] = {}
        for indices in sorted_batches([feature.length for feature in features], size):
            with opened.precision.computing(opened.processes.device):
                answers = task.answer(opened.callable, [features[i] for i in indices], opened.base, options, say)
            found.update(zip(indices, answers, strict=True))
        return [found[index] for index in range(len(features))]

    size = 1 if say is not None else int(opened.record["settings"]["batch_size"])
    answers, _ = within_memory(answer, size, opened.processes, note)
    return answers


def _save(
    opened: Opened,
    folder: Path,
    examples: Sequence[Example],
    answers: Sequence[Any],
    results: list[dict[str, Any]],
    options: AnswerOptions,
) -> None:
    """One file per answer, named after the example's own file, else by its number."""
    task = opened.task
    assert isinstance(task, LeavesFiles)
    if folder.is_file():
        raise DataError(f"'{folder}' is a file; give a folder for the predictions' files")
    taken: set[str] = set()
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for number, (example, answer, result) in enumerate(zip(examples, answers, results, strict=True), start=1):
            stem = Path(str(example.values.get("file", f"{number:04d}"))).stem
            name = stem if stem not in taken else f"{stem}-{number}"
            taken.add(name)
            result["file"] = str(task.write_file(answer, example, folder / name, options))
