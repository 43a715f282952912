"""`loraloom predict`: use a trained model on texts, on files, or on every row of a table."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from loraloom.cli.options import Base, BatchSize, Debug, Flag, Json, Run, TextColumn, settings_flags
from loraloom.cli.rows import check_out, write_rows
from loraloom.errors import ConfigError, DataError
from loraloom.tasks.answers import AnswerOptions

Row = Mapping[str, Any]

FLAGS = tuple(Flag(f"--{name.replace('_', '-')}", name, field) for name, field in AnswerOptions.model_fields.items())


@settings_flags(FLAGS)
def predict(
    run: Run,
    *,
    text: Annotated[
        list[str], typer.Option(metavar="TEXT", help="A text; repeatable. '-' reads lines from stdin.")
    ] = [],  # noqa: B006 typer wants the default as it is
    file: Annotated[list[str], typer.Option(metavar="FILE", help="A picture or recording; repeatable.")] = [],  # noqa: B006
    data: Annotated[
        str | None, typer.Option(metavar="PATH", help="Examples, of any kind that train reads: a table or a folder.")
    ] = None,
    out: Annotated[
        str | None, typer.Option(metavar="FILE", help="Write the predictions to this .jsonl or .csv file.")
    ] = None,
    save: Annotated[
        str | None, typer.Option(metavar="DIR", help="Write pictures with boxes, or recordings, into this folder.")
    ] = None,
    stream: Annotated[bool, typer.Option("--stream", help="Print text as it is written.")] = False,
    base: Base = None,
    batch_size: BatchSize = None,
    text_column: TextColumn = None,
    json: Json = False,
    debug: Debug = False,
    settings: Mapping[str, Any],
) -> None:
    """Use a trained model on new examples."""
    if sum((bool(text), bool(file), data is not None)) != 1:
        raise ConfigError('predict needs either --text "…", --file FILE or --data PATH')
    if stream and json:
        raise ConfigError("--stream prints text as it is written; leave out --json")
    check_out(out)
    texts = _texts(text)
    from loraloom.cli import output
    from loraloom.cli.opening import note, opened
    from loraloom.training.use import predict as run_model

    model = opened(run, base=base, batch_size=batch_size, columns={"text": text_column})
    found = run_model(
        model,
        texts=texts,
        files=file or None,
        source=data,
        options=answer_options(settings),
        save=Path(save) if save is not None else None,
        say=_say if stream else None,
        note=note,
    )
    rows = [{"line": entry.example.line, **entry.example.values, **entry.result} for entry in found]
    if out is not None and output.is_main_process():
        write_rows(Path(out), rows)
    if json:
        output.emit({"run": run, "out": out} if out else {"run": run, "predictions": rows})
    elif out is not None:
        output.say(f"{len(rows)} predictions in {out}{_counts(rows)}")
    elif stream:
        output.say("")
    else:
        _show(rows, output.show_table, texts is None and data is None)


def answer_options(settings: Mapping[str, Any]) -> AnswerOptions:
    """The options as the task takes them. Raises ConfigError for a value that cannot be."""
    from loraloom.training.settings_file import read_settings

    return read_settings(AnswerOptions, None, settings)


def _say(piece: str) -> None:
    print(piece, end="", flush=True)


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


def _counts(rows: Sequence[Row]) -> str:
    """How often each label was told, where labels are told."""
    counts = Counter(str(row["label"]) for row in rows if "label" in row)
    shown = ", ".join(f"{label} {count}" for label, count in counts.most_common(8))
    return f" ({shown})" if shown else ""


_ASKED = ("file", "text", "source", "prompt")
_HIDDEN = {"line", "sha256", "width", "height", "rate", "channels", "messages", "scores", "words", "boxes", "labels"}


def _show(rows: Sequence[Row], show_table: Callable[..., None], by_file: bool) -> None:
    """A table of what was asked and what was answered, the plain values of each."""
    told = list(dict.fromkeys(name for row in rows for name, value in row.items() if _is_plain(name, value)))
    columns = ["line", *sorted(told, key=lambda name: name not in _ASKED)]
    if any("boxes" in row for row in rows):
        columns.append("boxes")
    show_table(columns, [[_cell(name, row.get(name, "")) for name in columns] for row in rows])


def _is_plain(name: str, value: Any) -> bool:
    return name not in _HIDDEN and isinstance(value, str | int | float)


def _cell(name: str, value: Any) -> str:
    if name == "boxes":
        counts = Counter(box["label"] for box in value if isinstance(box, Mapping) and "label" in box)
        return ", ".join(f"{count} {label}" for label, count in counts.most_common()) or "none"
    return f"{value:.3f}" if isinstance(value, float) else str(value)
