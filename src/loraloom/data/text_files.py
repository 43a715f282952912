"""Plain text: a .txt file as its paragraphs, a folder of them as a document per file, or as named splits."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from loraloom.data.arrow_files import choose_split
from loraloom.data.records import Records, decode, digest
from loraloom.errors import DataError

SUFFIX = ".txt"
COLUMN = "text"
"""The one column that plain text has."""
_SPLITS = ("train", "test", "validation", "valid", "val", "dev")


def read_text(data: bytes, source: str, _delimiter: str | None = None) -> Records:
    """The paragraphs of a text file: what stands between blank lines, with its own line breaks.

    Line ends of every system count as one, space at the end of a line and blank lines are dropped. Raises
    DataError for a file without text and for bytes that are not UTF-8.
    """
    found = list(_paragraphs(decode(data, source)))
    texts = [text for _, text in found]
    return Records(
        names=(COLUMN,),
        lines=[line for line, _ in found],
        column=lambda _index: list(texts),
        notes=[f"{source}: {len(found)} paragraphs, parted by blank lines"],
        sha256=digest(data),
    )


def read_text_folder(folder: Path, source: str, split: str | None, prefer: Sequence[str]) -> Records:
    """A folder of .txt files: each is a document, in the order of their names.

    Files called train.txt, test.txt and the like are splits, of which one is read as its paragraphs. `lines`
    counts the files otherwise; empty ones are left out with a note. Raises DataError.
    """
    files = {path.stem: path for path in _text_files(folder)}
    if split is not None or set(files) <= set(_SPLITS):
        path = files[choose_split(source, list(files), split, prefer)]
        return read_text(path.read_bytes(), str(path))
    texts, empty, whole = [], [], hashlib.sha256()
    for path in files.values():
        data = path.read_bytes()
        whole.update(path.name.encode() + b"\0" + digest(data).encode())
        if data.strip():
            texts.append(decode(data, str(path)).strip())
        else:
            empty.append(path.name)
    if not texts:
        raise DataError(f"{source}: none of its {len(empty)} {SUFFIX} files holds any text")
    notes = [f"{source}: {len(texts)} {SUFFIX} files, each a document"]
    if empty:
        notes.append(f"{source}: {len(empty)} empty files left out, e.g. {empty[0]}")
    return Records(
        names=(COLUMN,),
        lines=range(1, len(texts) + 1),
        column=lambda _index: list(texts),
        notes=notes,
        sha256=whole.hexdigest(),
        unit="row",
    )


def holds_texts(folder: Path) -> bool:
    """Whether a folder has .txt files and no file of another kind, but for hidden ones and a README."""
    names = [path for path in folder.iterdir() if path.is_file() and not path.name.startswith((".", "README"))]
    return bool(names) and all(path.suffix.lower() == SUFFIX for path in names)


def _text_files(folder: Path) -> list[Path]:
    files = (path for path in folder.iterdir() if path.is_file() and path.suffix.lower() == SUFFIX)
    return sorted(path for path in files if not path.name.startswith((".", "README")))


def _paragraphs(text: str) -> Iterator[tuple[int, str]]:
    """Each paragraph with the line, from 1, on which it begins."""
    kept: list[str] = []
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    for number, line in enumerate([*lines, ""], start=1):
        if line.strip():
            kept.append(line.rstrip())
        elif kept:
            yield number - len(kept), "\n".join(kept)
            kept = []
