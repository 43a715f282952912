"""Parquet files, and whatever the `datasets` library can load: folders and datasets of the Hub.

pyarrow and datasets take a second to import, so each is imported where it is first needed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

from loraloom.data.records import Records, digest, quoted
from loraloom.errors import DataError, suggest

_SAVED_BY_DATASETS = ("dataset_dict.json", "state.json")


def read_parquet(data: bytes, source: str, _delimiter: str | None = None) -> Records:
    """Rows of a Parquet file. Raises DataError."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not data:
        raise DataError(f"{source} is empty; expected at least one example")
    try:
        table = pq.read_table(pa.BufferReader(data))
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{source} is not a Parquet file, or is damaged ({_first_line(error)})") from None
    classes = _class_names(table.schema.metadata or {})
    names = tuple(table.column_names)
    return Records(
        names=names,
        lines=range(1, table.num_rows + 1),
        column=lambda index: _named(table.column(index).to_pylist(), classes.get(names[index])),
        sha256=digest(data),
        unit="row",
    )


def read_folder(folder: Path, source: str, split: str | None, prefer: Sequence[str]) -> Records:
    """A folder made by `Dataset.save_to_disk`, or one with data files in it. Raises DataError."""
    import datasets

    if any((folder / name).exists() for name in _SAVED_BY_DATASETS):
        with _clear_errors(source):
            return _records(datasets.load_from_disk(str(folder)), source, split, prefer)
    endings = (".csv", ".json", ".jsonl", ".parquet")
    if not any(path.suffix in endings for path in chain(folder.glob("*"), folder.glob("*/*"))):
        raise DataError(
            f"{source} is a folder without data files; expected a file ({', '.join(endings)}), a folder of "
            "such files, or one written by datasets' save_to_disk"
        )
    with _clear_errors(source):
        return _records(datasets.load_dataset(str(folder)), source, split, prefer)


def read_hub(name: str, source: str, split: str | None, prefer: Sequence[str]) -> Records:
    """A dataset of the Hugging Face Hub or its cache: owner/name, or owner/name/config. Raises DataError."""
    import datasets

    parts = name.split("/")
    config = parts[2] if len(parts) > 2 else None
    with _clear_errors(source):
        return _records(datasets.load_dataset("/".join(parts[:2]), config), source, split, prefer)


@contextmanager
def _clear_errors(source: str) -> Iterator[None]:
    """One sentence for the many ways in which loading can fail; and no progress bars from a library."""
    import datasets

    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    except DataError:
        raise
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise DataError(
            f"{source} is neither a file here nor a dataset that can be loaded ({_first_line(error)}); check "
            "the spelling, and the connection if it is on the Hugging Face Hub"
        ) from error
    finally:
        if shown:
            datasets.enable_progress_bars()


def _records(loaded: Any, source: str, split: str | None, prefer: Sequence[str]) -> Records:
    """The rows of one split of what `datasets` loaded: a Dataset, or a dict of them."""
    import datasets

    notes = []
    if isinstance(loaded, dict):
        chosen = choose_split(source, list(loaded), split, prefer)
        if split is None:
            notes.append(f"{source}: split {chosen!r} of {quoted(list(loaded))}")
        loaded = loaded[chosen]
    names = tuple(loaded.column_names)
    classes = {name: kind.names for name, kind in loaded.features.items() if isinstance(kind, datasets.ClassLabel)}
    return Records(
        names=names,
        lines=range(1, loaded.num_rows + 1),
        column=lambda index: _named(list(loaded[names[index]]), classes.get(names[index])),
        notes=notes,
        unit="row",
    )


def choose_split(source: str, splits: Sequence[str], split: str | None, prefer: Sequence[str]) -> str:
    """The split asked for; else the first of `prefer` that exists; else the only one. Raises DataError."""
    if split is None:
        wanted = [name for name in prefer if name in splits] or (list(splits) if len(splits) == 1 else [])
        if wanted:
            return wanted[0]
        raise DataError(f"{source} has the splits {quoted(splits)}; say which one is meant")
    if split not in splits:
        raise DataError(f"{source} has no split {split!r}; it has {quoted(splits)}{suggest(split, splits)}")
    return split


def _class_names(metadata: Mapping[bytes, bytes]) -> dict[str, list[str]]:
    """Column to class names, from what `datasets` writes into the schema of its Parquet files."""
    if b"huggingface" not in metadata:
        return {}
    features = json.loads(metadata[b"huggingface"]).get("info", {}).get("features") or {}
    return {
        name: kind["names"]
        for name, kind in features.items()
        if isinstance(kind, dict) and kind.get("_type") == "ClassLabel" and "names" in kind
    }


def _named(values: list[Any], names: list[str] | None) -> list[Any]:
    """Class numbers as names; -1 means that a row has no label."""
    if names is None:
        return values
    return [None if value is None or value < 0 else names[value] for value in values]


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
