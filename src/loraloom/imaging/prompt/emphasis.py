"""Brackets as weights: `(x)` × 1.1, `[x]` ÷ 1.1, `(x:1.3)` × 1.3, and BREAK.

Each closing bracket multiplies everything since its opening one, in the order of the closing brackets, then the
unclosed round ones are applied, then the unclosed square ones. Products are rounded in just that order, so that
they equal those of the web UI's `parse_prompt_attention` to the last bit.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from loraloom.imaging.prompt.parsed import Segment

Floats = NDArray[np.float64]

ROUND, SQUARE = 1.1, 1 / 1.1

_TOKEN = re.compile(r"\\[()\[\]\\]|\\|[(\[]|:\s*([+-]?[.\d]+)\s*\)|[)\]]|[^\\()\[\]:]+|:")
_BREAK = re.compile(r"\bBREAK\b")

_SMALLEST = float(np.finfo(np.float64).tiny)
_SWEEP = 128  # brackets between two looks for numbers too small to be fast


@dataclass
class _Read:
    """A prompt cut at its brackets."""

    pieces: list[str] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    closed: list[tuple[int, int, float]] = field(default_factory=list)
    """(first piece, piece after the last, factor) of each closed bracket, in the order of closing."""
    rounds: list[int] = field(default_factory=list)
    """First pieces of the round brackets that are open."""
    squares: list[int] = field(default_factory=list)

    def add(self, text: str, weight: float = 1.0) -> None:
        self.pieces.append(text)
        self.weights.append(weight)

    def close(self, opened: list[int], factor: float) -> None:
        self.closed.append((opened.pop(), len(self.pieces), factor))


def parse_emphasis(text: str) -> list[Segment]:
    """The runs of equal weight in a text whose tags, ANDs and schedules are read already; at least one.

    A BREAK is `Segment("BREAK", -1.0)`; within brackets its weight is multiplied like any other, and it then
    breaks nothing, as in the web UI. A number that is none, as in `(x:1.2.3)`, is text. Weights may be infinite.

    >>> parse_emphasis("a (((house:1.3)) [on")
    [Segment(text='a ', weight=1.0), Segment(text='house', weight=1.5730000000000004), \
Segment(text=' ', weight=1.1), Segment(text='on', weight=1.0)]
    """
    read = _read(text)
    if not read.pieces:
        return [Segment("", 1.0)]
    weights = np.array(read.weights)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        _apply(weights, read.closed)
        _apply_unclosed(weights, read.rounds, ROUND)
        _apply_unclosed(weights, read.squares, SQUARE)
    runs = groupby(zip(read.pieces, weights.tolist(), strict=True), key=lambda run: run[1])
    return [Segment("".join(piece for piece, _ in run), weight) for weight, run in runs]


def as_number(text: str) -> float | None:
    """The number that a weight is, or None: "1.3" and "-.5", but not "1.2.3" or "."."""
    try:
        return float(text)
    except ValueError:
        return None


def _read(text: str) -> _Read:
    read = _Read()
    for found in _TOKEN.finditer(text):
        token, number = found[0], found[1]
        if token[0] == "\\":
            read.add(token[1:])
        elif token == "(":
            read.rounds.append(len(read.pieces))
        elif token == "[":
            read.squares.append(len(read.pieces))
        elif token == "]" and read.squares:
            read.close(read.squares, SQUARE)
        elif token[-1] == ")" and read.rounds:
            _close_round(read, token, number)
        else:
            _add_text(read, token)
    return read


def _close_round(read: _Read, token: str, number: str | None) -> None:
    factor = ROUND if number is None else as_number(number)
    if factor is None:
        _add_text(read, token[:-1])
        factor = ROUND
    read.close(read.rounds, factor)


def _add_text(read: _Read, text: str) -> None:
    """Text with its BREAKs; the blanks around one go with it."""
    if "BREAK" not in text:
        read.add(text)
        return
    parts = _BREAK.split(text)
    for index, part in enumerate(parts):
        # Not `\s*BREAK\s*` in the expression: that takes a time quadratic in the length of a run of blanks.
        if index > 0:
            read.add("BREAK", -1.0)
            part = part.lstrip()
        read.add(part.rstrip() if index + 1 < len(parts) else part)


def _apply(weights: Floats, closed: list[tuple[int, int, float]]) -> None:
    """Multiply the ranges in place, one bracket after the other: no shorter way rounds alike."""
    for index, (start, end, factor) in enumerate(closed, 1):
        weights[start:end] *= factor
        if index % _SWEEP == 0:  # thousands of nested "[": subnormal numbers cost a hundred times as much
            inner = weights[start:end]
            inner[np.abs(inner) < _SMALLEST] = 0.0


def _apply_unclosed(weights: Floats, starts: list[int], factor: float) -> None:
    """Multiply everything after each of `starts`, in place: every piece as often as brackets are open before it.

    Pieces of equal weight go the same way, so that the steps are done once for each distinct weight, until
    further ones change nothing, after some 7,500 for 1.1.
    """
    if not starts:
        return
    times = np.searchsorted(np.array(starts), np.arange(len(weights)), side="right")
    values, kinds = np.unique(weights, return_inverse=True)
    bounds = np.searchsorted(times, np.arange(times[-1] + 2)) if len(times) else np.array([0])
    for count in range(int(times[-1]) + 1):
        following = values * factor
        still = np.array_equal(following, values, equal_nan=True)
        here = slice(bounds[count], None if still else bounds[count + 1])
        weights[here] = values[kinds[here]]
        if still:
            break
        values = following
