"""Examples that are files: pictures or recordings, in folders or named by a table, each opened once as a check.

folder/cat/1.jpg                 a folder per class
folder/metadata.jsonl            a table beside the files (or metadata.csv)
table.csv                        a table; its paths are relative to it
folder/train/…, folder/test/…    splits of any of these
folder/*.wav, picture.png        files without labels
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from loraloom.data.arrow_files import choose_split
from loraloom.data.columns import Role
from loraloom.data.config import DataConfig
from loraloom.data.records import Records, cannot_be_used, quoted
from loraloom.data.sources import READERS, read_source
from loraloom.data.table import Example, Table, table_of
from loraloom.errors import ConfigError, DataError, suggest

METADATA = ("metadata.jsonl", "metadata.csv", "metadata.tsv", "metadata.parquet")
SPLITS = ("train", "test", "validation", "valid", "val", "dev")
FILE_COLUMN, CLASS_COLUMN = "file_name", "label"


@dataclass(frozen=True)
class Media:
    """A kind of file that examples are made of."""

    kind: str
    """"picture" or "recording": the word for sentences."""
    suffixes: frozenset[str]
    """Lower case, with the dot."""
    candidates: tuple[str, ...]
    """Names of columns that may hold a file's name."""
    probe: Callable[[Path], Mapping[str, Any]]
    """Decodes a file whole; returns its facts by name, as numbers. Raises DataError: which file, what is wrong."""

    @property
    def role(self) -> Role:
        """The role of the file's name in a table."""
        return Role("file", self.candidates)


def read_files(
    source: str,
    media: Media,
    roles: Sequence[Role],
    *,
    data: DataConfig,
    split: str | None = None,
    prefer_splits: Sequence[str] = ("train",),
    required_roles: Sequence[str] | None = None,
) -> Table:
    """Read a folder or table of files with what is known of each; every file is opened, whole, once.

    Values of an example: "file" (its path), "sha256" (of its bytes), the probe's facts, and the roles.
    `required_roles` are all by default. Raises DataError that names the files that cannot be used, unless
    `data.skip_bad` leaves them out with a note; ConfigError for settings that do not fit the source.
    """
    records, folder, notes = _file_records(source, media, split, prefer_splits, data)
    required = ["file", *([role.name for role in roles] if required_roles is None else required_roles)]
    given = {role: name for role, name in data.columns.items() if role == "file" or role in {r.name for r in roles}}
    table = table_of(source, records, [media.role, *roles], given, required, where=data.where, skip_bad=data.skip_bad)
    examples, faults = _probed(table.examples, media, folder)
    if faults and not (data.skip_bad and examples):
        raise DataError(cannot_be_used(source, f"{media.kind}s", faults))
    if faults:
        notes = [*notes, cannot_be_used(source, f"{media.kind}s", faults) + ": left out"]
    return replace(table, examples=examples, notes=[*table.notes, *notes], sha256=_digest(examples))


def _file_records(
    source: str, media: Media, split: str | None, prefer: Sequence[str], data: DataConfig
) -> tuple[Records, Path, list[str]]:
    """Rows with a file's name each, and the folder that the names are relative to."""
    path = Path(source).expanduser()
    if not path.exists():
        near = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        raise DataError(f"{source} does not exist{suggest(path.name, near)}")
    if path.is_file():
        if path.suffix.lower() in media.suffixes:
            return _listed([path.name], None), path.parent, []
        if path.suffix.lower() not in READERS:
            known = ", ".join([*sorted(media.suffixes), *READERS])
            raise DataError(f"{source} has the suffix {path.suffix!r}; a {media.kind} or a table is expected: {known}")
        return read_source(source, delimiter=data.delimiter), path.parent, []
    folder, notes = _chosen_split(path, source, split, prefer)
    table = next((folder / name for name in METADATA if (folder / name).is_file()), None)
    if table is not None:
        return read_source(str(table), delimiter=data.delimiter), folder, notes
    return _folder_records(folder, source, media), folder, notes


def _chosen_split(path: Path, source: str, split: str | None, prefer: Sequence[str]) -> tuple[Path, list[str]]:
    """The sub-folder of a split where the folder has splits, else the folder itself."""
    found = [name for name in SPLITS if (path / name).is_dir()]
    beside = {entry.name for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith(".")}
    if not found or beside - set(found):
        if split is not None:
            raise ConfigError(f"split {split!r} was asked of {source}, which has no folders {quoted(SPLITS[:3])}")
        return path, []
    chosen = choose_split(source, found, split, prefer)
    return path / chosen, [] if split else [f"{source}: split {chosen!r} of {quoted(found)}"]


def _folder_records(folder: Path, source: str, media: Media) -> Records:
    """A folder per class, or a flat folder of files."""
    classes = sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    flat = _files_in(folder, media)
    if classes:
        files = [(file, one.name) for one in classes for file in _files_in(one, media, deep=True)]
        if files and flat:
            raise DataError(
                f"{source} holds {len(flat)} {media.kind}s beside its {len(classes)} folders of classes, e.g. "
                f"{flat[0].name!r}; move each into the folder of its class"
            )
        if files:
            return _listed([str(file.relative_to(folder)) for file, _ in files], [name for _, name in files])
    if flat:
        return _listed([file.name for file in flat], None)
    raise DataError(
        f"{source} holds no {media.kind}s ({', '.join(sorted(media.suffixes))}) and no {METADATA[0]}; expected a "
        "folder per class, or files with a table beside them"
    )


def _files_in(folder: Path, media: Media, *, deep: bool = False) -> list[Path]:
    found = folder.rglob("*") if deep else folder.iterdir()
    return sorted(file for file in found if file.suffix.lower() in media.suffixes and not file.name.startswith("."))


def _listed(names: list[str], labels: list[str] | None) -> Records:
    columns: list[list[Any]] = [list(names)] if labels is None else [list(names), list(labels)]
    return Records(
        names=(FILE_COLUMN,) if labels is None else (FILE_COLUMN, CLASS_COLUMN),
        lines=range(1, len(names) + 1),
        column=lambda index: columns[index],
        unit="row",
    )


def _probed(examples: Sequence[Example], media: Media, folder: Path) -> tuple[list[Example], list[str]]:
    """The examples with what was found in their files, and what is wrong with the others."""
    good, faults = [], []
    for example in examples:
        path = folder / str(example.values["file"])
        try:
            found = probe_file(path, media)
        except DataError as error:
            faults.append(str(error))
            continue
        good.append(replace(example, values={**example.values, **found}))
    return good, faults


def probe_file(path: Path, media: Media) -> dict[str, Any]:
    """ "file", "sha256" and the facts of one file. Raises DataError, naming it, when it cannot be used."""
    if not path.is_file():
        near = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        raise DataError(f"{path} does not exist{suggest(path.name, near, most=1)}")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    if not content:
        raise DataError(f"{path} is empty (0 bytes)")
    return {"file": str(path), "sha256": hashlib.sha256(content).hexdigest(), **media.probe(path)}


def _digest(examples: Sequence[Example]) -> str:
    """One hash over every file's content and what is said of it, in order, wherever the folder lies."""
    digest = hashlib.sha256()
    for example in examples:
        values = {**example.values, "file": Path(example.values["file"]).name}
        digest.update(repr(sorted(values.items(), key=lambda item: item[0])).encode())
    return digest.hexdigest()
