"""Pictures that were kept: PNG files in one folder, each with its recipe inside."""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from typing import Any

from loraloom.errors import ConfigError
from loraloom.studio.places import inside
from loraloom.training.files import writing

_SHOWN = 300


class Gallery:
    """The PNG files of one folder, the newest first."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def keep(self, picture: Any) -> Path:
        """Save a picture with its recipe under a new name. Raises OutputError."""
        path = self.new_file(str(picture.seed))
        picture.save(path)
        return path

    def new_file(self, word: str, *, folder: str = "") -> Path:
        """A file name that is not taken, in the gallery or a folder of it, with the time and a word in it."""
        place = self.folder / folder
        with writing(place):
            place.mkdir(parents=True, exist_ok=True)
        stem = f"{time.strftime('%Y%m%d-%H%M%S')}-{word}"
        names = (f"{stem}{f'-{count}' if count > 1 else ''}.png" for count in itertools.count(1))
        return next(place / name for name in names if not (place / name).exists())

    def files(self) -> list[Path]:
        """The newest pictures, the newest first."""
        if not self.folder.is_dir():
            return []
        found = [path for path in self.folder.iterdir() if path.suffix.lower() == ".png" and path.name[0] != "."]
        return sorted(found, key=lambda path: (-path.stat().st_mtime_ns, path.name))[:_SHOWN]

    def find(self, name: str) -> Path:
        """The file of a picture. Raises ConfigError for one that is not there."""
        path = inside(self.folder, name, "picture")
        if not path.is_file() or path.suffix.lower() != ".png":
            raise ConfigError(f"picture: there is no '{name}' in the gallery any more")
        return path

    def remove(self, name: str) -> None:
        """Delete a picture."""
        path = self.find(name)
        with writing(path):
            path.unlink()
