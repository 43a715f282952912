"""The encodings used last, kept so that turning a weight or a seed encodes nothing again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Value = TypeVar("Value")


class Memory(Generic[Value]):
    """A table of at most `size` values that forgets what has gone unused longest."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.made = 0
        """How often a value had to be made."""
        self._values: OrderedDict[Hashable, Value] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], Value]) -> Value:
        """The value kept under `key`, or the one that `make` makes."""
        if key in self._values:
            self._values.move_to_end(key)
            return self._values[key]
        self.made += 1
        value = self._values[key] = make()
        while len(self._values) > self.size:
            self._values.popitem(last=False)
        return value

    def clear(self) -> None:
        """Forget everything."""
        self._values.clear()
