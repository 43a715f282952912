"""What was said, as text: how transcripts are spelt, which characters they need, and how they are scored."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Iterable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from loraloom.errors import DataError, MissingExtraError
from loraloom.tasks.intervals import wilson_interval

Normalisation = Literal["basic", "none"]

NORMALISATIONS: dict[str, str] = {
    "basic": "Unicode NFKC, lower case, punctuation and symbols removed but for apostrophes inside of words, "
    "white space joined",
    "none": "as written, white space joined",
}
"""What each normalisation does to predictions and references alike before they are compared."""

BLANK, UNKNOWN, DELIMITER = "<pad>", "<unk>", "|"
"""Pieces of a new vocabulary beside its characters; their ids are 0, 1 and 2."""


class Span(NamedTuple):
    """A word, or a segment of several, and when it was said."""

    text: str
    start: float
    """Seconds from the beginning of the recording."""
    end: float


class Heard(NamedTuple):
    """What a model wrote of one window."""

    text: str
    spans: list[Span]
    """Empty where the model tells no times."""


_APOSTROPHES = str.maketrans("’ʼ＇`", "''''")
_OUTER_APOSTROPHE = re.compile(r"(?<!\w)'|'(?!\w)")


def normalise(text: str, how: Normalisation = "basic") -> str:
    """A transcript as it is compared; NORMALISATIONS states what is done to it.

    >>> normalise("  Don't stop — the 'Ｃａｒ'!  ")
    "don't stop the car"
    """
    if how == "basic":
        text = unicodedata.normalize("NFKC", text).lower().translate(_APOSTROPHES)
        text = _OUTER_APOSTROPHE.sub(" ", text)
        text = "".join(character if _is_spoken(character) else " " for character in text)
    return " ".join(text.split())


def _is_spoken(character: str) -> bool:
    """Whether a character is part of a word: a letter, a mark on one, a digit or an apostrophe."""
    return character == "'" or unicodedata.category(character)[0] in "LMN"


def characters_of(texts: Iterable[str]) -> list[str]:
    """Every character of the texts but white space, by code point."""
    return sorted({character for text in texts for character in text if not character.isspace()})


def character_vocabulary(texts: Iterable[str]) -> dict[str, int]:
    """Piece to id: blank, unknown, the delimiter of words, and every character that occurs."""
    pieces = [BLANK, UNKNOWN, DELIMITER, *(piece for piece in characters_of(texts) if piece != DELIMITER)]
    return {piece: number for number, piece in enumerate(pieces)}


def fit_text(text: str, known: Collection[str]) -> tuple[str, list[str]]:
    """A transcript in the characters of a vocabulary, and those of its characters that are not known.

    Case is folded where the vocabulary has one case only, and punctuation that it lacks is dropped.
    """
    text = " ".join(unicodedata.normalize("NFKC", text).translate(_APOSTROPHES).split())
    folded = "".join(_fold(character, known) for character in text)
    kept = "".join(one for one in folded if one in known or one.isspace() or _is_spoken(one))
    unknown = sorted({one for one in kept if one not in known and not one.isspace() and one != "'"})
    kept = kept if "'" in known else kept.replace("'", "")
    return " ".join(kept.split()), unknown


def _fold(character: str, known: Collection[str]) -> str:
    """The character, or its other case where only that one is known."""
    others = (character, character.lower(), character.upper())
    return next((one for one in others if one in known), character)


# --- scores


def score_transcripts(
    predicted: Sequence[str], references: Sequence[str], how: Normalisation = "basic"
) -> dict[str, float]:
    """Word and character error rates by jiwer over all utterances, with 95 % intervals, and n.

    A rate is (substitutions + deletions + insertions) / length of the references, so that it may exceed 1.
    The interval is a percentile bootstrap over utterances (Bisani & Ney 2004), always with the same draws.
    Raises DataError when no reference has a word, MissingExtraError without jiwer.
    """
    jiwer = _jiwer()
    pairs = [
        (normalise(reference, how), normalise(text, how)) for reference, text in zip(references, predicted, strict=True)
    ]
    scores: dict[str, float] = {}
    for name, count, size in (
        ("wer", jiwer.process_words, lambda text: len(text.split())),
        ("cer", jiwer.process_characters, len),
    ):
        errors, lengths = np.array([_errors(count, size, *pair) for pair in pairs], dtype=np.float64).reshape(-1, 2).T
        if not lengths.sum():
            raise DataError("evaluation: there is no transcript with a word to score against")
        low, high = _interval(errors, lengths)
        scores |= {name: float(errors.sum() / lengths.sum()), f"{name}_low": low, f"{name}_high": high}
    return {**scores, "n": float(len(pairs))}


def _errors(count: Any, size: Any, reference: str, text: str) -> tuple[int, int]:
    """Errors of one utterance and the length of its reference; jiwer takes no empty reference."""
    if not reference:
        return size(text), 0
    found = count(reference, text)
    return found.substitutions + found.deletions + found.insertions, size(reference)


def _interval(
    errors: NDArray[np.float64], lengths: NDArray[np.float64], *, resamples: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """95 % bounds of errors / lengths, both (U,), when whole utterances are drawn again.

    Where there is no error to draw, the upper one is Wilson's for none of U utterances: that none was made does not
    say that none will be.
    """
    if not errors.any():
        return wilson_interval(0, len(errors))
    generator = np.random.default_rng(seed)
    share = np.full(len(errors), 1 / len(errors))
    rates = []
    for _ in range(resamples):
        drawn = generator.multinomial(len(errors), share)
        if total := drawn @ lengths:
            rates.append(drawn @ errors / total)
    low, high = np.quantile(rates, [0.025, 0.975])
    return float(low), float(high)


def _jiwer() -> Any:
    try:
        import jiwer
    except ImportError as error:
        raise MissingExtraError('speech is scored by jiwer; pip install "loraloom[speech]"') from error
    return jiwer
