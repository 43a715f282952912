"""CSV and TSV files: which delimiter, which line each row begins on, and what is wrong with them."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from contextlib import contextmanager

from loraloom.data.records import Records, decode, digest, quoted
from loraloom.errors import DataError

_DELIMITERS = (",", ";", "\t", "|")
_NO_DELIMITER = "\x1f"  # the unit separator of ASCII, which no text holds: for files of one column
_SAMPLE = 65_536  # characters looked at to detect the delimiter

Rows = list[list[str]]


def read_csv(data: bytes, source: str, delimiter: str | None) -> Records:
    """Rows of a CSV file, the delimiter given or detected. Raises DataError."""
    return _read(data, source, delimiter, preferred=",")


def read_tsv(data: bytes, source: str, delimiter: str | None) -> Records:
    """Rows of a TSV file: as CSV, but of two delimiters that fit the tab is taken. Raises DataError."""
    return _read(data, source, delimiter, preferred="\t")


def _read(data: bytes, source: str, delimiter: str | None, preferred: str) -> Records:
    text = decode(data, source)
    with _fields_of_any_size():
        found = _detect(text, preferred)
        if delimiter is not None:
            _check_given(text, source, delimiter, found)
        chosen = delimiter or found
        rows, lines, notes = _parse_either(text, source, chosen)
    header, rows, lines = rows[0], rows[1:], lines[1:]
    _check_widths(source, header, rows, lines, chosen)
    kept = [i for i, row in enumerate(rows) if len(row) == 1 or any(field.strip() for field in row)]
    if len(kept) < len(rows):
        notes.append(f"{source}: {len(rows) - len(kept)} rows without any value left out")
        rows, lines = [rows[i] for i in kept], [lines[i] for i in kept]
    if delimiter is None and chosen != _NO_DELIMITER:
        notes.insert(0, f"{source}: delimiter {chosen!r} (detected)")
    return Records(
        names=tuple(name.strip() for name in header),
        lines=lines,
        column=lambda index: [row[index] for row in rows],
        notes=notes,
        sha256=digest(data),
    )


@contextmanager
def _fields_of_any_size() -> Iterator[None]:
    """Lift the csv module's limit of 131,072 characters a field, which is one for the whole process."""
    before = csv.field_size_limit(2**31 - 1)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _detect(text: str, preferred: str) -> str:
    """The delimiter that splits the header and then the same number of fields from most rows."""
    sample = text[:_SAMPLE]
    best, best_score = _NO_DELIMITER, (0.0, 0)
    for delimiter in sorted(_DELIMITERS, key=lambda one: one != preferred):
        if delimiter not in sample:
            continue
        rows = [row for row in csv.reader(io.StringIO(sample, newline=""), delimiter=delimiter) if row]
        if len(sample) < len(text) and len(rows) > 2:
            rows.pop()  # cut in the middle
        width = len(rows[0])
        score = (sum(len(row) == width for row in rows) / len(rows), width)
        if width > 1 and score > best_score:
            best, best_score = delimiter, score
    return best


def _check_given(text: str, source: str, given: str, found: str) -> None:
    """Refuse a given delimiter that leaves one column where another finds several."""
    if found in (given, _NO_DELIMITER):
        return
    first = next(row for row in csv.reader(io.StringIO(text, newline=""), delimiter=given) if row)
    if len(first) == 1:
        better = next(row for row in csv.reader(io.StringIO(text, newline=""), delimiter=found) if row)
        raise DataError(
            f"{source}:1: with the delimiter {given!r} the file has one column, {first[0]!r}; the delimiter "
            f"{found!r} gives {len(better)}: {quoted(better)}"
        )


def _parse_either(text: str, source: str, delimiter: str) -> tuple[Rows, list[int], list[str]]:
    """Parse with quoting; a tab-separated file that makes no sense so is read with quotes as plain text."""
    try:
        rows, lines = _parse(text, source, delimiter, csv.QUOTE_MINIMAL)
        if delimiter == "\t":
            _check_widths(source, rows[0], rows[1:], lines[1:], delimiter)
    except DataError:
        if delimiter != "\t":
            raise
        plain, lines = _parse(text, source, delimiter, csv.QUOTE_NONE)
        if any(len(row) != len(plain[0]) for row in plain):
            raise
        return plain, lines, [f"{source}: quotation marks are read as part of the text"]
    return rows, lines, []


def _parse(text: str, source: str, delimiter: str, quoting: int) -> tuple[Rows, list[int]]:
    """Rows that are not blank lines, and the line each begins on: a quoted field may span several."""
    # newline="" leaves line breaks within fields as they are; strict refuses what csv would otherwise
    # guess at, such as a quote that is never closed and would swallow the rest of the file
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, quoting=quoting, strict=True)  # type: ignore[arg-type]
    rows: Rows = []
    lines: list[int] = []
    start = 1
    try:
        for row in reader:
            if row:
                rows.append(row)
                lines.append(start)
            start = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{source}:{start}: {_explain(error, delimiter)}") from None
    return rows, lines


def _explain(error: csv.Error, delimiter: str) -> str:
    message = str(error)
    if "unexpected end" in message:
        return 'a field that begins with " on this line is never closed; end it with "'
    if "expected after" in message:
        return (
            f'a closing " is followed by something other than {delimiter!r} or the end of the line; write a '
            'quotation mark within a quoted field twice ("")'
        )
    return f"the row cannot be read ({message})"


def _check_widths(source: str, header: list[str], rows: Rows, lines: list[int], delimiter: str) -> None:
    """Raise one DataError that names the rows with more or fewer fields than the header."""
    wrong = [(line, len(row)) for line, row in zip(lines, rows, strict=True) if len(row) != len(header)]
    if not wrong:
        return
    shown = ", ".join(f"line {line} has {width}" for line, width in wrong[:5])
    more = f" and {len(wrong) - 5} more rows differ" if len(wrong) > 5 else ""
    raise DataError(
        f"{source}:{wrong[0][0]}: the header names {len(header)} columns ({quoted(header)}), but {shown}"
        f"{more}; put text that holds {delimiter!r} between quotation marks"
    )
