"""Writing beside the target: under a temporary name on the same disk, until it is known to be right."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

from loraloom.errors import OutputError


class Draft:
    """A temporary folder beside a target, gone at the end; `name` gives what is in it the target's name.

    >>> with Draft(target) as draft:        # an OutputError where the place cannot be written
    ...     write_together({draft.folder / "weights.safetensors": pieces})
    ...     draft.name(["weights.safetensors"])
    """

    def __init__(self, target: Path) -> None:
        self.target = target

    def __enter__(self) -> Draft:
        parent = self.target.absolute().parent
        self._made = [folder for folder in (parent, *parent.parents) if not folder.exists()]
        try:
            parent.mkdir(parents=True, exist_ok=True)
            self.folder = Path(tempfile.mkdtemp(prefix=f".{self.target.name}.", dir=parent))
        except OSError as error:
            raise OutputError(f"cannot write {self.target}: {error.strerror or error}") from None
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        for folder in self._made:
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()

    def path(self, name: str) -> Path:
        """Where a file of the target is drafted; "" is the target itself, where that is a file."""
        return self.folder / (name or self.target.name)

    def name(self, files: Iterable[str]) -> None:
        """Give the drafted files their names below the target. Raises OutputError."""
        try:
            for name in files:
                place = self.target / name if name else self.target
                place.parent.mkdir(parents=True, exist_ok=True)
                os.replace(self.path(name), place)
        except OSError as error:
            raise OutputError(f"cannot write {self.target}: {error.strerror or error}") from None
