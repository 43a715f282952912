"""The base's tokenizer: CLIP's byte-level BPE with a vocabulary of its own, learnt from the words of the captions."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from transformers import CLIPTokenizer

BEGIN, END = "<|startoftext|>", "<|endoftext|>"
SUFFIX = "</w>"
"""Marks the last piece of a word."""
LENGTH = 77


def make_tokenizer(words: Iterable[str], folder: Path) -> CLIPTokenizer:
    """Write vocab.json and merges.txt to `folder` and open them as CLIP's tokenizer.

    Every byte is a piece, inside a word and at its end, so that any text at all can be tokenised; on top come the
    merges that make each of the given words one piece.
    """
    merges = learn_merges(words)
    alphabet = list(byte_letters().values())
    pieces = [*alphabet, *(letter + SUFFIX for letter in alphabet), *(first + second for first, second in merges)]
    vocabulary = {piece: index for index, piece in enumerate(dict.fromkeys([*pieces, BEGIN, END]))}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    lines = ["#version: 0.2", *(f"{first} {second}" for first, second in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return CLIPTokenizer.from_pretrained(
        folder, bos_token=BEGIN, eos_token=END, unk_token=END, pad_token=END, model_max_length=LENGTH
    )


def byte_letters() -> dict[int, str]:
    """A printable letter for each byte, as GPT-2 and CLIP write them: printable bytes stand for themselves."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in plain]
    letters = {byte: chr(byte) for byte in plain} | {byte: chr(256 + n) for n, byte in enumerate(rest)}
    return dict(sorted(letters.items(), key=lambda pair: (pair[1] > "ÿ", pair[1])))


def learn_merges(phrases: Iterable[str]) -> list[tuple[str, str]]:
    """Byte-pair merges, most frequent pair first, until every word of the phrases is one piece."""
    words = Counter(word for phrase in phrases for word in phrase.lower().replace(",", " ").split())
    split = {word: (*word[:-1], word[-1] + SUFFIX) for word in words}
    merges: list[tuple[str, str]] = []
    while True:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, pieces in split.items():
            for pair in itertools.pairwise(pieces):
                pairs[pair] += words[word]
        if not pairs:
            return merges
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        split = {word: _merged(pieces, best) for word, pieces in split.items()}


def _merged(pieces: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    made: list[str] = []
    for piece in pieces:
        if made and (made[-1], piece) == pair:
            made[-1] += piece
        else:
            made.append(piece)
    return tuple(made)
