"""Writing files so that what is there is whole: flushed, renamed, and a full disk told in one sentence."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save
from torch import Tensor

from loraloom.errors import OutputError

_REASONS = {
    errno.ENOSPC: "no space is left on the disk",
    errno.EDQUOT: "the disk quota is used up",
    errno.EACCES: "permission is denied",
    errno.EPERM: "permission is denied",
    errno.EROFS: "the file system is read-only",
    errno.EFBIG: "the file is larger than the file system allows",
}
_REMEDIES = {
    errno.ENOSPC: "free some, or choose another folder with --out",
    errno.EDQUOT: "free some, or choose another folder with --out",
}


@contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Turn what the system says when `path` cannot be written into one OutputError."""
    try:
        yield
    except OutputError:
        raise
    except OSError as error:
        raise _output_error(path, error.errno, error.strerror or str(error)) from error
    except SafetensorError as error:
        # The library keeps the system's number in its text alone.
        number = next((code for code in _REASONS if f"os error {code})" in str(error)), None)
        raise _output_error(path, number, str(error)) from error


def _output_error(path: str | Path, number: int | None, text: str) -> OutputError:
    reason = _REASONS.get(number or 0, text)
    remedy = _REMEDIES.get(number or 0, "choose another folder with --out")
    return OutputError(f"'{path}' cannot be written: {reason}; {remedy}")


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file and wait until the disk has it. Raises OutputError."""
    with writing(path), path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def write_json(path: Path, data: Any) -> None:
    """Write JSON data, indented, as `write_bytes` does."""
    write_bytes(path, _json_bytes(data))


def _json_bytes(data: Any) -> bytes:
    return (json.dumps(data, indent=2, ensure_ascii=False) + "\n").encode()


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file, as `write_bytes` does."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_bytes(path, save(plain))


def replace_json(path: Path, data: Any) -> None:
    """Put JSON data in the place of a file, as `replace_bytes` does."""
    replace_bytes(path, _json_bytes(data))


def replace_bytes(path: Path, data: bytes) -> None:
    """Put a new file in the place of an old one in one move: a reader sees either, never a part."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        write_bytes(partial, data)
        with writing(path):
            partial.replace(path)
            sync_folder(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Wait until the disk has the folder's list of names: a rename is lasting only then."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_tree(folder: Path) -> None:
    """Wait until the disk has every file below `folder`, whoever wrote it."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb+") as file:
                os.fsync(file.fileno())
        elif path.is_dir():
            sync_folder(path)
    sync_folder(folder)


@contextmanager
def folder_in_one_move(folder: Path) -> Iterator[Path]:
    """A folder to fill, which takes the name `folder` when the block ends and vanishes when it fails.

    The name appears only when every byte is on the disk. Raises OutputError.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    with writing(folder):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            yield partial
            sync_tree(partial)
            if folder.exists():
                shutil.rmtree(folder)
            partial.rename(folder)
            sync_folder(folder.parent)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
