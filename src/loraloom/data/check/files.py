"""Which files a data set of pictures or recordings has, good and bad, and what is known of each good one."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from loraloom.data.captions import BESIDE
from loraloom.data.check.part import Part, Progress, short_name
from loraloom.data.check.rows import read_examples, read_rows
from loraloom.data.columns import Role
from loraloom.data.config import DataConfig
from loraloom.data.files import METADATA, Media, probe_file
from loraloom.data.sources import READERS
from loraloom.data.table import Example
from loraloom.errors import DataError, suggest

_TABLES = frozenset(READERS) | {".md", *BESIDE}


def read_part(
    part: Part,
    media: Media,
    roles: Sequence[Role],
    required: Collection[str],
    data: DataConfig,
    progress: Progress | None,
) -> None:
    """Fill a part with the files that can be used, each opened whole; the others are noted by name and reason.

    Raises DataError where there is no such folder or table.
    """
    part.examples = probe_part(part, list_part(part, media, roles, required, data), media, progress)


def list_part(part: Part, media: Media, roles: Sequence[Role], required: Collection[str], data: DataConfig) -> Path:
    """Fill a part with the files that are named, none opened yet; returns the folder that the names are relative to.

    A table, a folder with metadata.jsonl or metadata.csv, a folder per class, or a flat folder. Raises
    DataError where there is no such folder or table.
    """
    path = Path(part.source).expanduser()
    if not path.exists():
        near = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        raise DataError(f"{part.source} does not exist{suggest(path.name, near)}")
    table = _table_of(path)
    if table is not None:
        _read_listed(part, table, media, roles, required, data)
        return table.parent
    _read_folder(part, path, media)
    return path.parent if path.is_file() else path


def probe_part(part: Part, folder: Path, media: Media, progress: Progress | None) -> list[Example]:
    """The examples of a part that was listed with the facts of their files; the others are noted."""
    return probed(part, part.examples, folder, media, progress)


def _table_of(path: Path) -> Path | None:
    """The table that names the files, if there is one."""
    if path.is_file():
        return path if path.suffix.lower() in READERS else None
    return next((path / name for name in METADATA if (path / name).is_file()), None)


def _read_listed(
    part: Part, table: Path, media: Media, roles: Sequence[Role], required: Collection[str], data: DataConfig
) -> None:
    """Rows of a table; files beside it that it does not name are noted."""
    source, part.source = part.source, str(table)
    given = {role: name for role, name in data.columns.items() if role in {"file", *(one.name for one in roles)}}
    records = read_rows(part, data)
    read_examples(part, records, (media.role, *roles), given, ("file", *required))
    part.source = source
    if table.name in METADATA:
        named = records.column(records.names.index(part.columns["file"]))
        _note_others(part, table.parent, media, {str(name) for name in named})


def _note_others(part: Part, folder: Path, media: Media, named: Collection[str]) -> None:
    there = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.suffix.lower() in media.suffixes}
    for name in sorted(there - set(named)):
        part.findings.add("not-listed", name)


def _read_folder(part: Part, path: Path, media: Media) -> None:
    """A folder per class, a flat folder, or one file."""
    if path.is_file():
        part.examples, part.rows = [Example({"file": path.name}, part.source, 1)], 1
        return
    classes = sorted(entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    for folder in classes:
        _take_folder(part, path, folder, media, {"label": folder.name})
    if not classes:
        _take_folder(part, path, path, media, {})
        return
    part.columns["label"] = "folder"
    for file in sorted(path.iterdir()):
        if file.suffix.lower() in media.suffixes:
            part.findings.add("no-class", file.name)


def _take_folder(part: Part, root: Path, folder: Path, media: Media, label: Mapping[str, str]) -> None:
    """The files of one class, or of all."""
    files = [file for file in sorted(folder.rglob("*")) if file.is_file() and not file.name.startswith(".")]
    good = [file for file in files if file.suffix.lower() in media.suffixes]
    for file in good:
        part.rows += 1
        part.examples.append(Example({"file": str(file.relative_to(root)), **label}, part.source, part.rows))
    for file in files:
        if file.suffix.lower() not in media.suffixes | _TABLES:
            part.findings.add("other-file", str(file.relative_to(root)))
    if not good:
        part.findings.add("empty-folder", folder.name)


def probed(
    part: Part, examples: Sequence[Example], folder: Path, media: Media, progress: Progress | None
) -> list[Example]:
    """The examples with the facts of their files; what is wrong with the others is noted, by reason."""
    good = []
    for number, example in enumerate(examples, start=1):
        path = folder / str(example.values["file"])
        try:
            facts: Mapping[str, Any] = probe_file(path, media)
            good.append(replace(example, values={**example.values, **facts}))
        except DataError as error:
            reason = reason_of(str(error), path)
            part.findings.add("bad-file", short_name(str(path), str(folder)), reason=reason)
        if progress is not None:
            progress(f"{part.name}: {media.kind}s", number, len(examples))
    return good


def reason_of(message: str, path: Path) -> str:
    """What is wrong, without the file's name and numbers of its own, so that like faults are one reason."""
    told = message.replace(str(path), "").strip(": ").partition(";")[0]
    return re.sub(r"\d{3,}", "…", told)[:120]
