"""JSON Lines, and JSON files that hold one list of objects."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from loraloom.data.records import Records, decode, digest
from loraloom.errors import DataError

Objects = Iterator[tuple[int, Any]]


def read_json(data: bytes, source: str, _delimiter: str | None = None) -> Records:
    """One object per line, or one list of objects; told apart by the first character. Raises DataError.

    A key that a row lacks counts as null there. Columns come in the order in which they first appear.
    """
    text = decode(data, source)
    objects = _from_list(text, source) if text.lstrip().startswith("[") else _from_lines(text, source)
    rows: list[dict[str, Any]] = []
    lines: list[int] = []
    names: dict[str, None] = {}
    for line, value in objects:
        if not isinstance(value, dict):
            raise DataError(f"{source}:{line}: {_EXPECTED}, found {_kind(value)}")
        names.update(dict.fromkeys(value))
        rows.append(value)
        lines.append(line)
    ordered = tuple(names)
    return Records(
        names=ordered,
        lines=lines,
        column=lambda index: [row.get(ordered[index]) for row in rows],
        sha256=digest(data),
    )


_EXPECTED = 'expected an object such as {"text": "…", "label": "…"}'


def _from_lines(text: str, source: str) -> Objects:
    # not splitlines(): JSON strings may hold U+2028 and the like, which are no line ends here
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            yield number, json.loads(line)
        except ValueError as error:
            raise _broken(source, number, error) from None


def _from_list(text: str, source: str) -> Objects:
    """Step through a list object by object, so that each one's line is known."""
    decoder = json.JSONDecoder()
    at = _skip_space(text, text.index("[") + 1)
    line, counted = 1, 0
    while not text.startswith("]", at):
        line, counted = line + text.count("\n", counted, at), at
        try:
            value, end = decoder.raw_decode(text, at)
        except ValueError as error:
            where = getattr(error, "pos", at)
            raise _broken(source, line + text.count("\n", at, where), error) from None
        yield line, value
        at = _skip_space(text, end)
        if text.startswith(",", at):
            at = _skip_space(text, at + 1)
        elif not text.startswith("]", at):
            raise DataError(f"{source}:{_line(text, at)}: expected ',' or ']' after an object of the list")
    after = _skip_space(text, at + 1)
    if after < len(text):
        raise DataError(f"{source}:{_line(text, after)}: something follows the end of the list")


def _skip_space(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\r\n":
        at += 1
    return at


def _line(text: str, at: int) -> int:
    return text.count("\n", 0, at) + 1


def _broken(source: str, line: int, error: ValueError) -> DataError:
    reason = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
    return DataError(f"{source}:{line}: broken JSON ({reason}); {_EXPECTED} on each line, or one list of them")


def _kind(value: object) -> str:
    names = {list: "a list", str: "a string", bool: "a truth value", type(None): "null"}
    return names.get(type(value), "a number")
