"""Predictions as a .jsonl or .csv file, in place whole or not at all."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from loraloom.errors import ConfigError, OutputError

Row = Mapping[str, Any]


def check_out(out: str | None) -> None:
    """Refuse a file that could not be written before any work is done. Raises ConfigError, OutputError."""
    if out is None:
        return
    path = Path(out)
    if path.suffix not in (".jsonl", ".csv"):
        raise ConfigError(f"--out '{out}': the name must end in .jsonl or .csv")
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise OutputError(f"--out '{out}': {'it is a folder' if path.is_dir() else 'there is no such folder'}")


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Write the rows beside the file, then put them in its place. Raises OutputError."""
    text = as_csv(rows) if path.suffix == ".csv" else as_jsonl(rows)
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_text(text, "utf-8", newline="")
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise OutputError(f"--out '{path}' cannot be written: {error.strerror}") from error


def as_jsonl(rows: Sequence[Row]) -> str:
    """One JSON object a line."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def as_csv(rows: Sequence[Row]) -> str:
    """Columns for the plain values, one per label for the scores, and JSON in the cells of what is nested."""
    flat = [{**_cells(row), **_score_columns(row)} for row in rows]
    names = list(dict.fromkeys(name for row in flat for name in row)) or ["line"]
    stream = io.StringIO()
    writer = csv.DictWriter(stream, fieldnames=names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return stream.getvalue()


def _cells(row: Row) -> dict[str, Any]:
    return {
        key: json.dumps(value, ensure_ascii=False) if isinstance(value, list | Mapping) else value
        for key, value in row.items()
        if key != "scores"
    }


def _score_columns(row: Row) -> dict[str, Any]:
    return {f"score {name}": score for name, score in row.get("scores", {}).items()}
