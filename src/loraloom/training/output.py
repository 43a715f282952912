"""The output folder of a run: nothing at all, a run that can be resumed, or a complete result.

While a run lasts its folder holds ``run-state.json`` (which marks it as resumable), ``log.jsonl`` and
``checkpoints/``. The results are written aside and take their names at the end, ``run.json`` last; then the
marks of the running run go.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from loraloom.errors import ConfigError, OutputError, TrainingError
from loraloom.training.checkpoint import complete_checkpoints, sweep
from loraloom.training.config import changed_keys
from loraloom.training.files import replace_json, sync_folder, sync_tree, writing

RECORD_NAME = "run.json"
_STATE_NAME, _PARTIAL_NAME, _CHECKPOINTS_NAME = "run-state.json", ".partial", "checkpoints"


class OutputFolder:
    """The folder `path` and what may be done with it. Only `begin` and what follows it change anything."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._existed = self.path.exists()
        self._begun = False

    @property
    def checkpoints(self) -> Path:
        """Where checkpoints lie while the run lasts."""
        return self.path / _CHECKPOINTS_NAME

    @property
    def complete(self) -> bool:
        """Whether the folder holds a finished run."""
        return (self.path / RECORD_NAME).is_file() and not self.resumable

    @property
    def resumable(self) -> bool:
        """Whether the folder holds a run that was begun and not finished."""
        return (self.path / _STATE_NAME).is_file()

    def check(self, *, resume: bool) -> None:
        """Raise OutputError where a run cannot be written; changes nothing."""
        above = next(folder for folder in (self.path, *self.path.absolute().parents) if folder.exists())
        if not above.is_dir():
            raise OutputError(f"out: '{above}' is a file, a folder is needed; choose another folder with --out")
        if not os.access(above, os.W_OK | os.X_OK):
            raise OutputError(f"out: '{above}' cannot be written to; choose another folder with --out")
        if self._is_empty():
            return
        if not (resume or self.resumable):
            raise OutputError(f"out: '{self.path}' is not empty; choose another folder with --out, or empty it")
        if not resume:
            raise OutputError(
                f"out: '{self.path}' holds a run that was not finished; go on with --resume, or choose another folder"
            )
        if not (self.resumable or self.complete):
            raise OutputError(
                f"out: '{self.path}' is not empty and holds no run to resume ({_STATE_NAME} is missing); "
                "choose another folder with --out"
            )

    def _is_empty(self) -> bool:
        """Whether nothing lies there, but for a mark that a killed process did not finish writing."""
        return not self._existed or all(
            _STATE_NAME in path.name and path.name[0] == "." for path in self.path.iterdir()
        )

    def read_state(self) -> dict[str, Any]:
        """What `begin` wrote, or, of a finished run, its record. Raises OutputError when it is damaged."""
        path = self.path / (_STATE_NAME if self.resumable else RECORD_NAME)
        try:
            state = json.loads(path.read_text(encoding="utf-8"))
            return {"settings": dict(state["settings"]), **state}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise OutputError(f"'{path}' is damaged ({error!r}); remove the folder and start again") from None

    def check_settings(self, settings: Mapping[str, Any]) -> None:
        """Raise ConfigError, naming the keys, when a run is to be resumed with other settings than it had."""
        before = self.read_state()["settings"]
        if changed := changed_keys(before, settings):
            told = ", ".join(f"'{key}' ({_at(before, key)!r} → {_at(settings, key)!r})" for key in changed)
            raise ConfigError(
                f"'{self.path}' cannot be resumed with other settings: {told}; take the old ones, or start anew "
                "in another folder"
            )

    def tidy(self) -> None:
        """Remove the checkpoints that a process killed at its very end left beside a complete result."""
        with writing(self.path):
            shutil.rmtree(self.checkpoints, ignore_errors=True)

    def begin(self, state: Mapping[str, Any]) -> None:
        """Make the folder and mark it as a running run; sweeps what a killed process left."""
        self._begun = True
        with writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            # The mark comes first: a kill at any point leaves an empty folder or one that can be resumed.
            replace_json(self.path / _STATE_NAME, state)
            shutil.rmtree(self.path / _PARTIAL_NAME, ignore_errors=True)
            self.checkpoints.mkdir(exist_ok=True)
            sweep(self.checkpoints)

    @contextmanager
    def results(self) -> Iterator[Path]:
        """A folder to write the results to, which are in place when the block ends without an error."""
        partial = self.path / _PARTIAL_NAME
        with writing(self.path):
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            yield partial
            sync_tree(partial)
            for path in sorted(partial.iterdir(), key=lambda path: path.name == RECORD_NAME):
                if path.is_dir():
                    shutil.rmtree(self.path / path.name, ignore_errors=True)
                path.replace(self.path / path.name)
            sync_folder(self.path)
            partial.rmdir()
            # From here on the run is complete: a kill in between leaves checkpoints that resuming sweeps.
            (self.path / _STATE_NAME).unlink()
            shutil.rmtree(self.checkpoints, ignore_errors=True)

    @contextmanager
    def undone_on_error(self) -> Iterator[None]:
        """Leave nothing behind when the block fails, but for checkpoints that the run can be resumed from."""
        try:
            yield
        except BaseException as error:
            useless = isinstance(error, NothingMoved) or not complete_checkpoints(self.checkpoints)
            shutil.rmtree(self.path / _PARTIAL_NAME, ignore_errors=True)
            if useless:
                self._remove()
            elif self.resumable and isinstance(error, TrainingError):
                error.args = (f"{error}; the steps before are kept in '{self.checkpoints}'",)
            raise

    def _remove(self) -> None:
        if not self._begun:
            return
        if not self._existed:
            shutil.rmtree(self.path, ignore_errors=True)
            return
        # The marker goes last: without it the rest would be taken for the user's own files.
        marker = self.path / _STATE_NAME
        for path in sorted(self.path.iterdir(), key=lambda path: path == marker):
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


class NothingMoved(TrainingError):
    """The trained model is the base model: resuming would come to the same."""


def _at(settings: Mapping[str, Any], key: str) -> Any:
    value: Any = settings
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value
