"""What a CLIP tokenizer must say of itself for prompts to be cut into chunks: its marks, its comma, its ids."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

CHUNK = 75
"""Tokens of a prompt that one chunk holds; with the begin and the end mark it is 77 long."""


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """One tokenizer, by the token ids that chunks are made of."""

    tokenizer: Any
    begin: int
    end: int
    pad: int
    """What follows the end mark: the end mark again (SD 1.x, SDXL's first encoder), or an id of its own ("!")."""
    comma: int | None
    """The id of a comma that ends a word; None where the vocabulary has none, and no chunk breaks at a comma."""
    places: int = CHUNK
    """Tokens between the marks."""

    @classmethod
    def of(cls, tokenizer: Any, positions: int = CHUNK + 2) -> Vocabulary:
        """The vocabulary of a transformers CLIP tokenizer, for an encoder of so many `positions`.

        A chunk never has more than 75 tokens: encoders with room for more were not trained on chunks of more.
        """
        begin, end = tokenizer.bos_token_id, tokenizer.eos_token_id
        pad = end if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        comma = tokenizer.get_vocab().get(",</w>")
        return cls(tokenizer, begin, end, pad, comma, min(CHUNK, positions - 2))

    def ids(self, text: str) -> list[int]:
        """The token ids of `text`, without marks, however long it is."""
        # verbose: without it the library logs that the text is longer than the model, which chunks are there for.
        found = self.tokenizer(text, add_special_tokens=False, truncation=False, verbose=False)["input_ids"]
        return list(found)

    @property
    def placeholder(self) -> int:
        """The id that stands where an embedding's vectors go: any that is not the end mark, which pooling looks for."""
        return 0 if self.end != 0 else 1
