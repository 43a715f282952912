"""Fuzz the readers of adapter files with atheris, guided by which lines of them a file reaches.

    pip install atheris
    python -m tests.fuzz.fuzz_readers -max_total_time=600 -rss_limit_mb=2048 -timeout=10

Every input is a row of choices (tests/fuzz/mutations.py): a valid file of one of the four formats, and what is done to
it. An error that is not one of Loraloom's, a message that is no readable line, more memory or more time end the run
with the input that did it; run the same line with that input's name behind it to see it again.
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import atheris

with atheris.instrument_imports(include=["loraloom.formats"]):
    from tests.fuzz import mutations

T = TypeVar("T")


class Bytes:
    """Choices out of the fuzzer's bytes."""

    def __init__(self, data: bytes) -> None:
        self._provider: Any = atheris.FuzzedDataProvider(data)

    def integer(self, low: int, high: int) -> int:
        return int(self._provider.ConsumeIntInRange(low, high))

    def text(self) -> str:
        return str(self._provider.ConsumeUnicode(self.integer(0, 30)))

    def pick(self, options: Sequence[T]) -> T:
        return options[self.integer(0, len(options) - 1)]


def main() -> None:
    """Fuzz until told to stop."""
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as place:

        def one(data: bytes) -> None:
            mutations.look(mutations.mutated(Bytes(data)), Path(place))

        atheris.Setup(sys.argv, one)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
