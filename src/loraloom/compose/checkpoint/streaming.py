"""Weight files written as they are made: tensors that stay as they are go from file to file in the kernel.

Nothing larger than a block is held. What has been written is handed to the disk meanwhile, so that the flush at the
end has little left to wait for.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from loraloom.errors import FormatError, OutputError
from loraloom.formats.tensorfile import Buffer, Outline

_ELSEWHERE = (errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EBADF)
"""What the system says where it cannot copy between two files by itself."""
_MOST = 1 << 27
_BLOCK = 1 << 22
_FLUSH = 1 << 26
"""Bytes that are written before the disk is told to take them."""


@dataclass(frozen=True)
class Span:
    """Bytes of another file, from the first up to the one after the last, to be taken over as they are."""

    file: Path
    begin: int
    end: int


def in_file_order(outline: Outline) -> list[str]:
    """Names as they are to lie in a file: wide dtypes first, so that every tensor starts at a multiple of its width."""
    return sorted(outline, key=lambda name: (-outline[name][0].itemsize, name))


def write_pieces(target: Path, pieces: Iterable[Buffer | Span]) -> None:
    """Write a file piece by piece and wait until the disk has it. Raises OutputError where it cannot be written."""
    try:
        with target.open("wb", buffering=0) as file, _Flusher(file.fileno()) as flusher:
            for piece in _joined(pieces):
                size = _take(file.fileno(), piece) if isinstance(piece, Span) else _write(file.fileno(), piece)
                flusher.wrote(size)
            os.fsync(file.fileno())
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(f"cannot write {target.name}: {error.strerror or error}") from None


def copy_file(source: Path, target: Path) -> None:
    """Copy a file as it is, flushed to the disk."""
    write_pieces(target, [Span(source, 0, source.stat().st_size)])


def _joined(pieces: Iterable[Buffer | Span]) -> Iterable[Buffer | Span]:
    """Neighbouring spans of one file as one."""
    held: Span | None = None
    for piece in pieces:
        if isinstance(piece, Span) and held is not None and (piece.file, piece.begin) == (held.file, held.end):
            held = Span(held.file, held.begin, piece.end)
            continue
        if held is not None:
            yield held
        held = piece if isinstance(piece, Span) else None
        if held is None:
            yield piece
    if held is not None:
        yield held


def _write(handle: int, data: Buffer) -> int:
    view, done = memoryview(data).cast("B"), 0
    while done < len(view):
        done += os.write(handle, view[done : done + _MOST])
    return done


def _take(handle: int, span: Span) -> int:
    """Append a span of another file; by the system where it can, else by reading."""
    with span.file.open("rb", buffering=0) as source:
        position = span.begin
        while position < span.end:
            moved = _move(source.fileno(), handle, position, min(_MOST, span.end - position))
            if moved == 0:
                raise FormatError(f"{span.file} has become shorter while it was read")
            position += moved
    return span.end - span.begin


def _move(source: int, target: int, position: int, count: int) -> int:
    copy = getattr(os, "copy_file_range", None)  # Linux has it
    if copy is not None:
        try:
            moved: int = copy(source, target, count, position)
            return moved
        except OSError as error:
            if error.errno not in _ELSEWHERE:
                raise
    os.lseek(source, position, os.SEEK_SET)
    return _write(target, os.read(source, min(count, _BLOCK)))


class _Flusher:
    """Hands what has been written to the disk in a thread of its own, while more is made."""

    def __init__(self, handle: int) -> None:
        self._handle, self._since = handle, 0
        self._thread: threading.Thread | None = None

    def __enter__(self) -> _Flusher:
        return self

    def __exit__(self, *_: object) -> None:
        if self._thread is not None:
            self._thread.join()

    def wrote(self, count: int) -> None:
        self._since += count
        if self._since < _FLUSH or (self._thread is not None and self._thread.is_alive()):
            return
        self._since = 0
        self._thread = threading.Thread(target=self._flush, daemon=True)
        self._thread.start()

    def _flush(self) -> None:
        try:
            os.fsync(self._handle)
        except OSError:
            return  # the flush at the end says it again
