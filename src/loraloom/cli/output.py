"""What the verbs print: one JSON object, or tables and sentences for people, on stdout."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

PIPED_WIDTH = 160
"""Columns of a table that goes to a file or a pipe."""


def is_main_process() -> bool:
    """Whether this process speaks for the run: under torchrun only the first does."""
    return os.environ.get("RANK", "0") == "0"


def console(*, stderr: bool = False) -> Console:
    """A console on stdout or stderr as it is now, wide enough not to fold tables in a pipe."""
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else PIPED_WIDTH
    return Console(file=stream, width=width, highlight=False, soft_wrap=True)


def emit(data: Mapping[str, Any]) -> None:
    """Print one JSON object on stdout; numbers that are not finite become null, as JSON has none."""
    if is_main_process():
        print(json.dumps(plain(data), ensure_ascii=False, indent=2, allow_nan=False))


def plain(value: Any) -> Any:
    """`value` as JSON data."""
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple | set):
        return [plain(entry) for entry in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int | bool):
        return value
    return str(value) if isinstance(value, Path) else plain_number(value)


def plain_number(value: Any) -> Any:
    """A number of numpy or torch as Python's own; anything else as text."""
    item = getattr(value, "item", None)
    return plain(item()) if callable(item) else str(value)


def say(*lines: str) -> None:
    """Print lines on stdout."""
    if is_main_process():
        for line in lines:
            print(line)


def show_table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, title: str = "") -> None:
    """Print a table on stdout; columns whose cells all look like numbers are set flush right."""
    if not is_main_process():
        return
    cells = [[str(cell) for cell in row] for row in rows]
    table = Table(title=title or None, title_justify="left", header_style="bold", box=SIMPLE_HEAD, pad_edge=False)
    for index, column in enumerate(columns):
        numeric = all(row[index][:1] in "0123456789-+±–" for row in cells if row[index])
        # Text: square brackets in a path must not be read as markup.
        table.add_column(Text(column), justify="right" if numeric else "left", overflow="fold")
    for row in cells:
        table.add_row(*(Text(cell) for cell in row))
    console().print(table)


def percent(share: float, digits: int = 1) -> str:
    """0.1234 as "12.3 %"."""
    return f"{100 * share:.{digits}f} %"


def with_interval(metrics: Mapping[str, float], name: str, *, share: bool = True) -> str:
    """A score with its 95 % interval: a share in per cent, "84.0 % (79.2–87.9)"; else as it is."""
    bounds = [metrics[f"{name}_{end}"] for end in ("low", "high") if f"{name}_{end}" in metrics]
    if share:
        shown, ends = percent(metrics[name]), [f"{100 * bound:.1f}" for bound in bounds]
    else:
        shown, ends = f"{metrics[name]:.4g}", [f"{bound:.4g}" for bound in bounds]
    return f"{shown} ({'–'.join(ends)})" if len(ends) == 2 else shown


def is_share(record: Mapping[str, Any], metric: str) -> bool:
    """Whether a score of a run is a share of one, by its run.json; older ones held only such."""
    return metric in record.get("shares", (metric,))


def score_rows(found: Mapping[str, Mapping[str, float]], shares: Iterable[str]) -> list[list[str]]:
    """Metrics as rows, one column per entry of `found`; bounds stand beside their score, counts are left out."""
    every = dict.fromkeys(name for metrics in found.values() for name in metrics)
    names = [name for name in every if not name.endswith(("_low", "_high")) and name != "n"]
    known = tuple(shares)

    def share(name: str) -> bool:  # one of them, or one of them of a single class: map50_RBC
        return name in known or name.startswith(tuple(f"{one}_" for one in known))

    return [
        [
            name,
            *(with_interval(m, name, share=share(name)) if name in m else "–" for m in found.values()),
        ]
        for name in names
    ]


def file_size(size: float) -> str:
    """Bytes in the unit that suits: "88.4 KiB"."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    raise AssertionError


def duration(seconds: float) -> str:
    """Seconds as "48.3 s", "3:12" or "1:04:09"."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
