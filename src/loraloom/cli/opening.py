"""Opening a finished run for the verbs that use it, with what the command line changes about it."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from loraloom.cli.output import is_main_process
from loraloom.data.config import DataConfig
from loraloom.tasks import create_task
from loraloom.training.restore import Opened, open_run
from loraloom.training.settings_file import read_settings


def opened(
    folder: str,
    *,
    base: str | None = None,
    batch_size: int | None = None,
    columns: Mapping[str, str | None] | None = None,
    changes: Mapping[str, Any] | None = None,
) -> Opened:
    """The model in `folder`, to be called with other batches, columns or settings of `data` if given.

    Raises FormatError for a damaged folder or an adapter for another base, BaseModelError.
    """
    run = open_run(folder, create_task, base=base)
    if batch_size is not None:
        run.record["settings"]["batch_size"] = batch_size
    given = {role: name for role, name in (columns or {}).items() if name is not None}
    run.data_changes = {"columns": {**run.data.columns, **given}, **(changes or {})}
    return run


def data_changes(given: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of `data` by dotted key as they are to be taken. Raises ConfigError for one that is none."""
    checked = read_settings(DataConfig, None, {"train": "-", **given})
    return {key: getattr(checked, key) for key in {name.partition(".")[0] for name in given}}


def note(text: str) -> None:
    """A sentence beside the result."""
    if is_main_process():
        print(f"note: {text}", file=sys.stderr)
