"""What the name of a source means: a file by its suffix, a folder, the packaged set, or a dataset's name."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path

from loraloom.data.arrow_files import choose_split, read_folder, read_hub, read_parquet
from loraloom.data.delimited import read_csv, read_tsv
from loraloom.data.json_files import read_json
from loraloom.data.records import Records
from loraloom.data.text_files import holds_texts, read_text, read_text_folder
from loraloom.errors import ConfigError, DataError, suggest

READERS: dict[str, Callable[[bytes, str, str | None], Records]] = {
    ".csv": read_csv,
    ".tsv": read_tsv,
    ".jsonl": read_json,
    ".json": read_json,
    ".parquet": read_parquet,
    ".txt": read_text,
}
"""File suffix to reader of (bytes, name, delimiter)."""

PACKAGED = {"sentiment": ("train", "test")}
"""Data sets that come with Loraloom, and their splits."""

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+){0,2}")
_FILE_SUFFIX = re.compile(r"\.[A-Za-z]\w{1,6}")


def read_source(
    source: str, *, delimiter: str | None = None, split: str | None = None, prefer: Sequence[str] = ("train",)
) -> Records:
    """Read a file, folder, packaged set or dataset, whichever `source` names.

    `split` and `prefer` (in order, where no split is asked for) choose among a dataset's splits. Raises
    DataError for what cannot be found or read, ConfigError for a split of something that has none.
    """
    path = Path(source).expanduser()
    name, split = (source, split) if path.exists() else _with_split(source, split)
    if name in PACKAGED:
        return _read_packaged(name, source, split, prefer)
    if path.is_dir() and holds_texts(path):
        return read_text_folder(path, source, split, prefer)
    if path.is_dir():
        return read_folder(path, source, split, prefer)
    if path.exists() or _is_like_a_file(name):
        if split is not None:
            raise ConfigError(f"split {split!r} was asked of {source}, which is a file; only datasets have splits")
        return _read_file(path, source, delimiter)
    return read_hub(name, source, split, prefer)


def _with_split(source: str, split: str | None) -> tuple[str, str | None]:
    """Part ``name:split``; a split in the name goes before one in the settings."""
    name, colon, named = source.partition(":")
    return (name, named) if colon and re.fullmatch(r"[\w.-]+", named) else (source, split)


def _is_like_a_file(name: str) -> bool:
    return not _HUB_NAME.fullmatch(name) or bool(_FILE_SUFFIX.fullmatch(Path(name).suffix))


def _read_file(path: Path, source: str, delimiter: str | None) -> Records:
    suffix = path.suffix.lower()
    if not path.exists():
        raise DataError(f"{source} does not exist{_similar_files(path)}")
    if suffix not in READERS:
        found = f"the suffix {path.suffix!r}" if suffix else "no suffix"
        raise DataError(f"{source} has {found}; expected one of {', '.join(READERS)}{suggest(suffix, READERS)}")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{source} cannot be read: {error.strerror}") from error
    return READERS[suffix](data, source, delimiter)


def _similar_files(path: Path) -> str:
    """The nearest names in the same folder, or the nearest folder that does exist."""
    if not path.parent.is_dir():
        return f", nor does its folder {path.parent}"
    return suggest(path.name, [other.name for other in path.parent.iterdir() if other.is_file()])


def _read_packaged(name: str, source: str, split: str | None, prefer: Sequence[str]) -> Records:
    chosen = choose_split(source, PACKAGED[name], split, prefer)
    file = resources.files("loraloom.data").joinpath(name).joinpath(f"{chosen}.csv")
    if not file.is_file():
        raise DataError(f"{source}: the packaged set is not installed; install Loraloom again, or give a file")
    return read_csv(file.read_bytes(), source, ",")
