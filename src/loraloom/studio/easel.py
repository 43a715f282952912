"""One painter, many wishes: pictures are painted one after another, told step by step, and can be stopped.

A wish is painted in a thread of its own and tells events to whoever iterates over it. Live wishes (a slider
was turned) give way to newer wishes of the same page: only the newest is worth its time.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from loraloom.errors import LoraloomError

Job = Callable[["Told", Callable[[], bool]], list[Any]]
"""Some painting: told of its progress, asked whether to stop, it returns pictures."""


class Told(Protocol):
    """Who is told how far a job is."""

    def __call__(self, step: int, steps: int, words: str = "") -> None:
        """`step` of `steps` are done; `words` say so where the numbers do not."""


@dataclass(frozen=True)
class Progress:
    """Steps are done."""

    step: int
    steps: int
    words: str = ""


@dataclass(frozen=True)
class Painted:
    """The end of a wish: the pictures, or the part of them that was ready when it was stopped."""

    pictures: list[Any]
    stopped: bool = False


@dataclass(frozen=True)
class Failed:
    """The end of a wish that could not be painted."""

    sentence: str


@dataclass(frozen=True)
class Superseded:
    """The end of a live wish that a newer one has replaced."""


Event = Progress | Painted | Failed | Superseded


@dataclass(eq=False)
class _Wish:
    page: str
    live: bool
    number: int
    stopped: threading.Event = field(default_factory=threading.Event)
    events: queue.SimpleQueue[Event] = field(default_factory=queue.SimpleQueue)


class Easel:
    """Does painting jobs one at a time: they share one painter and one processor."""

    def __init__(self) -> None:
        self._turn = threading.Lock()
        self._state = threading.Lock()
        self._newest: dict[str, int] = {}
        self._wishes: list[_Wish] = []

    def do(self, job: Job, *, page: str = "", live: bool = False) -> Iterator[Event]:
        """Do a job, and tell how it goes; the last event is Painted, Failed or Superseded.

        `page` tells the wishes of one browser page from another's. Giving up the iterator stops the job.
        """
        with self._state:
            number = self._newest[page] = self._newest.get(page, 0) + 1
            wish = _Wish(page, live, number)
            for older in self._wishes:
                if older.page == page and older.live:
                    older.stopped.set()
            self._wishes.append(wish)
        thread = threading.Thread(target=self._work, args=(wish, job), daemon=True)
        thread.start()
        try:
            yield from _told(wish)
        finally:
            wish.stopped.set()
            thread.join()

    def stop(self, page: str = "") -> bool:
        """Stop what is painted for a page; whether there was anything."""
        with self._state:
            mine = [wish for wish in self._wishes if wish.page == page]
        for wish in mine:
            wish.stopped.set()
        return bool(mine)

    @property
    def busy(self) -> bool:
        """Whether anything is being painted or waits for its turn."""
        return bool(self._wishes)

    def _work(self, wish: _Wish, job: Job) -> None:
        try:
            with self._turn:
                wish.events.put(self._done(wish, job))
        finally:
            with self._state:
                self._wishes.remove(wish)

    def _done(self, wish: _Wish, job: Job) -> Event:
        if self._outdated(wish) or wish.stopped.is_set():
            return self._end(wish, [])

        def tell(step: int, steps: int, words: str = "") -> None:
            wish.events.put(Progress(step, steps, words))

        try:
            return self._end(wish, job(tell, wish.stopped.is_set))
        except LoraloomError as error:
            return Failed(str(error))
        except MemoryError:
            return Failed("the picture needs more memory than there is; take a smaller size or batch")
        except Exception as error:  # the border: the page shows one sentence, never a traceback
            return Failed(f"painting failed with {type(error).__name__}: {' '.join(str(error).split())[:300]}")

    def _end(self, wish: _Wish, pictures: list[Any]) -> Event:
        return Superseded() if self._outdated(wish) else Painted(pictures, stopped=wish.stopped.is_set())

    def _outdated(self, wish: _Wish) -> bool:
        return wish.live and self._newest[wish.page] != wish.number


def _told(wish: _Wish) -> Iterator[Event]:
    """The events of a wish up to its last; of several waiting Progress events only the newest."""
    while True:
        event = wish.events.get()
        while isinstance(event, Progress) and not wish.events.empty():
            event = wish.events.get()
        yield event
        if not isinstance(event, Progress):
            return
