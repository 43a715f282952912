"""Names of embeddings found in a prompt: by token ids, the longest name first, then the folder's order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from loraloom.imaging.conditioning.embedding import Embedding
from loraloom.imaging.conditioning.folder import Entry
from loraloom.imaging.conditioning.vocabulary import Vocabulary


class EmbeddingIndex:
    """The entries of a folder by the token ids of their names, for one vocabulary and one base.

    As in the web UI, a name is found wherever its ids stand, also within other words, and without regard to case.
    An entry that cannot be used is passed over as if it were not there, and reported.
    """

    def __init__(self, entries: Iterable[Entry], vocabulary: Vocabulary, fault_of: Callable[[Embedding], str]) -> None:
        self._fault_of = fault_of
        self._by_first: dict[int, list[tuple[list[int], Entry]]] = {}
        self.faults: dict[str, None] = {}
        """Sentences about entries that a text named and that could not be used, in the order they were met."""
        self.found: dict[str, None] = {}
        """Names of the embeddings that texts named, in the order they were met."""
        for entry in entries:
            for name in entry.names:
                if ids := vocabulary.ids(name):
                    self._by_first.setdefault(ids[0], []).append((ids, entry))
        for candidates in self._by_first.values():
            candidates.sort(key=lambda candidate: -len(candidate[0]))  # stable: the folder's order among equals

    def find(self, ids: Sequence[int], position: int) -> tuple[Embedding, int] | None:
        """The embedding whose name stands at `position` of `ids`, and how many ids the name takes; or None."""
        for wanted, entry in self._by_first.get(ids[position], ()):
            if list(ids[position : position + len(wanted)]) != wanted:
                continue
            fault = entry.fault if entry.embedding is None else self._fault_of(entry.embedding)
            if entry.embedding is not None and not fault:
                self.found[entry.name] = None
                return entry.embedding, len(wanted)
            self.faults[fault] = None
        return None

    def forget(self) -> None:
        """Begin the lists of faults and finds anew."""
        self.faults, self.found = {}, {}
