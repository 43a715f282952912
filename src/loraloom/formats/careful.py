"""Opening and parsing what somebody else wrote: regular files alone, JSON in its strict sense, errors of one line."""

from __future__ import annotations

import json
import os
import reprlib
import stat
from pathlib import Path
from typing import Any, BinaryIO

from loraloom.errors import FormatError, LoraloomError, one_error

LONGEST_JSON = 16 * 2**20
"""Bytes of JSON that are parsed: a header of 100,000 tensors has 13 MB, a config a few kilobytes. Parsing takes about
twelve times as much memory as the text, so that this bounds what a hostile file can take."""
_MOST_FAULTS = 20
_FEWEST_BRACKETS, _BYTES_PER_BRACKET = 1000, 8
_BRIEF = reprlib.Repr()
_BRIEF.maxlevel, _BRIEF.maxstring, _BRIEF.maxother, _BRIEF.maxlong = 3, 100, 100, 40


def brief(value: object) -> str:
    """A value from a file for a message: as `repr`, on one line and no longer than a line.

    >>> brief("a" * 1000)[-8:], brief("a\\nb")
    ("aaaaaaa'", "'a\\\\nb'")
    """
    return _BRIEF.repr(value)


def first_faults(title: str, faults: list[str]) -> LoraloomError:
    """A FormatError of the first faults, and how many more there are: a spoilt file has thousands."""
    if len(faults) <= _MOST_FAULTS:
        return one_error(FormatError, title, faults)
    told = [*faults[:_MOST_FAULTS], f"and {len(faults) - _MOST_FAULTS} more"]
    return FormatError("\n  - ".join([f"{title}, {len(faults)} faults:", *told]))


def open_regular(path: Path) -> BinaryIO:
    """Open a file for reading, unbuffered. Raises FormatError for what is no regular file (a pipe would never end),
    OSError where it cannot be opened."""
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        raise FormatError(f"{path} is {'a folder' if stat.S_ISDIR(mode) else 'no regular file'}, expected a file")
    return os.fdopen(descriptor, "rb", buffering=0)


def read_text(path: Path) -> bytes:
    """The bytes of a small text file. Raises FormatError where it cannot be read or is too large for one."""
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size > LONGEST_JSON:
                raise FormatError(f"{path} has {size} bytes, and at most {LONGEST_JSON} are read")
            return file.read(size)
    except OSError as error:
        raise FormatError(f"{path} cannot be read: {error.strerror or error}") from None


def parse_json(raw: bytes | str) -> Any:
    """JSON as its standard has it. Raises ValueError that says what is wrong, also for a name given twice, NaN and
    infinity, for more brackets than any such text has, and for a nest without end."""
    data = raw.encode("utf-8", "surrogatepass") if isinstance(raw, str) else raw
    brackets = data.count(b"[") + data.count(b"{")
    if len(data) > LONGEST_JSON or brackets > _FEWEST_BRACKETS + len(data) // _BYTES_PER_BRACKET:
        raise ValueError(f"{len(data)} bytes with {brackets} brackets are more than is read")
    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=_no_repeats, parse_constant=_no_constant)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"{brief(twice)} is given twice")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")
