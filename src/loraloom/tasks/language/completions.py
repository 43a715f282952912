"""Texts, prompts with completions and dialogues as tokens, with a mark on those that are learnt."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from loraloom.errors import BaseModelError
from loraloom.tasks.language.chat import Dialogue

Ids = NDArray[np.int64]
Marks = NDArray[np.bool_]


@dataclass(frozen=True)
class Passage:
    """A stretch of tokens that is read on its own: a document, a window of a long one, a prompt and its answer."""

    ids: Ids
    """(T,)"""
    targets: Marks
    """(T,): the tokens that are learnt and scored. Never the first one, which nothing comes before."""
    document: int
    """Which document it is of."""
    size: int
    """Bytes of UTF-8 that the targets stand for; of a document in windows, its first one has them all."""
    cut: bool = False
    """Whether tokens beyond the limit were left out."""


@dataclass(frozen=True)
class Speller:
    """Turns text into tokens as one model expects them."""

    tokenizer: PreTrainedTokenizerBase
    start: tuple[int, ...]
    """The token before every document, so that its first word is foretold too; empty where there is none."""
    end: tuple[int, ...]
    """The token after every document; empty where there is none."""
    vocabulary: int
    """Ids that the model has an embedding for."""

    def documents(self, texts: Sequence[str]) -> list[Passage]:
        """Each text between start and end, all of it learnt. Numbered from 0."""
        rows = self._ids(texts)
        found = []
        for number, (text, row) in enumerate(zip(texts, rows, strict=True)):
            ids = np.array([*self.start, *row, *self.end], np.int64)
            targets = np.arange(len(ids)) > 0
            size = len(text.encode()) if self.start else self._size(ids[1:])
            found.append(Passage(ids, targets, number, size))
        return found

    def completion(self, prompt: str, completion: str, *, everything: bool) -> Passage:
        """A prompt and its completion with the end; the prompt is learnt as well with `everything`."""
        ids, targets = self.pieces([(prompt, everything), (completion, True)], start=True)
        return self._passage([*ids, *self.end], [*targets, *(True for _ in self.end)])

    def dialogue(self, dialogue: Dialogue, *, everything: bool) -> Passage:
        """A dialogue whose template wrote every special token itself; all of it is learnt with `everything`."""
        bounds = [0, *(bound for turn in dialogue.turns for bound in turn), len(dialogue.text)]
        parts = [dialogue.text[low:high] for low, high in pairwise(bounds)]
        # what follows the last answer is a line break at most, and nobody needs it
        pieces = [(part, everything or number % 2 == 1) for number, part in enumerate(parts[:-1])]
        return self._passage(*self.pieces(pieces, start=False))

    def prompt(self, text: str, *, start: bool) -> Ids:
        """A text to go on from; `start` puts the start of a document before it."""
        ids, _ = self.pieces([(text, False)], start=start)
        return np.array(ids, np.int64)

    def pieces(self, pieces: Sequence[tuple[str, bool]], *, start: bool) -> tuple[list[int], list[bool]]:
        """Texts that follow each other as tokens, and which of them are of a marked piece.

        Each piece begins with a token of its own, as when the model is asked: up to there the text is
        tokenised as if it ended, and the rest as it continues. Where that would change the tokens before (a
        space at the seam, say), the piece is tokenised apart.
        """
        ids, marks = list(self.start) if start else [], [False] * (len(self.start) if start else 0)
        text, plain = "", len(ids)
        joined = True
        for piece, mark in pieces:
            new = self._following(ids[plain:], text + piece) if joined else None
            if new is None:
                joined, new = False, self._apart(piece)
            ids += new
            marks += [mark] * len(new)
            text += piece
        return ids, marks

    def _following(self, before: list[int], text: str) -> list[int] | None:
        whole = self._ids([text])[0]
        return whole[len(before) :] if whole[: len(before)] == before else None

    def _apart(self, piece: str) -> list[int]:
        """A text inside of another: without the space that some tokenizers put before every text."""
        anchor, anchored = self._ids(["\n", "\n" + piece])
        whole = anchored[: len(anchor)] == anchor
        return anchored[len(anchor) :] if whole else self._ids([piece])[0]

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        if not texts:
            return []
        # "" alone would come back without a list around it from some tokenizers
        found = self.tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False)
        rows: list[list[int]] = [list(row) for row in found["input_ids"]]
        highest = max((max(row) for row in rows if row), default=0)
        if highest >= self.vocabulary:
            raise BaseModelError(
                f"base model: its tokenizer ({self.tokenizer.name_or_path}) gives token id {highest}, but the "
                f"model has embeddings for {self.vocabulary} tokens only; the two do not belong together"
            )
        return rows

    def _passage(self, ids: Sequence[int], targets: Sequence[bool]) -> Passage:
        passage = Passage(np.array(ids, np.int64), np.array(targets, np.bool_), 0, 0)
        passage.targets[:1] = False
        return replace(passage, size=self._size(passage.ids[passage.targets]))

    def _size(self, ids: Ids) -> int:
        text = self.tokenizer.decode(ids.tolist(), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return len(str(text).encode())

    def shortened(self, passage: Passage, limit: int) -> Passage:
        """The first `limit` tokens of a passage, and the bytes that are left to learn."""
        if len(passage.ids) <= limit:
            return passage
        ids, targets = passage.ids[:limit], passage.targets[:limit]
        return replace(passage, ids=ids, targets=targets, size=self._size(ids[targets]), cut=True)


def windows(passage: Passage, limit: int, stride: int) -> Iterator[Passage]:
    """A passage in windows of up to `limit` tokens, each `stride` further on: every target is in one of them.

    A window after the first learns only what is new in it; the rest is context.
    """
    yield Passage(passage.ids[:limit], passage.targets[:limit], passage.document, passage.size)
    start, known = 0, limit
    while known < len(passage.ids):
        start += stride
        targets = passage.targets[start : start + limit].copy()
        targets[: known - start] = False
        yield Passage(passage.ids[start : start + limit], targets, passage.document, 0)
        known = start + limit
