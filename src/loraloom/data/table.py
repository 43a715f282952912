"""From the name of a file or dataset to checked examples that know where they came from."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from loraloom.data.columns import Choice, Role, choose_columns
from loraloom.data.records import Records, places, quoted
from loraloom.data.sources import read_source
from loraloom.errors import DataError, one_error

__all__ = ["Example", "Role", "Table", "read_table"]


@dataclass(frozen=True)
class Example:
    """One row, by role."""

    values: dict[str, Any]
    """Role to value: text is a str, a label is a str, int, float or bool. An optional role may be absent."""
    source: str
    """The file or dataset, as it was given."""
    line: int
    """Line of the file on which the row begins, from 1; for Parquet and datasets the row, from 1."""

    @property
    def place(self) -> str:
        """Where it came from, e.g. ``train.csv:17``, as errors name it."""
        return f"{self.source}:{self.line}"


@dataclass(frozen=True)
class Table:
    """Everything that was read from one source."""

    name: str
    """The source, as it was given."""
    examples: list[Example]
    """In file order."""
    columns: dict[str, str]
    """Role to column name, for the roles that were found."""
    notes: list[str] = field(default_factory=list)
    """One sentence each on what was detected or left out."""
    sha256: str = ""
    """Hex digest of the file's bytes; of the values read where there is no single file."""


def read_table(
    source: str,
    roles: Sequence[Role],
    *,
    columns: Mapping[str, str] | None = None,
    delimiter: str | None = None,
    split: str | None = None,
    prefer_splits: Sequence[str] = ("train",),
    required_roles: Sequence[str] | None = None,
) -> Table:
    """Read a .csv, .tsv, .jsonl, .json or .parquet file, a dataset folder or name, or the packaged set.

    `columns` maps roles to column names; other roles are detected. `required_roles` (all by default) must
    have a column and a value in every row; other roles are read where they are found. Where a dataset has
    splits, `split` is taken, or the first of `prefer_splits` that there is.

    Raises DataError, naming the file and the lines, for whatever cannot be read as it stands; ConfigError
    for settings that do not fit the source.
    """
    records = read_source(source, delimiter=delimiter, split=split, prefer=prefer_splits)
    if not len(records.lines):
        raise DataError(f"{source} names the columns {quoted(records.names)} but has no rows")
    required = [role.name for role in roles] if required_roles is None else list(required_roles)
    chosen = choose_columns(source, records, roles, columns or {}, required)
    found = [role for role in roles if role.name in chosen]
    cells = {role.name: _checked(source, records, role, chosen[role.name], required) for role in found}
    examples = [
        Example({name: value for name, value in zip(cells, row, strict=True) if value is not None}, source, line)
        for line, row in zip(records.lines, zip(*cells.values(), strict=True), strict=True)
    ]
    return Table(
        name=source,
        examples=examples,
        columns={name: choice.name for name, choice in chosen.items()},
        notes=[*records.notes, *_describe(source, chosen)],
        sha256=records.sha256 or _hash_values(examples),
    )


def _describe(source: str, chosen: Mapping[str, Choice]) -> list[str]:
    parts = [f"{role} column {choice.name!r} ({choice.how})" for role, choice in chosen.items()]
    return [f"{source}: {', '.join(parts)}"] if parts else []


def _checked(source: str, records: Records, role: Role, choice: Choice, required: Sequence[str]) -> list[Any]:
    """A column's values, None for missing; raises DataError for what the role cannot take."""
    clean = _text if role.kind == "text" else _label
    values, empty, strange = [], [], []
    for line, raw in zip(records.lines, records.column(choice.index), strict=True):
        value = clean(raw)
        values.append(None if value is _STRANGE else value)
        if value is _STRANGE:
            strange.append(line)
        elif value is None:
            empty.append(line)
    faults = []
    if empty and role.name in required:
        faults.append(f"{_rows(empty)} no {role.name} ({places(empty, records.unit)}); fill it in or remove the row")
    if strange:
        expected = "text" if role.kind == "text" else "text or a number"
        faults.append(f"{_rows(strange)} something other than {expected} ({places(strange, records.unit)})")
    if faults:
        raise one_error(DataError, f"{source}, column {choice.name!r}", faults)
    return values


def _rows(lines: Sequence[int]) -> str:
    return "one row has" if len(lines) == 1 else f"{len(lines)} rows have"


_STRANGE = object()


def _text(raw: object) -> object:
    """The text as it stands, a number as text, None for nothing but space, `_STRANGE` for what is no text."""
    if isinstance(raw, (int, float)) and not isinstance(raw, bool):
        return None if math.isnan(raw) else str(raw)
    return _string(raw)


def _label(raw: object) -> object:
    """The label as it stands, None for nothing, `_STRANGE` for what cannot be one."""
    if isinstance(raw, (int, float)):
        return None if math.isnan(raw) else raw
    return _string(raw)


def _string(raw: object) -> object:
    if raw is None or (isinstance(raw, str) and not raw.strip()):
        return None
    return raw if isinstance(raw, str) and _is_encodable(raw) else _STRANGE


def _is_encodable(text: str) -> bool:
    """False for lone surrogates: JSON can hold them, but no tokenizer takes them."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _hash_values(examples: Sequence[Example]) -> str:
    values = json.dumps([example.values for example in examples], ensure_ascii=True, sort_keys=True)
    return hashlib.sha256(values.encode()).hexdigest()
