"""Weight files written as they are made: tensors that stay as they are go from file to file in the kernel.

Where every piece lies is known before any is made, so that as many are made at once as there are processors. Nothing
larger than a block is held by each. What has been written is handed to the disk meanwhile, so that the flush at the
end has little left to wait for.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

import torch

from loraloom.errors import FormatError, OutputError
from loraloom.formats.tensorfile import Buffer, Outline

_ELSEWHERE = (errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EBADF)
"""What the system says where it cannot copy between two files by itself."""
_MOST_WORKERS = 4
"""More would wait for the disk."""
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


@dataclass(frozen=True)
class Made:
    """Bytes that are made when their turn has come, block by block."""

    size: int
    blocks: Callable[[], Iterable[Buffer]]


Piece = Buffer | Span | Made


def in_file_order(outline: Outline) -> list[str]:
    """Names as they are to lie in a file: wide dtypes first, so that every tensor starts at a multiple of its width."""
    return sorted(outline, key=lambda name: (-outline[name][0].itemsize, name))


@contextmanager
def side_by_side() -> Iterator[ThreadPoolExecutor]:
    """As many workers as processors, each of which computes alone: torch's own threads would only get in their way.

    Where one fails, those that have not begun are not begun.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    pool = ThreadPoolExecutor(min(os.cpu_count() or 1, _MOST_WORKERS), "loraloom")
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(before)


def write_pieces(target: Path, pieces: Iterable[Piece]) -> None:
    """Write a file of pieces and wait until the disk has it. Raises OutputError where it cannot be written."""
    try:
        with target.open("wb", buffering=0) as file, side_by_side() as pool, _Flusher(file.fileno()) as flusher:
            position, tasks = 0, []
            for piece in _joined(pieces):
                tasks.append(pool.submit(_put, target, position, piece, flusher))
                position += _size(piece)
            for task in tasks:
                task.result()
            os.fsync(file.fileno())
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(f"cannot write {target.name}: {error.strerror or error}") from None


def _size(piece: Piece) -> int:
    if isinstance(piece, Span):
        return piece.end - piece.begin
    return piece.size if isinstance(piece, Made) else len(memoryview(piece).cast("B"))


def _put(target: Path, position: int, piece: Piece, flusher: _Flusher) -> None:
    """Write one piece at its place in the file, by a handle of its own."""
    with target.open("r+b", buffering=0) as file:
        if isinstance(piece, Span):
            _take(file, position, piece)
            flusher.wrote(_size(piece))
            return
        for block in piece.blocks() if isinstance(piece, Made) else [piece]:
            size = _write(file, position, block)
            position += size
            flusher.wrote(size)


def copy_file(source: Path, target: Path) -> None:
    """Copy a file as it is, flushed to the disk."""
    write_pieces(target, [Span(source, 0, source.stat().st_size)])


def _joined(pieces: Iterable[Piece]) -> Iterable[Piece]:
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


def _write(file: FileIO, position: int, data: Buffer) -> int:
    view, done = memoryview(data).cast("B"), 0
    file.seek(position)
    while done < len(view):
        done += file.write(view[done : done + _MOST])
    return done


def _take(file: FileIO, position: int, span: Span) -> None:
    """Put a span of another file at a position; by the system where it can, else by reading."""
    with span.file.open("rb", buffering=0) as source:
        begin = span.begin
        while begin < span.end:
            moved = _move(source, begin, file, position, min(_MOST, span.end - begin))
            if moved == 0:
                raise FormatError(f"{span.file} has become shorter while it was read")
            begin, position = begin + moved, position + moved


def _move(source: FileIO, begin: int, file: FileIO, position: int, count: int) -> int:
    copy = getattr(os, "copy_file_range", None)  # Linux has it
    if copy is not None:
        try:
            moved: int = copy(source.fileno(), file.fileno(), count, begin, position)
            return moved
        except OSError as error:
            if error.errno not in _ELSEWHERE:
                raise
    source.seek(begin)
    return _write(file, position, source.read(min(count, _BLOCK)))


class _Flusher:
    """Hands what has been written to the disk in a thread of its own, while more is made."""

    def __init__(self, handle: int) -> None:
        self._handle, self._since, self._lock = handle, 0, threading.Lock()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> _Flusher:
        return self

    def __exit__(self, *_: object) -> None:
        if self._thread is not None:
            self._thread.join()

    def wrote(self, count: int) -> None:
        with self._lock:
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
