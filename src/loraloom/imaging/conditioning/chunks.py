"""A weighted prompt cut into chunks of 75 tokens, each between a begin and an end mark.

The rules are those of the Stable-Diffusion web UI. Segments are tokenised one by one. BREAK starts a new chunk.
When a token finds its chunk full, and a comma lies within the last 20 tokens, what follows that comma moves into
the next chunk with it. An embedding takes as many places as it has vectors, each with the weight of its segment,
and starts a new chunk if it does not fit. One thing differs: an embedding that the comma rule moves takes its
vectors along, which the web UI leaves behind.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from loraloom.imaging.conditioning.embedding import Embedding
from loraloom.imaging.conditioning.vocabulary import Vocabulary
from loraloom.imaging.prompt import Segment

COMMA_REACH = 20
"""How many tokens back from the end of a full chunk a comma may lie for the chunk to break there."""

Finder = Callable[[Sequence[int], int], "tuple[Embedding, int] | None"]
"""(token ids, position) → the embedding whose name starts there, and how many ids the name has; or None."""


@dataclass(frozen=True)
class Insert:
    """An embedding and the place of its first vector along T (the begin mark has place 0)."""

    place: int
    embedding: Embedding


@dataclass(frozen=True)
class Chunk:
    """What the text encoder gets in one go, T = 77 long; hashable, so that its encoding can be remembered."""

    tokens: tuple[int, ...]
    weights: tuple[float, ...]
    inserts: tuple[Insert, ...] = ()


@dataclass(frozen=True)
class Chunked:
    """The chunks of one text."""

    chunks: tuple[Chunk, ...]
    token_count: int
    """Places taken, those left empty before a BREAK counted as taken."""


def is_break(segment: Segment) -> bool:
    """Whether a segment is a BREAK; inside brackets its weight is changed, and it is a word like any other."""
    return segment.text == "BREAK" and segment.weight == -1


def empty_chunk(vocabulary: Vocabulary) -> Chunk:
    """The one chunk of an empty text."""
    return cut([], vocabulary).chunks[0]


def cut(segments: Iterable[Segment], vocabulary: Vocabulary, find: Finder | None = None) -> Chunked:
    """The chunks of a text, given as the `segments` of its emphasis parse; at least one, however empty it is."""
    builder = _Builder(vocabulary)
    for segment in segments:
        if is_break(segment):
            builder.close()
        else:
            _fill(builder, vocabulary.ids(segment.text), segment.weight, find)
    taken = vocabulary.places * len(builder.chunks) + len(builder.tokens)
    if builder.tokens or not builder.chunks:
        builder.close()
    return Chunked(tuple(builder.chunks), taken)


def _fill(builder: _Builder, ids: Sequence[int], weight: float, find: Finder | None) -> None:
    position = 0
    while position < len(ids):
        builder.make_room(ids[position])
        found = find(ids, position) if find else None
        if found is None:
            builder.tokens.append(ids[position])
            builder.weights.append(weight)
            position += 1
        else:
            embedding, length = found
            builder.insert(embedding, weight)
            position += length


class _Builder:
    """The chunk that is being filled, and those that are closed."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self.chunks: list[Chunk] = []
        self._clear()

    def _clear(self) -> None:
        self.tokens: list[int] = []
        self.weights: list[float] = []
        self.inserts: list[Insert] = []
        self.last_comma: int | None = None

    def make_room(self, token: int) -> None:
        """Close the chunk if it is full when `token` comes, at its last comma if that is near."""
        full = len(self.tokens) == self.vocabulary.places
        if token == self.vocabulary.comma:
            # Noted even where the chunk is full: it then closes here, and the comma itself opens the next one.
            self.last_comma = len(self.tokens)
        elif full and self.last_comma is not None and len(self.tokens) - self.last_comma <= COMMA_REACH:
            self._close_at(self.last_comma + 1)
        if len(self.tokens) == self.vocabulary.places:
            self.close()

    def insert(self, embedding: Embedding, weight: float) -> None:
        if len(self.tokens) + embedding.count > self.vocabulary.places:
            self.close()
        self.inserts.append(Insert(len(self.tokens) + 1, embedding))
        self.tokens += [self.vocabulary.placeholder] * embedding.count
        self.weights += [weight] * embedding.count

    def _close_at(self, border: int) -> None:
        """Close the chunk before token `border`; what stands from there on begins the next chunk."""
        tokens, weights = self.tokens[border:], self.weights[border:]
        moved = [replace(one, place=one.place - border) for one in self.inserts if one.place > border]
        self.inserts = self.inserts[: len(self.inserts) - len(moved)]
        self.tokens, self.weights = self.tokens[:border], self.weights[:border]
        self.close()
        self.tokens, self.weights, self.inserts = tokens, weights, moved

    def close(self) -> None:
        """Put the marks and the padding to the chunk, keep it, and begin an empty one."""
        left = self.vocabulary.places - len(self.tokens)
        tokens = [self.vocabulary.begin, *self.tokens, *[self.vocabulary.end] * (left + 1)]
        # A text may spell the end mark out: all that follows the first one is padding.
        after_end = tokens.index(self.vocabulary.end) + 1
        if self.vocabulary.pad != self.vocabulary.end:
            tokens[after_end:] = [self.vocabulary.pad] * (len(tokens) - after_end)
        weights = [1.0, *self.weights, *[1.0] * (left + 1)]
        self.chunks.append(Chunk(tuple(tokens), tuple(weights), tuple(self.inserts)))
        self._clear()
