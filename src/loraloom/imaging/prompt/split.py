"""AND: one prompt into parts, each with the `:weight` at its end."""

from __future__ import annotations

import re
from dataclasses import dataclass

from loraloom.imaging.prompt.faults import Faults

_AND = re.compile(r"\bAND\b")
_WEIGHT = re.compile(r"[-+]?(?:\d+\.?|\d*\.\d+)")


@dataclass(frozen=True)
class Piece:
    """What stands between two ANDs."""

    start: int
    """Offset of its first character."""
    text: str
    """Without its weight, and without blanks at its end; those at its start stay, as in the web UI."""
    weight: float


def split_parts(text: str, faults: Faults) -> list[Piece]:
    """The parts of a prompt, at least one; a prompt without AND can have a weight as well."""
    pieces, start = [], 0
    for end, after in [*(found.span() for found in _AND.finditer(text)), (len(text), len(text))]:
        pieces.append(_piece(start, text[start:end]))
        start = after
    if len(pieces) > 1:
        _warn_of_empty(pieces, faults)
    return pieces


def _piece(start: int, text: str) -> Piece:
    head, colon, tail = text.rpartition(":")
    weight = tail.strip()
    if colon and _WEIGHT.fullmatch(weight):
        return Piece(start, head.rstrip(), float(weight))
    return Piece(start, text.rstrip(), 1.0)


def _warn_of_empty(pieces: list[Piece], faults: Faults) -> None:
    for number, piece in enumerate(pieces, 1):
        if not piece.text.strip():
            sentence = f"part {number} of the {len(pieces)} that AND makes is empty; it is drawn as an empty prompt"
            faults.add("empty part", piece.start, sentence)


def warn_of_and(text: str, faults: Faults) -> None:
    """Say of each AND in a prompt that is not split, a negative one."""
    for found in _AND.finditer(text):
        faults.add("negative and", found.start(), "AND is left as text, since a negative prompt has one part")
