"""How far a sheet of pictures is: a bar on a terminal, now and then a line in a log; on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from loraloom.cli.output import console, duration

LINE_SECONDS = 10.0
"""Seconds between two lines where there is no terminal."""

Watch = Callable[[float, int], None]


@contextmanager
def sheet_progress(quiet: bool) -> Iterator[Watch | None]:
    """Who is told how many pictures of how many are finished; None where nobody wants to know."""
    if quiet:
        yield None
    elif sys.stderr.isatty():
        with _bar() as watch:
            yield watch
    else:
        yield Lines()


@contextmanager
def _bar() -> Iterator[Watch]:
    columns = (TextColumn("picture {task.description}"), BarColumn(bar_width=24), TimeRemainingColumn())
    with Progress(*columns, console=console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None)

        def watch(done: float, pictures: int) -> None:
            bar.update(task, completed=done, total=pictures, description=f"{int(done)}/{pictures}")

        yield watch


class Lines:
    """A line every so many seconds."""

    def __init__(self, every: float = LINE_SECONDS) -> None:
        self._every = every
        self._start: tuple[float, float] | None = None
        self._last = time.monotonic()

    def __call__(self, done: float, pictures: int) -> None:
        """Tell, unless it was told just now."""
        now = time.monotonic()
        if self._start is None:
            self._start = now, done
        if now - self._last < self._every:
            return
        self._last = now
        since, before = self._start
        left = (pictures - done) * (now - since) / (done - before) if done > before else None
        told = f", {duration(left)} left" if left is not None else ""
        print(f"{int(done)} of {pictures} pictures{told}", file=sys.stderr, flush=True)
