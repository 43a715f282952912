"""Any change to a valid file of the four formats is refused in one of our sentences, or read rightly."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.fuzz import mutations

T = TypeVar("T")


class Drawn:
    """Choices that Hypothesis makes, and makes smaller where something fails."""

    def __init__(self, data: st.DataObject) -> None:
        self._data = data

    def integer(self, low: int, high: int) -> int:
        return self._data.draw(st.integers(low, high))

    def text(self) -> str:
        return self._data.draw(st.text(max_size=20))

    def pick(self, options: Sequence[T]) -> T:
        return options[self.integer(0, len(options) - 1)]


@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_any_change_is_refused_or_read(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as place, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mutations.look(mutations.mutated(Drawn(data)), Path(place))


class First:
    """No mutation: the seeds themselves."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def integer(self, low: int, high: int) -> int:
        return low

    def text(self) -> str:
        return ""

    def pick(self, options: Sequence[T]) -> T:
        return options[self.seed]


def test_the_seeds_are_sound(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = [mutations.look(mutations.mutated(First(i)), tmp_path) for i in range(len(mutations.SEEDS))]
    assert all(told.startswith("read / read") for told in found), found
    assert found[0].endswith("read") and found[1].endswith("refused") and found[-1].endswith("read")
