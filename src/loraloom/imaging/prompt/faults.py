"""What is odd about a prompt, gathered while it is read: a place and a sentence each, never an exception."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence

MOST = 3
"""Faults of one kind that are told one by one; the rest is counted."""


class Places:
    """Where the characters of a text stood before pieces were cut out of it.

    `cuts` are the (start, end) ranges that were removed, in their order, as offsets into the original.
    """

    def __init__(self, cuts: Sequence[tuple[int, int]] = ()) -> None:
        self._starts, self._removed, removed = [0], [0], 0
        for start, end in cuts:
            self._starts.append(start - removed)
            removed += end - start
            self._removed.append(removed)

    def original(self, offset: int) -> int:
        """The offset into the original of the character at `offset` of what is left."""
        return offset + self._removed[bisect_right(self._starts, offset) - 1]


class Faults:
    """Warnings of one prompt. `add` takes offsets into the text of the stage that is being read."""

    def __init__(self) -> None:
        self._told: list[tuple[int, str]] = []
        self._counts: Counter[str] = Counter()
        self._last: dict[str, int] = {}
        self.places, self.shift = Places(), 0

    def add(self, kind: str, offset: int, sentence: str) -> None:
        """Note `sentence` at `offset`; of each `kind` the first few are told, then they are counted."""
        place = self.places.original(offset + self.shift)
        self._counts[kind] += 1
        if self._counts[kind] <= MOST:
            self._told.append((place, f"character {place + 1}: {sentence}"))
            self._last[kind] = len(self._told) - 1

    def full(self, kind: str) -> bool:
        """Whether a further fault of a kind would only be counted."""
        return self._counts[kind] >= MOST

    def sentences(self) -> tuple[str, ...]:
        """All warnings in the order of the prompt, places counted from 1."""
        told = list(self._told)
        for kind, count in self._counts.items():
            if count > MOST:
                index = self._last[kind]
                place, sentence = told[index]
                told[index] = (place, f"{sentence} (and {count - MOST:,} more of this kind)")
        return tuple(sentence for _, sentence in sorted(told, key=lambda entry: entry[0]))


def quoted(text: str, most: int = 24) -> str:
    """A piece of a prompt as a warning shows it: in quotes, on one line, cut where it is long."""
    return repr(text if len(text) <= most else f"{text[: most - 1]}…")
