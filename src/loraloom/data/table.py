"""From the name of a file or dataset to checked examples that know where they came from."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from loraloom.data.columns import Choice, Role, choose_columns
from loraloom.data.records import Records, places, quoted
from loraloom.data.sources import read_source
from loraloom.errors import ConfigError, DataError, one_error, suggest

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
    where: Mapping[str, Sequence[str]] | None = None,
    skip_bad: bool = False,
) -> Table:
    """Read a .csv, .tsv, .jsonl, .json, .parquet or .txt file, a dataset folder or name, or the packaged set.

    `columns` maps roles to column names; other roles are detected. `required_roles` (all by default) must
    have a column and a value in every row; other roles are read where they are found. Where a dataset has
    splits, `split` is taken, or the first of `prefer_splits` that there is. `where` keeps the rows whose
    column holds one of the values; `skip_bad` leaves out rows that cannot be used, with a note.

    Raises DataError, naming the file and the lines, for whatever cannot be read as it stands; ConfigError
    for settings that do not fit the source.
    """
    records = read_source(source, delimiter=delimiter, split=split, prefer=prefer_splits)
    return table_of(source, records, roles, columns, required_roles, where=where, skip_bad=skip_bad)


def table_of(
    source: str,
    records: Records,
    roles: Sequence[Role],
    columns: Mapping[str, str] | None = None,
    required_roles: Sequence[str] | None = None,
    *,
    where: Mapping[str, Sequence[str]] | None = None,
    skip_bad: bool = False,
) -> Table:
    """Checked examples of what a reader handed on; see `read_table`. Raises DataError, ConfigError."""
    if not len(records.lines):
        raise DataError(f"{source} names the columns {quoted(records.names)} but has no rows")
    records = _kept_rows(source, records, where or {})
    required = [role.name for role in roles] if required_roles is None else list(required_roles)
    chosen = choose_columns(source, records, roles, columns or {}, required)
    cells = {
        role.name: _checked(source, records, role, chosen[role.name], role.name in required, skip_bad)
        for role in roles
        if role.name in chosen
    }
    examples = [
        Example({name: value for name, value in zip(cells, row, strict=True) if value is not None}, source, line)
        for line, row in zip(records.lines, zip(*cells.values(), strict=True), strict=True)
        if _STRANGE not in row
    ]
    skipped = len(records.lines) - len(examples)
    if not examples:
        raise DataError(f"{source}: none of its {skipped} rows can be used")
    return Table(
        name=source,
        examples=examples,
        columns={name: choice.name for name, choice in chosen.items()},
        notes=[*records.notes, *_describe(source, chosen), *_skip_note(source, records, cells, skipped)],
        sha256=records.sha256 or _hash_values(examples),
    )


def _kept_rows(source: str, records: Records, where: Mapping[str, Sequence[str]]) -> Records:
    """The rows whose columns hold what `where` asks for."""
    if not where:
        return records
    kept = list(range(len(records.lines)))
    for column, wanted in where.items():
        if column not in records.names:
            raise ConfigError(
                f"where: {source} has no column {column!r}; it has {quoted(records.names)}"
                f"{suggest(column, records.names)}"
            )
        values = [plain_value(value) for value in records.column(records.names.index(column))]
        if absent := [value for value in wanted if plain_value(value) not in values]:
            raise ConfigError(f"where: no row of {source} has {quoted(absent)} in the column {column!r}")
        accepted = {plain_value(value) for value in wanted}
        kept = [row for row in kept if values[row] in accepted]
    if not kept:
        raise ConfigError(f"where: no row of {source} fulfils all of {dict(where)}")
    told = " and ".join(f"{column} is {' or '.join(map(str, wanted))}" for column, wanted in where.items())
    note = f"{source}: {len(kept)} of {len(records.lines)} rows kept, where {told}"
    column_of = records.column
    return replace(
        records,
        lines=[records.lines[row] for row in kept],
        column=lambda index: [values[row] for values in [column_of(index)] for row in kept],
        notes=[*records.notes, note],
    )


def plain_value(value: Any) -> str:
    """A cell as text for comparison: 1, 1.0 and "1" are the same."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value).strip()


def _skip_note(source: str, records: Records, cells: Mapping[str, list[Any]], skipped: int) -> list[str]:
    """What was left out, with the first of its lines."""
    if not skipped:
        return []
    rows = zip(records.lines, zip(*cells.values(), strict=True), strict=True)
    lines = [line for line, row in rows if _STRANGE in row]
    left_out = "one row" if skipped == 1 else f"{skipped} rows"
    return [f"{source}: {left_out} of {len(records.lines)} left out as unusable ({places(lines, records.unit)})"]


def _describe(source: str, chosen: Mapping[str, Choice]) -> list[str]:
    parts = [f"{role} column {choice.name!r} ({choice.how})" for role, choice in chosen.items()]
    return [f"{source}: {', '.join(parts)}"] if parts else []


def _checked(source: str, records: Records, role: Role, choice: Choice, required: bool, skip_bad: bool) -> list[Any]:
    """A column's values, None for missing; raises DataError for what the role cannot take.

    With `skip_bad` nothing is raised: what cannot be used is `_STRANGE`.
    """
    clean = _CLEANERS[role.kind]
    values, empty, strange = [], [], []
    for line, raw in zip(records.lines, records.column(choice.index), strict=True):
        value = clean(raw)
        if value is _STRANGE:
            strange.append(line)
        elif value is None and required:
            empty.append(line)
        values.append(_STRANGE if value is None and required else value)
    faults = []
    if empty:
        faults.append(f"{_rows(empty)} no {role.name} ({places(empty, records.unit)}); fill it in or remove the row")
    if strange:
        expected = "text" if role.kind == "text" else "text or a number"
        faults.append(f"{_rows(strange)} something other than {expected} ({places(strange, records.unit)})")
    if faults and not skip_bad:
        raise one_error(DataError, f"{source}, column {choice.name!r}", faults)
    return values


def _rows(lines: Sequence[int]) -> str:
    return "one row has" if len(lines) == 1 else f"{len(lines)} rows have"


class _Strange:
    """What a role cannot take."""


_STRANGE = _Strange()


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


def _anything(raw: object) -> object:
    """The value as it stands, None for nothing at all."""
    return None if raw is None or raw == "" or raw == [] else raw


_CLEANERS = {"text": _text, "label": _label, "any": _anything}


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
