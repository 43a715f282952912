"""`loraloom predict`: use a trained model on texts or on every row of a file."""

from __future__ import annotations

import csv
import io
import json as jsonlib
import os
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from loraloom.cli.options import Base, BatchSize, Debug, Json, Run, TextColumn
from loraloom.errors import ConfigError, DataError, OutputError

Row = Mapping[str, Any]


def predict(
    run: Run,
    *,
    text: Annotated[
        list[str], typer.Option(metavar="TEXT", help="A text; repeatable. '-' reads lines from stdin.")
    ] = [],  # noqa: B006 typer wants the default as it is
    data: Annotated[str | None, typer.Option(metavar="FILE", help="Examples, of any kind that train reads.")] = None,
    out: Annotated[
        str | None, typer.Option(metavar="FILE", help="Write the predictions to this .jsonl or .csv file.")
    ] = None,
    base: Base = None,
    batch_size: BatchSize = None,
    text_column: TextColumn = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Use a trained model on new examples."""
    if bool(text) == (data is not None):
        raise ConfigError('predict needs either --text "…" or --data FILE')
    _check_out(out)
    texts = _texts(text)
    from loraloom.cli import output
    from loraloom.cli.opening import note, opened
    from loraloom.training.restore import predict as run_model

    model = opened(run, base=base, batch_size=batch_size, columns={"text": text_column})
    found = run_model(model, texts=texts, source=data, note=note)
    rows = [{"line": entry.example.line, **entry.example.values, **entry.result} for entry in found]
    if out is not None and output.is_main_process():
        _write(Path(out), rows)
    if json:
        output.emit({"run": run, "out": out} if out else {"run": run, "predictions": rows})
    elif out is not None:
        output.say(f"{len(rows)} predictions in {out} ({_counts(rows)})")
    else:
        output.show_table(("line", "text", "label", "score"), [_cells(row) for row in rows])


def _texts(given: Sequence[str]) -> list[str] | None:
    """The texts, with lines of stdin in the place of "-". Raises DataError for one that is empty."""
    texts = [line for entry in given for line in (_stdin() if entry == "-" else [entry])]
    for number, text in enumerate(texts, start=1):
        if not text.strip():
            raise DataError(f"--text: text {number} is empty")
    if given and not texts:
        raise DataError("--text -: stdin held no text")
    return texts or None


def _stdin() -> list[str]:
    """The lines of stdin that are not blank. Raises DataError for bytes that are not UTF-8."""
    stream = sys.stdin.buffer.read() if hasattr(sys.stdin, "buffer") else sys.stdin.read().encode()
    try:
        return [line for line in stream.decode("utf-8-sig").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise DataError(f"--text -: byte {error.start} of stdin is not UTF-8") from None


def _check_out(out: str | None) -> None:
    """Refuse a file that could not be written before any work is done."""
    if out is None:
        return
    path = Path(out)
    if path.suffix not in (".jsonl", ".csv"):
        raise ConfigError(f"--out '{out}': the name must end in .jsonl or .csv")
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise OutputError(f"--out '{out}': {'it is a folder' if path.is_dir() else 'there is no such folder'}")


def _write(path: Path, rows: Sequence[Row]) -> None:
    """Write the rows beside the file, then put them in its place."""
    text = _as_csv(rows) if path.suffix == ".csv" else _as_jsonl(rows)
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_text(text, "utf-8", newline="")
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise OutputError(f"--out '{path}' cannot be written: {error.strerror}") from error


def _as_jsonl(rows: Sequence[Row]) -> str:
    return "".join(jsonlib.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _as_csv(rows: Sequence[Row]) -> str:
    """Columns for the plain values, and one per label for the scores."""
    flat = [
        {
            **{key: value for key, value in row.items() if not isinstance(value, Mapping)},
            **{f"score {name}": score for name, score in row.get("scores", {}).items()},
        }
        for row in rows
    ]
    stream = io.StringIO()
    writer = csv.DictWriter(stream, fieldnames=list(flat[0]) if flat else ["line"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return stream.getvalue()


def _counts(rows: Sequence[Row]) -> str:
    counts = Counter(str(row.get("label")) for row in rows)
    return ", ".join(f"{label} {count}" for label, count in counts.most_common(8))


def _cells(row: Row) -> list[str]:
    return [str(row["line"]), str(row.get("text", "")), str(row.get("label", "")), f"{row.get('score', 0):.3f}"]
