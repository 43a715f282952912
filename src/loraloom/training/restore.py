"""From an output folder back to a model that can be called: for evaluate, predict and inspect."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loraloom.data.config import DataConfig
from loraloom.errors import FormatError
from loraloom.formats.peft import load_adapter
from loraloom.tasks.base import BaseModel, Task
from loraloom.training.config import TrainConfig
from loraloom.training.job import ADAPTER, Loaded
from loraloom.training.output import RECORD_NAME
from loraloom.training.precision import Precision, has_bf16, resolve_precision
from loraloom.training.processes import Processes
from loraloom.training.record import RECORD_FORMAT

_CHOOSING = ("where", "words", "limit", "eval_limit")
_NEEDED = ("format", "task", "method", "base", "task_state", "settings", "precision")


@dataclass
class Opened(Loaded):
    """A trained model from its output folder."""

    folder: Path
    record: dict[str, Any]
    """The content of run.json."""
    data_changes: dict[str, Any] = field(default_factory=dict)
    """Settings of `data` that further files are read with instead of the run's."""

    @property
    def data(self) -> DataConfig:
        """How the run read its data: further files are read alike, but for what chose among its examples."""
        recorded = {key: value for key, value in self.record["settings"]["data"].items() if key not in _CHOOSING}
        return DataConfig(**{**recorded, **self.data_changes})


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
    task_factory: Callable[..., Task],
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
    settings = TrainConfig.model_validate(record["settings"])
    task = task_factory(record["task"], **settings.task_options)
    task.restore(record["task_state"])
    processes = Processes.of_environment(device)
    formats = _precision(record, precision, processes)
    adapters = None
    if record["method"] == "full":
        loaded = task.load(str(folder), dtype=formats.base, seed=settings.seed)
    else:
        name = base or record["base"]["name"]
        loaded = task.load(name, dtype=formats.base, seed=settings.seed, quantize=settings.quantize)
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
