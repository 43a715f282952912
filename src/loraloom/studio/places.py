"""The folders that the page may use, and the guard that keeps every name from the page inside of them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loraloom.errors import ConfigError

_NAME = re.compile(r"\w[\w .+\-]{0,99}")
_DEVICES = re.compile(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\..*)?")


@dataclass(frozen=True)
class Places:
    """Where things lie, and all that the page can reach."""

    adapters: tuple[Path, ...]
    """Adapter files for the sliders; the bundled styles come on top."""
    pictures: Path
    """Pictures that were kept."""
    runs: Path
    """Output folders of training runs; the studio's own notes on them lie in its folder .studio."""
    data: tuple[Path, ...]
    """Training data and base models may be read from here."""
    embeddings: Path | None = None
    """Textual inversion embeddings, named in prompts."""

    @property
    def readable(self) -> tuple[Path, ...]:
        """All folders that settings from the page may name files of."""
        return (*self.data, self.runs, *self.adapters)


def plain_name(name: str, what: str) -> str:
    """`name` if it is one plain file name: no folders, nothing hidden. Raises ConfigError."""
    name = name.strip()
    if _NAME.fullmatch(name) and not _DEVICES.fullmatch(name) and not name.endswith((".", " ")):
        return name
    raise ConfigError(
        f"{what}: {name[:80]!r} is no plain name; take letters, digits, dots, dashes and blanks, without a folder"
    )


def inside(folder: Path, name: str, what: str) -> Path:
    """The file or folder `name` directly in `folder`. Raises ConfigError for a name that leads out of it."""
    path = folder / plain_name(name, what)
    if not path.resolve().is_relative_to(folder.resolve()):  # a link that leads elsewhere
        raise ConfigError(f"{what}: '{name}' leads out of the folder '{folder.name}'")
    return path


def check_reach(settings: Mapping[str, Any], folders: Sequence[Path], *, start: Path) -> None:
    """Raise ConfigError unless every file that the settings name lies in one of `folders`.

    Relative names count from `start`. A text that names no file, such as a model of the Hub, is no file.
    """
    roots = [folder.resolve() for folder in folders]
    for key, text in _texts(settings):
        path = _as_path(text, start)
        if path is not None and not any(path.is_relative_to(root) for root in roots):
            raise ConfigError(
                f"{key}: '{text}' lies outside of the folders that this studio may use; start it with --data FOLDER "
                "to allow another one"
            )


def _as_path(text: str, start: Path) -> Path | None:
    """Where a text leads if it is a file name, or looks like one that leads away from `start`."""
    if "\0" in text or len(text) > 4096:
        raise ConfigError("the settings hold a text that is no file name and too odd for anything else")
    if not text:
        return None
    leads_away = text.startswith(("/", "\\", "~")) or ".." in re.split(r"[/\\]", text) or bool(re.match(r"\w:", text))
    path = Path(text).expanduser() if text.startswith("~") else Path(text)
    full = path if path.is_absolute() else start / path
    try:
        return full.resolve() if leads_away or full.exists() else None
    except (OSError, RuntimeError):  # a name too long to be one, or a circle of links
        return None


def _texts(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Every text in nested settings, by its dotted key."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, Mapping):
        for name, below in value.items():
            yield from _texts(below, f"{key}.{name}" if key else str(name))
    elif isinstance(value, Iterable):
        for below in value:
            yield from _texts(below, key)
