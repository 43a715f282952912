"""The classes of a classification task: their names, their order, and what cannot be a class."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from loraloom.data.records import quoted
from loraloom.data.table import Example
from loraloom.errors import DataError, suggest

_NUMBER = re.compile(r"-?\d+(\.\d+)?", re.ASCII)
_MOST_FRACTIONS = 20  # distinct labels with a fraction: above, it is a measurement and not a class
_MOST_COUNTED = 8  # classes whose examples a note counts
_FEW_ROWS = 8  # below, as many classes as rows may be a first try rather than a mistake


def label_name(value: Any) -> str:
    """A label as text, the same for all ways of writing it: 1, 1.0, "1" and "1.0" are "1"; True is "true".

    >>> [label_name(value) for value in (3, 2.0, " 2.0 ", 0.5, True, "TRUE", "0.50")]
    ['3', '2', '2', '0.5', 'true', 'true', '0.50']
    """
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = str(value).strip()
    if text.lower() in ("true", "false"):
        return text.lower()
    if _NUMBER.fullmatch(text) and "." in text and not text.partition(".")[2].strip("0"):
        text = text.partition(".")[0]  # 2.0, as spreadsheets write 2 in a column with gaps
    return "0" if text == "-0" else text


@dataclass(frozen=True)
class Labels:
    """The classes in their order: the index of a name is the class number that the model learns."""

    names: tuple[str, ...]
    """Numbers in numeric order, text in alphabetical order (digits within it by value)."""

    @classmethod
    def from_examples(cls, examples: Sequence[Example], *, role: str = "label", column: str | None = None) -> Labels:
        """The classes that occur in `examples`. Raises DataError for labels that cannot be classes.

        `column` is the name of their column, for the error: a single class, fractions that look like
        measurements, and nearly as many classes as rows, which mean that another column was meant.
        """
        counts = Counter(label_name(example.values[role]) for example in examples)
        source = examples[0].source if examples else "the training data"
        where = f"{source}, {f'column {column!r}' if column else f'{role} column'}"
        if len(counts) < 2:
            found = f"only {next(iter(counts))!r} in {len(examples)} rows" if counts else "no rows"
            raise DataError(f"{where}: expected at least two different labels, found {found}")
        _check_plausible(where, counts, len(examples))
        return cls(tuple(sorted(counts, key=_order(counts))))

    def __len__(self) -> int:
        return len(self.names)

    def index(self, value: Any, example: Example | None = None) -> int:
        """The class number of a label. Raises DataError, naming the example's file and line, if it is new."""
        try:
            return self.names.index(label_name(value))
        except ValueError:
            raise DataError(self._unknown([(value, example)])) from None

    def encode(self, examples: Sequence[Example], *, role: str = "label") -> list[int]:
        """The class number of every example. Raises one DataError for all labels that training never saw."""
        numbers = {name: number for number, name in enumerate(self.names)}
        found = [numbers.get(label_name(example.values[role]), -1) for example in examples]
        if -1 in found:
            unknown = [(e.values[role], e) for e, number in zip(examples, found, strict=True) if number < 0]
            raise DataError(self._unknown(unknown))
        return found

    def counts(self, examples: Iterable[Example], *, role: str = "label") -> dict[str, int]:
        """How many of `examples` each class has, in the order of the classes."""
        counts = Counter(label_name(example.values[role]) for example in examples)
        return {name: counts[name] for name in self.names}

    def count_note(self, examples: Iterable[Example]) -> str:
        """How many classes there are, and how many of `examples` the first few have."""
        shown = ", ".join(f"{name} ({count})" for name, count in list(self.counts(examples).items())[:_MOST_COUNTED])
        return f"{len(self)} labels: {shown}" + (", …" if len(self) > _MOST_COUNTED else "")

    def notes(self) -> list[str]:
        """What a reader should know of the names: those that differ only in case."""
        by_fold: dict[str, list[str]] = {}
        for name in self.names:
            by_fold.setdefault(name.casefold(), []).append(name)
        return [
            f"labels {quoted(same)} differ only in case and are kept apart"
            for same in by_fold.values()
            if len(same) > 1
        ]

    def _unknown(self, faults: Sequence[tuple[Any, Example | None]]) -> str:
        value, example = faults[0]
        name = label_name(value)
        others = sorted({label_name(other) for other, _ in faults} - {name})
        also = f" (as are {quoted(others, most=5)})" if others else ""
        where = f"{example.place}: " if example else ""
        rows = f" in {len(faults)} rows" if len(faults) > 1 else ""
        return (
            f"{where}the label {name!r}{also} is not among those that the model was trained on, "
            f"{quoted(self.names)}{rows}{suggest(name, self.names, most=1)}"
        )


def _check_plausible(where: str, counts: Counter[str], rows: int) -> None:
    fractions = [name for name in counts if _NUMBER.fullmatch(name) and not float(name).is_integer()]
    if fractions and len(counts) > _MOST_FRACTIONS:
        raise DataError(
            f"{where}: {len(counts)} different labels, with fractions such as {fractions[0]!r}: these look "
            "like measurements, not classes; give the column that holds the classes, or round to a few values"
        )
    if rows >= _FEW_ROWS and (len(counts) == rows or (rows >= 20 and len(counts) > rows / 2)):
        raise DataError(
            f"{where}: {len(counts)} different labels in {rows} rows ({quoted(list(counts), most=3)}): "
            "nearly every row has its own, so this is hardly the column of the classes; give another one"
        )


def _order(names: Iterable[str]) -> Any:
    """A sort key: by value if every name is a number, else alphabetical with digits by their value."""
    if all(_NUMBER.fullmatch(name) and math.isfinite(float(name)) for name in names):
        return lambda name: (float(name), name)

    def natural(name: str) -> tuple[list[tuple[str, int]], str]:
        # the split alternates text and digits, so like is compared with like
        parts = re.split(r"([0-9]+)", name.casefold())
        return [(part, 0) if i % 2 == 0 else ("", int(part)) for i, part in enumerate(parts)], name

    return natural
