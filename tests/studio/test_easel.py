"""Jobs one after another, told step by step, stopped, and given up for newer ones."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from loraloom.errors import ConfigError
from loraloom.studio.easel import Easel, Event, Failed, Job, Painted, Progress, Superseded, Told


def steps(count: int, pause: float = 0.0) -> Job:
    def job(tell: Told, stop: Callable[[], bool]) -> list[Any]:
        for step in range(1, count + 1):
            if stop():
                return []
            tell(step, count)
            time.sleep(pause)
        return ["picture"]

    return job


def fails(error: Exception) -> Job:
    def job(tell: Told, stop: Callable[[], bool]) -> list[Any]:
        raise error

    return job


def last(events: Any) -> Event:
    return list(events)[-1]


def test_progress_then_the_pictures() -> None:
    events = list(Easel().do(steps(5, 0.02)))
    assert events[-1] == Painted(["picture"])
    assert events[:-1] and all(isinstance(event, Progress) for event in events[:-1])
    assert [event.step for event in events[:-1]] == sorted(event.step for event in events[:-1])  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (ConfigError("no such sampler"), "no such sampler"),
        (RuntimeError("a\n  b"), "painting failed with RuntimeError: a b"),
        (MemoryError(), "the picture needs more memory than there is; take a smaller size or batch"),
    ],
)
def test_a_failure_is_a_sentence_and_the_next_job_is_done(error: Exception, sentence: str) -> None:
    easel = Easel()
    assert last(easel.do(fails(error))) == Failed(sentence)
    assert last(easel.do(steps(1))) == Painted(["picture"])


def test_stop_ends_a_job_of_that_page_alone() -> None:
    easel = Easel()
    events = easel.do(steps(500, 0.01), page="a")
    next(events)
    assert not easel.stop("b")
    assert easel.stop("a")
    assert last(events) == Painted([], stopped=True)
    assert not easel.stop("a") and not easel.busy


def test_giving_up_the_iterator_stops_the_job() -> None:
    easel = Easel()
    events = easel.do(steps(500, 0.01))
    next(events)
    events.close()
    assert not easel.busy


def test_a_newer_wish_takes_the_place_of_a_live_one() -> None:
    easel, found = Easel(), dict[int, Event]()

    def wish(number: int) -> None:
        found[number] = last(easel.do(steps(5 if number == 3 else 500, 0.01), page="a", live=True))

    threads = [threading.Thread(target=wish, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
        time.sleep(0.05)
    began = time.perf_counter()
    for thread in threads:
        thread.join()
    assert [found[number] for number in range(3)] == [Superseded()] * 3
    assert found[3] == Painted(["picture"])
    assert time.perf_counter() - began < 3, "the older wishes were painted to their end"


def test_a_live_wish_stops_neither_a_pressed_one_nor_another_page() -> None:
    easel, found = Easel(), dict[str, Event]()

    def do(name: str, page: str, live: bool) -> threading.Thread:
        def work() -> None:
            found[name] = last(easel.do(steps(15, 0.01), page=page, live=live))

        thread = threading.Thread(target=work)
        thread.start()
        time.sleep(0.03)
        return thread

    for thread in (do("pressed", "a", False), do("live", "a", True), do("other", "b", True)):
        thread.join()
    assert list(found.values()) == [Painted(["picture"])] * 3


def test_one_job_at_a_time() -> None:
    easel, now, most = Easel(), [0], [0]

    def job(tell: Told, stop: Callable[[], bool]) -> list[Any]:
        now[0] += 1
        most[0] = max(most[0], now[0])
        time.sleep(0.02)
        now[0] -= 1
        return []

    threads = [threading.Thread(target=lambda page=page: list(easel.do(job, page=page))) for page in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]
