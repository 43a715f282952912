"""Where a checkpoint is written: a folder, or one file, that takes its name when all of it is known to be right."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from loraloom.compose.checkpoint.opened import Checkpoint
from loraloom.errors import ConfigError, OutputError
from loraloom.formats.draft import Draft

_SUFFIX = ".safetensors"


@dataclass(frozen=True)
class FolderTarget:
    """The folder, or the .safetensors file, that a checkpoint is to become."""

    path: Path
    overwrite: bool = False

    @property
    def single(self) -> bool:
        """Whether it is one file."""
        return self.path.suffix == _SUFFIX

    def check(self, checkpoint: Checkpoint, adapters: Sequence[Path]) -> None:
        """Whether it may be written, before any work is done. Raises OutputError, ConfigError.

        What is read is never written over: it would be gone where the work fails.
        """
        if self.single and checkpoint.form != "file":
            raise ConfigError(
                f"--out '{self.path}': {checkpoint.name} is a folder, and becomes one: leave {_SUFFIX} out"
            )
        place = self.path.resolve()
        for source in (checkpoint.path, *adapters):
            read = source.resolve()
            if place == read or place in read.parents or (read.is_dir() and read in place.parents):
                raise OutputError(f"'{self.path}' is, holds or lies in '{source}', which is read: choose another name")
        taken = self.path.is_file() or (self.path.is_dir() and any(self.path.iterdir()))
        if taken and not self.overwrite:
            raise OutputError(f"'{self.path}' is there already: choose another name, or say --overwrite")
        if self.path.exists() and self.path.is_file() != self.single:
            kind = "file" if self.path.is_file() else "folder"
            raise OutputError(f"'{self.path}' is a {kind}, and the other is to be written")
        if taken and not self.single and not _is_checkpoint(self.path):
            raise OutputError(f"'{self.path}' is a folder with other things than a checkpoint: it is not overwritten")

    def draft(self) -> FolderDraft:
        """A temporary place beside it, gone at the end unless it was given the name."""
        return FolderDraft(self.path, self.single)


def _is_checkpoint(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("config.json", "model_index.json")) or any(
        folder.glob(f"*{_SUFFIX}")
    )


class FolderDraft(Draft):
    """A draft whose folder as a whole becomes the target, so that no file of an older one stays in it."""

    def __init__(self, target: Path, single: bool) -> None:
        super().__init__(target)
        self.single = single

    def __enter__(self) -> FolderDraft:
        super().__enter__()
        return self

    def path(self, name: str) -> Path:
        """Where a file of the target is drafted; "" is the target itself."""
        return self.folder / (name or self.target.name) if self.single or name else self.folder

    def name(self, files: object = None) -> None:
        """Give the draft the target's name. Raises OutputError; the older target is then still there."""
        try:
            if self.single:
                os.replace(self.path(""), self.target)
                return
            _as_others_are(self.folder)
            older = Path(tempfile.mkdtemp(prefix=f".{self.target.name}.", dir=self.folder.parent))
            try:
                self._swap(older)
            finally:
                shutil.rmtree(older, ignore_errors=True)
        except OSError as error:
            raise OutputError(f"cannot write {self.target}: {error.strerror or error}") from None

    def _swap(self, older: Path) -> None:
        if self.target.exists():
            os.rename(self.target, older / "older")
        try:
            os.rename(self.folder, self.target)
        except OSError:
            if (older / "older").exists():
                os.rename(older / "older", self.target)
            raise


def _as_others_are(folder: Path) -> None:
    """Temporary folders are for their owner alone; a checkpoint is as readable as any new folder."""
    mask = os.umask(0)
    os.umask(mask)
    folder.chmod(0o777 & ~mask)
