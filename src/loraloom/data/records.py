"""What every reader hands on: columns, rows and the line each row began on. And bytes into text."""

from __future__ import annotations

import codecs
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from loraloom.errors import DataError

Unit = Literal["line", "row"]


@dataclass(frozen=True)
class Records:
    """A file or dataset as columns, before anything is known of their meaning."""

    names: tuple[str, ...]
    """Column names, in file order; a file may repeat one."""
    lines: Sequence[int]
    """Per row, where it began, from 1."""
    column: Callable[[int], list[Any]]
    """All values of the n-th column: lazy, because a Parquet file may hold pictures beside its text."""
    notes: list[str] = field(default_factory=list)
    sha256: str | None = None
    """Of the file's bytes; None where there is no single file."""
    unit: Unit = "line"
    """What `lines` counts."""


MOST_NAMED = 5
"""How many of many faults a sentence names."""


def first_few(faults: Sequence[str], most: int = MOST_NAMED) -> str:
    """The first faults, and how many more there are.

    >>> first_few(["a.png is empty", "b.png is no picture", "c.png is empty"], most=2)
    'a.png is empty; b.png is no picture; and 1 more'
    """
    more = [f"and {len(faults) - most} more"] if len(faults) > most else []
    return "; ".join([*faults[:most], *more])


def cannot_be_used(source: str, what: str, faults: Sequence[str]) -> str:
    """A sentence on the faults of a source, `what` being what has them in the plural; of a single one, itself."""
    return faults[0] if len(faults) == 1 else f"{source}: {len(faults)} {what} cannot be used: {first_few(faults)}"


def digest(data: bytes) -> str:
    """Hex sha256 of a file's bytes."""
    return hashlib.sha256(data).hexdigest()


def decode(data: bytes, source: str) -> str:
    """The text of a UTF-8 file, without its byte order mark.

    Raises DataError for a file without text, and for bytes that are not UTF-8: with line and offset.
    """
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise DataError(f"{source}:1: the file is UTF-16, expected UTF-8; save it again as UTF-8")
    body = data.removeprefix(codecs.BOM_UTF8)
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        offset = error.start + len(data) - len(body)
        line = data.count(b"\n", 0, offset) + 1
        raise DataError(
            f"{source}:{line}: byte {data[offset]:#04x} at offset {offset} is not UTF-8; save the file again "
            "as UTF-8 (it may be Latin-1 or Windows-1252)"
        ) from None
    if not text.strip():
        raise DataError(f"{source} is empty; expected at least one example")
    return text


def quoted(names: Sequence[str], most: int = 10) -> str:
    """``'a', 'b'``: for errors; of a long list the first `most` and how many more there are."""
    shown = ", ".join(repr(name) for name in names[:most])
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown


def places(lines: Sequence[int], unit: Unit, most: int = 5) -> str:
    """``line 3`` or ``lines 3, 8 and 2 more``: for errors."""
    shown = ", ".join(map(str, lines[:most]))
    plural = unit if len(lines) == 1 else f"{unit}s"
    return f"{plural} {shown}" + (f" and {len(lines) - most} more" if len(lines) > most else "")
