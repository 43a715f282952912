"""Opening a finished run for the verbs that use it, with what the command line changes about it."""

from __future__ import annotations

import sys
from collections.abc import Mapping

from loraloom.cli.output import is_main_process
from loraloom.tasks import create_task
from loraloom.training.restore import Opened, open_run


def opened(
    folder: str,
    *,
    base: str | None = None,
    batch_size: int | None = None,
    columns: Mapping[str, str | None] | None = None,
) -> Opened:
    """The model in `folder`, to be called with other batches or columns than it was trained with if given.

    Raises FormatError for a damaged folder or an adapter for another base, BaseModelError.
    """
    run = open_run(folder, create_task, base=base)
    settings = run.record["settings"]
    if batch_size is not None:
        settings["batch_size"] = batch_size
    given = {role: name for role, name in (columns or {}).items() if name is not None}
    settings["data"]["columns"] = {**settings["data"]["columns"], **given}
    return run


def note(text: str) -> None:
    """A sentence beside the result."""
    if is_main_process():
        print(f"note: {text}", file=sys.stderr)
