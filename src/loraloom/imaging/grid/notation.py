"""How the values of an axis are written: lists, ranges, several texts, lines of a file.

0, 0.5, 1        a list
1..4             a range with both ends, of whole numbers by ones
0..1/0.25        a range with a step
0..1[5]          a range in so many values
a cat | a boat   texts; a bar within square brackets belongs to the text, since prompts alternate so: [red|blue]
@prompts.txt     every line of a file that is not blank
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation
from pathlib import Path

from loraloom.errors import ConfigError, DataError

MOST_VALUES = 1000
"""Values of one axis, at most."""

_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_RANGE = re.compile(rf"({_NUMBER})\s*\.\.\s*({_NUMBER})\s*(?:/\s*({_NUMBER})|\[\s*(\d+)\s*\])?")
_MOST_DIGITS, _MOST_EXPONENT = 40, 20


def split_list(text: str) -> list[str]:
    """The entries of a list: between bars where there are any, else between commas. Raises ConfigError."""
    return _entries(split_texts(text) if "|" in text else text.split(","), text)


def split_texts(text: str) -> list[str]:
    """Texts between bars, except for bars within square brackets that are closed; or the lines of ``@FILE``.

    >>> split_texts("a [red|blue] cat | a boat")
    ['a [red|blue] cat', 'a boat']
    """
    if text.startswith("@"):
        return _lines(Path(os.path.expanduser(text[1:])))
    closing = _closing_brackets(text)
    pieces, start, depth = [], 0, 0
    for place, character in enumerate(text):
        if place in closing:
            depth += closing[place]
        elif character == "|" and not depth:
            pieces.append(text[start:place].strip())
            start = place + 1
    return [*pieces, text[start:].strip()]


def _closing_brackets(text: str) -> dict[int, int]:
    """+1 and −1 at the places of square brackets that have their other half."""
    waiting: list[int] = []
    found: dict[int, int] = {}
    for place, character in enumerate(text):
        if character == "[" and text[place - 1 : place] != "\\":
            waiting.append(place)
        elif character == "]" and waiting and text[place - 1] != "\\":
            found |= {waiting.pop(): 1, place: -1}
    return found


def _entries(pieces: Sequence[str], text: str) -> list[str]:
    """Pieces without the blanks around them. Raises ConfigError for an empty one."""
    found = [piece.strip() for piece in pieces]
    if not any(found):
        raise ConfigError("there are no values; write some, such as 1, 2, 3 or 1..3")
    if "" in found:
        raise ConfigError(f"{text!r} has nothing between two of its separators")
    return found


def _lines(path: Path) -> list[str]:
    try:
        lines = [line.strip() for line in path.read_text("utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise DataError(f"'{path}': byte {error.start} is not UTF-8") from None
    except (OSError, ValueError) as error:  # ValueError: a name with a zero in it
        raise DataError(
            f"'{path}' cannot be read: {(getattr(error, 'strerror', None) or str(error)).lower()}"
        ) from None
    if not any(lines):
        raise DataError(f"'{path}' has no lines with text")
    return [line for line in lines if line]


def numbers(text: str, *, whole: bool) -> tuple[float, ...]:
    """The numbers of a list with ranges, each exactly as it would be written: 0..1/0.1 holds 0.3.

    `whole` accepts integers alone, and gives integers. Raises ConfigError.
    """
    found: list[Decimal] = []
    for entry in _entries(text.split(","), text):
        found.extend(_range(entry) if ".." in entry else [_decimal(entry)])
        if len(found) > MOST_VALUES:
            raise ConfigError(f"{text!r} has more than {MOST_VALUES:,} values")
    for number in found if whole else ():
        if number != number.to_integral_value():
            raise ConfigError(f"{number:f} is not a whole number")
    return tuple(int(number) if whole else float(number) for number in found)


def _decimal(text: str) -> Decimal:
    if len(text) > _MOST_DIGITS or not re.fullmatch(_NUMBER, text):
        raise ConfigError(f"{text[:_MOST_DIGITS]!r} is not a number, nor a range such as 1..4 or 0..1/0.25")
    number = Decimal(text)
    if number and abs(number.adjusted()) > _MOST_EXPONENT:
        raise ConfigError(f"{text!r} is out of every sensible range")
    return number


def _range(text: str) -> list[Decimal]:
    """The values of one range, both ends included; downwards where its first end is the higher."""
    found = _RANGE.fullmatch(text)
    if found is None:
        raise ConfigError(f"{text!r} is not a range; it is written as 1..4, 0..1/0.25 or 0..1[5]")
    first, last = _decimal(found[1]), _decimal(found[2])
    if found[4] is not None:
        return _spaced(first, last, int(found[4][:9]), text)
    if found[3] is None and (first % 1 or last % 1):
        raise ConfigError(f"{text!r} needs a step, such as {text}/0.25, or a number of values, such as {text}[5]")
    step = _decimal(found[3] or "1")
    if step <= 0:
        raise ConfigError(f"{text!r} never ends: its step must be more than 0")
    try:
        count = int(abs(last - first) // step) + 1
    except InvalidOperation:
        count = MOST_VALUES + 1
    _check_count(count, text)
    return [first + step * index * (1 if last >= first else -1) for index in range(count)]


def _spaced(first: Decimal, last: Decimal, count: int, text: str) -> list[Decimal]:
    _check_count(count, text)
    if count < 1 or (count == 1 and first != last):
        raise ConfigError(f"{text!r} has two ends, so at least 2 values")
    steps = max(1, count - 1)
    return [first + (last - first) * index / steps for index in range(count)]


def _check_count(count: int, text: str) -> None:
    if count > MOST_VALUES:
        raise ConfigError(f"{text!r} has {count:,} values; {MOST_VALUES:,} are the most")


def split_words(text: str) -> list[str]:
    """Words between blanks; quotes hold blanks together, a backslash is a letter. Raises ConfigError."""
    reader = shlex.shlex(text, posix=True, punctuation_chars="")
    reader.whitespace_split, reader.commenters, reader.escape = True, "", ""
    try:
        return list(reader)
    except ValueError:
        raise ConfigError(f"{text!r} has a quote that never closes") from None
