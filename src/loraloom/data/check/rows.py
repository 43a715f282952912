"""Rows of a table that is broken in places: what can be read, and a note of each thing that cannot.

A table that reads as it stands is read as training reads it. One that does not is read again, row by row.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loraloom.data.check.part import Part
from loraloom.data.columns import Role, choose_columns
from loraloom.data.config import DataConfig
from loraloom.data.records import Records, decode
from loraloom.data.sources import read_source
from loraloom.data.table import Example
from loraloom.errors import DataError

_BROKEN_MOST = 1_000
"""Unclosed quotation marks after which a file is given up: each costs a reading of the rest of it."""


def read_rows(part: Part, data: DataConfig) -> Records:
    """The rows of a part's source that can be read; what cannot goes to its findings.

    Raises DataError, ConfigError for a source that cannot be read at all.
    """
    try:
        return read_source(part.source, delimiter=data.delimiter, split=part.split, prefer=("train", part.name))
    except DataError:
        path = Path(part.source).expanduser()
        reader = {".csv": _read_csv, ".tsv": _read_csv, ".jsonl": _read_jsonl}.get(path.suffix.lower())
        if reader is None or not path.is_file() or not path.stat().st_size:
            raise
        loose = reader(_text_of(path, part), part, data.delimiter)
        if not loose.lines:
            raise
        return loose.records()


def read_examples(
    part: Part, records: Records, roles: Sequence[Role], given: Mapping[str, str], required: Collection[str]
) -> None:
    """Fill a part with the rows that have a value for every required role; the others are noted.

    Raises DataError, ConfigError where there is no column for a role that is required.
    """
    chosen = choose_columns(part.source, records, roles, given, required)
    part.columns = {role: choice.name for role, choice in chosen.items()}
    part.notes += records.notes
    kinds = {role.name: role.kind for role in roles}
    columns = {role: records.column(choice.index) for role, choice in chosen.items()}
    part.rows += len(records.lines)
    for line, row in zip(records.lines, zip(*columns.values(), strict=True), strict=True):
        values, usable = {}, True
        for role, raw in zip(columns, row, strict=True):
            value, fault = _cell(raw, kinds[role])
            if value is not None:
                values[role] = value
            elif fault or role in required:
                part.findings.add(
                    fault or "row-missing-value", part.at(line), reason=f"{role} column {part.columns[role]!r}"
                )
                usable = False
        if usable:
            part.examples.append(Example(values, part.source, line))


def _cell(raw: Any, kind: str) -> tuple[Any, str]:
    """The value of a cell, None for nothing, and the kind of fault that it is."""
    blank = isinstance(raw, str) and not raw.strip()
    if raw is None or raw == [] or blank or (isinstance(raw, float) and math.isnan(raw)):
        return None, ""
    if kind == "any" or _is_text(raw):
        return raw, ""
    if isinstance(raw, int | float) and (kind == "label" or not isinstance(raw, bool)):
        return (raw if kind == "label" else str(raw)), ""
    return None, "row-wrong-kind"


def _is_text(raw: Any) -> bool:
    """Text that a tokenizer takes: JSON can hold lone surrogates, which none does."""
    if not isinstance(raw, str):
        return False
    try:
        raw.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


@dataclass
class _Loose:
    """Rows that could be read, as they are found."""

    names: dict[str, None] = field(default_factory=dict)
    lines: list[int] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)

    def add(self, line: int, row: dict[str, Any]) -> None:
        self.names.update(dict.fromkeys(row))
        self.lines.append(line)
        self.rows.append(row)

    def records(self) -> Records:
        names = tuple(self.names)
        return Records(names, self.lines, lambda index: [row.get(names[index]) for row in self.rows])


def _text_of(path: Path, part: Part) -> str:
    """The text of a file; where it is not UTF-8, those lines are taken out and noted."""
    data = path.read_bytes()
    try:
        return decode(data, part.source)
    except DataError:
        if data.startswith((b"\xff\xfe", b"\xfe\xff")):
            raise
    kept = []
    for number, line in enumerate(data.split(b"\n"), start=1):
        try:
            kept.append(line.decode("utf-8"))
        except UnicodeDecodeError:
            part.findings.add("unreadable", part.at(number), reason="not UTF-8")
            part.rows += 1
            kept.append("")  # so that the lines after it keep their numbers
    return "\n".join(kept).removeprefix("\ufeff")


def _read_jsonl(text: str, part: Part, _delimiter: str | None) -> _Loose:
    found = _Loose()
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError:
            _note(part, number, "broken JSON")
            continue
        if isinstance(value, dict):
            found.add(number, value)
        else:
            _note(part, number, "no JSON object")
    return found


def _read_csv(text: str, part: Part, delimiter: str | None) -> _Loose:
    """Rows as wide as the header; others, and those with a quote that never closes, are noted."""
    chosen = delimiter or _likely_delimiter(text)
    rows = _csv_rows(text, chosen, part)
    found = _Loose()
    header = next(rows, (1, []))[1]
    names = [name.strip() for name in header]
    found.names.update(dict.fromkeys(names))
    for line, row in rows:
        if len(row) == len(names):
            found.add(line, dict(zip(names, row, strict=True)))
        else:
            _note(part, line, f"{len(row)} fields where the header names {len(names)}")
    return found


def _note(part: Part, line: int, reason: str) -> None:
    part.findings.add("unreadable", part.at(line), reason=reason)
    part.rows += 1


def _likely_delimiter(text: str) -> str:
    first = text.lstrip("\n").partition("\n")[0]
    return max((",", ";", "\t", "|"), key=first.count)


def _csv_rows(text: str, delimiter: str, part: Part) -> Iterator[tuple[int, list[str]]]:
    """Line and fields of each row; after a row that cannot be parsed, reading goes on with the next line."""
    lines = io.StringIO(text, newline="").readlines()
    start, broken = 0, 0
    while start < len(lines):
        reader = csv.reader(iter(lines[start:]), delimiter=delimiter, strict=True)
        begin = start
        try:
            for row in reader:
                if any(value.strip() for value in row):
                    yield begin + 1, row
                begin = start + reader.line_num
            return
        except csv.Error:
            broken += 1
            _note(part, begin + 1, "a quotation mark out of place")
            start = begin + 1
        if broken >= _BROKEN_MOST:
            _note(part, start + 1, "given up after 1,000 broken rows")
            return
