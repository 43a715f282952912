"""A folder of textual-inversion embeddings, read again when its files change."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from loraloom.errors import ConfigError, FormatError, suggest
from loraloom.imaging.conditioning.embedding import PICKLES, Embedding, read_embedding


@dataclass(frozen=True, eq=False)
class Entry:
    """One file of the folder: an embedding, or the sentence that says why it is none."""

    name: str
    path: Path
    embedding: Embedding | None = None
    fault: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        """What in a prompt means this file."""
        return self.embedding.names if self.embedding else (self.name,)


class EmbeddingFolder:
    """The embeddings in a folder and the folders below it, by the names of their files.

    Files are taken in the order of their paths, and of two with one name the first counts. Raises ConfigError
    where there is no such folder.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).expanduser()
        if not self.folder.is_dir():
            near = suggest(self.folder.name, _folders_beside(self.folder))
            raise ConfigError(f"embeddings: no folder {str(folder)!r}{near}")
        self._known: dict[tuple[Path, int, int], Entry] = {}
        self._entries: tuple[Entry, ...] = ()

    def entries(self) -> tuple[Entry, ...]:
        """Every safetensors file and pickle; the same object as before where no file has changed."""
        found = {_stamp(path): path for path in _files(self.folder)}
        if list(found) != list(self._known):
            self._known = {stamp: self._known.get(stamp) or _entry(path) for stamp, path in found.items()}
            first: dict[str, Entry] = {}
            for entry in self._known.values():
                # A pickle beside its converted copy is not what the name means.
                if entry.name not in first or (first[entry.name].embedding is None and entry.embedding):
                    first[entry.name] = entry
            self._entries = tuple(entry for entry in self._known.values() if first[entry.name] is entry)
        return self._entries

    def names(self) -> list[str]:
        """The names of the files that can be used, sorted as a reader would."""
        return sorted((entry.name for entry in self.entries() if entry.embedding), key=str.casefold)

    def load(self, name: str) -> Embedding:
        """The embedding that answers to `name`. Raises FormatError: no such file, or one that cannot be used."""
        for entry in self.entries():
            if name in entry.names:
                if entry.embedding is None:
                    raise FormatError(entry.fault)
                return entry.embedding
        raise FormatError(f"embeddings: {self.folder} holds none named {name!r}{suggest(name, self.names())}")


def _files(folder: Path) -> Iterator[Path]:
    """Candidate files in the order of their paths; folders that links make endless are entered once."""
    seen: set[str] = set()
    for root, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(root)
        folders[:] = [] if real in seen else sorted(folders)
        if real in seen:
            continue
        seen.add(real)
        for file in sorted(files):
            path = Path(root) / file
            if path.suffix.lower() in (".safetensors", *PICKLES) and path.is_file():
                yield path


def _stamp(path: Path) -> tuple[Path, int, int]:
    facts = path.stat()
    return path, facts.st_size, facts.st_mtime_ns


def _entry(path: Path) -> Entry:
    try:
        return Entry(path.stem, path, read_embedding(path))
    except (FormatError, OSError) as error:
        return Entry(path.stem, path, fault=f"embedding {path.stem!r} is not used: {error}")


def _folders_beside(folder: Path) -> list[str]:
    above = folder.parent
    return sorted(each.name for each in above.iterdir() if each.is_dir()) if above.is_dir() else []
