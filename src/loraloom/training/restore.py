"""From an output folder back to a model that can be called: for evaluate, predict and inspect."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loraloom.data.config import DataConfig
from loraloom.data.table import Example
from loraloom.errors import FormatError
from loraloom.formats.peft import load_adapter
from loraloom.tasks.base import BaseModel, Feature, Task
from loraloom.training.job import ADAPTER, Loaded
from loraloom.training.output import RECORD_NAME
from loraloom.training.precision import Precision, has_bf16, resolve_precision
from loraloom.training.processes import Processes
from loraloom.training.record import RECORD_FORMAT
from loraloom.training.scoring import predict_features
from loraloom.training.stepper import within_memory

_NEEDED = ("format", "task", "method", "base", "task_state", "settings", "precision")


@dataclass
class Opened(Loaded):
    """A trained model from its output folder."""

    folder: Path
    record: dict[str, Any]
    """The content of run.json."""

    @property
    def data(self) -> DataConfig:
        """How the run read its data: further files are read alike."""
        return DataConfig(**self.record["settings"]["data"])


@dataclass(frozen=True)
class Predicted:
    """One example and what the model says of it."""

    example: Example
    result: Mapping[str, Any]
    """As the task describes it, e.g. {"label": …, "score": …}."""


def _ignore(note: str) -> None:
    """Nobody to tell."""


def read_record(folder: str | Path) -> dict[str, Any]:
    """The run.json of an output folder. Raises FormatError where there is none, or not a whole one."""
    path = Path(folder) / RECORD_NAME
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FormatError(f"'{folder}' is not the output folder of a finished run: {RECORD_NAME} is missing") from None
    except (OSError, ValueError) as error:
        raise FormatError(f"'{path}' cannot be read: {error}") from None
    missing = [key for key in _NEEDED if not isinstance(record, dict) or key not in record]
    if missing:
        raise FormatError(f"'{path}' is not whole: the key '{missing[0]}' is missing")
    if record["format"] > RECORD_FORMAT:
        raise FormatError(
            f"'{path}' has format {record['format']}, made by a newer version; this one reads {RECORD_FORMAT}"
        )
    return dict(record)


def open_run(
    folder: str | Path,
    task_factory: Callable[[str], Task],
    *,
    base: str | None = None,
    precision: str | None = None,
    device: str = "auto",
) -> Opened:
    """Load what a run made: the base model with its adapter and head, or the whole trained model.

    `base` tells where the base model is now, if it moved; `precision` ("auto", "fp32", "bf16") overrides
    that of the run. Raises FormatError for a damaged folder or an adapter for another base, BaseModelError
    when the base cannot be loaded.
    """
    record = read_record(folder)
    task = task_factory(record["task"])
    task.restore(record["task_state"])
    processes = Processes.of_environment(device)
    formats = _precision(record, precision, processes)
    seed = record["settings"]["seed"]
    adapters = None
    if record["method"] == "full":
        loaded = task.load(str(folder), dtype=formats.base, seed=seed)
    else:
        loaded = task.load(base or record["base"]["name"], dtype=formats.base, seed=seed)
        _check_base(folder, record, loaded)
        adapters = load_adapter(loaded.model, folder, name=ADAPTER)
    model = loaded.model.to(processes.device).eval()
    return Opened(
        task=task,
        processes=processes,
        precision=formats,
        base=loaded,
        callable=model,
        adapters=adapters,
        folder=Path(folder),
        record=record,
    )


def _precision(record: Mapping[str, Any], wanted: str | None, processes: Processes) -> Precision:
    """That of the run, where this machine has it."""
    if wanted is None:
        wanted = record["precision"] if record["precision"] != "bf16" or has_bf16(processes.device) else "fp32"
    return resolve_precision(wanted, record["method"], processes.device)


def _check_base(folder: str | Path, record: Mapping[str, Any], base: BaseModel) -> None:
    expected = record["base"]["fingerprint"]
    if base.fingerprint != expected:
        raise FormatError(
            f"'{folder}' was trained over '{record['base']['name']}' with weights of sha256 {expected[:12]}…; "
            f"'{base.name}' has {base.fingerprint[:12]}…: take the base that it was trained over"
        )


def evaluate(opened: Opened, source: str, *, note: Callable[[str], None] = _ignore) -> dict[str, float]:
    """Every metric of the task over a file of labelled examples. Raises DataError."""
    examples = opened.task.read_more(source, opened.data, labelled=True)
    features = _encode(opened, examples, note)
    predictions = _predictions(opened, features, note)
    return dict(opened.task.score(predictions, [feature.reference for feature in features]))


def predict(
    opened: Opened,
    *,
    texts: Sequence[str] | None = None,
    source: str | None = None,
    note: Callable[[str], None] = _ignore,
) -> list[Predicted]:
    """What the model says of texts, or of every example of a file, in their order. Raises DataError."""
    if source is not None:
        examples = opened.task.read_more(source, opened.data, labelled=False)
    else:
        examples = [Example({"text": text}, "text", line) for line, text in enumerate(texts or (), start=1)]
    predictions = _predictions(opened, _encode(opened, examples, note), note)
    return [
        Predicted(example, opened.task.describe(prediction))
        for example, prediction in zip(examples, predictions, strict=True)
    ]


def _encode(opened: Opened, examples: Sequence[Example], note: Callable[[str], None]) -> list[Feature]:
    encoded = opened.task.encode(examples, opened.base)
    if encoded.truncated:
        note(f"{encoded.truncated} of {len(examples)} examples were longer than the model takes and were cut")
    return encoded.features


def _predictions(opened: Opened, features: Sequence[Feature], note: Callable[[str], None]) -> list[Any]:
    size = int(opened.record["settings"]["batch_size"])
    predictions, _ = within_memory(
        lambda micro: predict_features(opened, features, micro), size, opened.processes, note
    )
    return predictions
