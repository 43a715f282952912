"""Near-duplicates among texts, found exactly and in about linear time.

Two texts are near when the sets of their word pairs (with marks for begin and end) overlap by a Jaccard
similarity of at least a threshold. Candidates come from an index over each text's rarest pairs only: the
prefix filter of Bayardo, Ma and Srikant, "Scaling up all pairs similarity search" (WWW 2007), by which
no near pair is lost, as long as no pair is shared by more than `_MOST_SHARED` texts.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

THRESHOLD = 0.6
"""Similarity from which two texts count as near: one word added in eight, or one changed in seven."""

_MOST_SHARED = 400  # keeps texts made from one template from costing time by the square
_WORD = re.compile(r"\w+")

Pairs = frozenset[tuple[str, str]]


def plain_words(text: str) -> list[str]:
    """Words without case, accents written apart, and punctuation; of a text without any, its characters."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return _WORD.findall(folded) or list(folded.replace(" ", ""))


def plain_text(text: str) -> str:
    """What two texts share that are the same but for case, punctuation and spacing."""
    return " ".join(plain_words(text))


def word_pairs(text: str) -> Pairs:
    """The set of neighbouring words, begin and end marked by an empty word."""
    words = ["", *plain_words(text), ""]
    return frozenset(pairwise(words))


def similarity(a: Pairs, b: Pairs) -> float:
    """Jaccard similarity, 0 to 1."""
    shared = len(a & b)
    return shared / (len(a) + len(b) - shared)


@dataclass
class NearIndex:
    """Texts that can be asked for those near to another one."""

    frequency: Counter[tuple[str, str]]
    """How many texts hold each pair, over all that will be added or asked: the order from rare to common."""
    threshold: float = THRESHOLD
    _texts: list[Pairs] = field(default_factory=list)
    _posting: dict[tuple[str, str], list[int]] = field(default_factory=dict)

    def add(self, pairs: Pairs) -> int:
        """Put a text in; returns its number, counted from 0."""
        number = len(self._texts)
        self._texts.append(pairs)
        for pair in self._rarest(pairs):
            posting = self._posting.setdefault(pair, [])
            if len(posting) < _MOST_SHARED:
                posting.append(number)
        return number

    def near(self, pairs: Pairs) -> list[tuple[int, float]]:
        """Numbers and similarities of the texts near to this one, in the order in which they were added."""
        candidates = {number for pair in self._rarest(pairs) for number in self._posting.get(pair, ())}
        size, found = len(pairs), []
        for number in sorted(candidates):
            other = self._texts[number]
            if self.threshold * size <= len(other) <= size / self.threshold:
                score = similarity(pairs, other)
                if score >= self.threshold:
                    found.append((number, score))
        return found

    def _rarest(self, pairs: Pairs) -> list[tuple[str, str]]:
        """So many of the rarest pairs that a near text must share one of them."""
        shared = math.ceil(self.threshold * len(pairs) - 1e-9)  # 0.6 · 5 may be a little more than 3
        enough = len(pairs) - shared + 1
        return sorted(pairs, key=lambda pair: (self.frequency[pair], pair))[:enough]


def pair_frequency(texts: Sequence[Pairs]) -> Counter[tuple[str, str]]:
    """In how many texts each pair occurs."""
    counts: Counter[tuple[str, str]] = Counter()
    for pairs in texts:
        counts.update(pairs)
    return counts
