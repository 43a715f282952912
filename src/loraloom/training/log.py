"""The run's log: one JSON object per line for every step and evaluation, and TensorBoard on request."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from loraloom.errors import MissingExtraError
from loraloom.training.files import replace_bytes, writing

LOG_NAME = "log.jsonl"


def check_tensorboard() -> None:
    """Raise MissingExtraError unless TensorBoard's writer is installed."""
    if importlib.util.find_spec("tensorboard") is None:
        raise MissingExtraError(
            "setting 'tensorboard' needs the package tensorboard; install it with: pip install 'loraloom[tensorboard]'"
        )


class RunLog:
    """Appends to log.jsonl; every line reaches the system as it is written.

    Opening keeps the lines up to `step` and drops the rest: a resumed run writes them again.
    """

    def __init__(self, folder: Path, *, step: int, tensorboard: bool) -> None:
        self._path = folder / LOG_NAME
        kept = [json.dumps(entry) + "\n" for entry in read_log(self._path) if entry["step"] <= step]
        replace_bytes(self._path, "".join(kept).encode())
        with writing(self._path):
            self._file: TextIO = self._path.open("a", encoding="utf-8")
        self._board = _board(folder / "tensorboard", step) if tensorboard else None

    def write(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """Add one line: {"kind": "step" or "evaluation", "step": …, **values}."""
        with writing(self._path):
            self._file.write(json.dumps({"kind": kind, "step": step, **values}) + "\n")
            self._file.flush()
        if self._board is not None:
            for name, value in values.items():
                if isinstance(value, int | float):
                    self._board.add_scalar(f"{kind}/{name}", value, step)

    def close(self) -> None:
        """Close the files."""
        self._file.close()
        if self._board is not None:
            self._board.close()

    def __enter__(self) -> RunLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # A full disk shows again when buffers are flushed on closing: the first error is the one to tell.
        with nullcontext() if error is None else suppress(OSError), writing(self._path):
            self.close()


def _board(folder: Path, step: int) -> Any:
    """TensorBoard's writer, loaded only when asked for: it takes a second."""
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder), purge_step=step + 1)


def read_log(path: Path) -> list[dict[str, Any]]:
    """The log's entries; a last line that a killed process left unfinished is passed over."""
    if not path.exists():
        return []
    entries: list[dict[str, Any]] = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and isinstance(entry.get("step"), int):
            entries.append(entry)
    return entries
