"""The adapters at hand: files and folders of any program's format, found by name, and the styles that are shipped."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from loraloom.errors import ConfigError, LoraloomError, suggest
from loraloom.formats import AdapterFacts, describe_adapter
from loraloom.tasks.diffusion.places import shipped_bases

SUFFIX = ".safetensors"
PEFT_CONFIG = "adapter_config.json"
PICTURES = (".preview.png", ".png", ".jpg", ".jpeg", ".webp")
"""Endings of a picture beside an adapter, as the web UI knows them."""
STYLES = "styles"
"""The folder in a shipped base that holds its adapters."""

Stamp = tuple[str, int, int]
"""Path, time of change and size of a file."""


@dataclass(frozen=True)
class ShelfEntry:
    """One adapter on the shelf."""

    name: str
    """As `<lora:NAME>` and --lora call it: the file's name without its ending; with its folder where two share it."""
    path: Path
    facts: AdapterFacts | None
    """From its header; None for a file that is no adapter or damaged."""
    thumbnail: Path | None
    """A picture beside it."""


class AdapterShelf:
    """Adapter files in folders, searched to the bottom; what the first folder holds goes before the others.

    Folders that are not there are refused with a ConfigError.
    """

    def __init__(self, *folders: str | Path, base: str = "scenes") -> None:
        self.folders = [Path(folder).expanduser() for folder in folders]
        for folder in self.folders:
            if not folder.is_dir():
                near = suggest(folder.name, _names_in(folder.parent))
                raise ConfigError(f"adapter folder: there is no folder {str(folder)!r}{near}")
        shipped = shipped_bases().get(base)
        self._roots = [*self.folders, *([shipped / STYLES] if shipped else [])]
        self._facts: dict[Stamp, AdapterFacts | None] = {}
        self._seen: frozenset[Stamp] | None = None

    def all(self) -> list[ShelfEntry]:
        """Every adapter, in the order of the folders, then of names."""
        self._seen = self._stamps()
        return [ShelfEntry(name, path, self._describe(path), _thumbnail(path)) for name, path in self._named().items()]

    def changed(self) -> bool:
        """Whether a file has come, gone or changed since the last `all`."""
        return self._seen is None or self._seen != self._stamps()

    def find(self, name: str) -> Path:
        """The adapter of that name, or at that path. Raises ConfigError with the nearest names."""
        named = self._named()
        if name in named:
            return named[name]
        path = Path(name).expanduser()
        if path.is_file() and path.suffix == SUFFIX:
            return path
        if path.is_dir() and is_adapter_folder(path):
            return path
        bare = name.removesuffix(SUFFIX)
        alike = {key: place for key, place in named.items() if key.casefold() == bare.casefold()}
        if len(alike) == 1:
            return next(iter(alike.values()))
        if path.exists():
            raise ConfigError(f"lora {name!r} is no adapter: a {SUFFIX} file or a folder with one is expected")
        near = suggest(bare, named) or suggest(Path(bare).name, named) or _listing(named)
        raise ConfigError(f"there is no lora {name!r} in {self._where()}{near}")

    def _where(self) -> str:
        shown = [str(folder) for folder in self.folders] + (["the shipped styles"] if len(self._roots) > 1 else [])
        return " or ".join(shown) or "the shipped styles (name a folder of adapters, or give a path)"

    def _named(self) -> dict[str, Path]:
        """Name → path."""
        named: dict[str, Path] = {}
        for root in self._roots:
            for path in _adapters_below(root):
                leaf = path.name.removesuffix(SUFFIX)
                if leaf in named:
                    leaf = path.relative_to(root).as_posix().removesuffix(SUFFIX)
                named.setdefault(leaf, path)
        return named

    def _stamps(self) -> frozenset[Stamp]:
        found = []
        for root in self._roots:
            for path in _adapters_below(root):
                picture = _thumbnail(path)
                found += [stamp_of(path), *([stamp_of(picture)] if picture else [])]
        return frozenset(found)

    def _describe(self, path: Path) -> AdapterFacts | None:
        stamp = stamp_of(path)
        if stamp not in self._facts:
            try:
                self._facts[stamp] = describe_adapter(path)
            except (LoraloomError, OSError):
                self._facts[stamp] = None
        return self._facts[stamp]


def stamp_of(path: Path) -> Stamp:
    """What changes when an adapter is written anew; of a folder, its newest file's. Zeros where it is gone."""
    files = sorted(file for file in path.iterdir() if file.is_file()) if path.is_dir() else [path]
    try:
        stats = [file.stat() for file in files]
    except FileNotFoundError:
        return str(path), 0, 0
    return str(path), max((stat.st_mtime_ns for stat in stats), default=0), sum(stat.st_size for stat in stats)


def is_adapter_folder(path: Path) -> bool:
    """Whether a folder is one adapter: PEFT's, PEFT's with a folder per part, or one that holds a single file."""
    if (path / PEFT_CONFIG).is_file() or any(path.glob(f"*/{PEFT_CONFIG}")):
        return True
    return len(list(path.glob(f"*{SUFFIX}"))) == 1


def _adapters_below(root: Path) -> Iterator[Path]:
    """PEFT folders and .safetensors files, sorted; nothing inside a PEFT folder, whose checkpoints are its own."""
    for place, folders, files in os.walk(root, followlinks=True):
        folder = Path(place)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if PEFT_CONFIG in files:
            folders.clear()
            yield folder
            continue
        yield from (folder / name for name in sorted(files) if name.endswith(SUFFIX) and not name.startswith("."))


def _thumbnail(path: Path) -> Path | None:
    if path.is_dir():
        beside = [path / f"preview{ending}" for ending in PICTURES[1:]]
    else:
        beside = [path.with_name(path.name.removesuffix(SUFFIX) + ending) for ending in PICTURES]
    return next((picture for picture in beside if picture.is_file()), None)


def _names_in(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []


def _listing(named: dict[str, Path]) -> str:
    shown = ", ".join(list(named)[:8]) + (", …" if len(named) > 8 else "")
    return f"; there are {shown}" if named else ""
