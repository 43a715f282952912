"""Pairs of a text and its translation."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

from loraloom.data.check.duplicates import check_same_texts, compare_texts
from loraloom.data.check.findings import Findings, shortened
from loraloom.data.check.modality import Layout, Sheet
from loraloom.data.check.part import Part, Progress, Tokens
from loraloom.data.check.rows import read_examples, read_rows
from loraloom.data.check.texts import check_texts
from loraloom.data.columns import Role
from loraloom.data.config import DataConfig
from loraloom.data.near import plain_text
from loraloom.data.records import Records

SOURCE = Role("source", ("source", "src", "source_text", "input", "english", "en", "sentence", "text"))
TARGET = Role("target", ("target", "tgt", "trg", "target_text", "translation", "output", "reference"))
PAIR = ("translation", "translations", "pair")
"""Names of a column whose cells hold both sides, e.g. {"en": "Hello.", "nl": "Hallo."}."""

RATIO = 4
"""How many times the usual ratio of lengths a pair's own is before it is called odd."""

_LEAST = 20  # characters of the longer side: below, a ratio says nothing


class Pairs:
    """Rows of a source and its target."""

    sheet: ClassVar[Sheet] = "texts"
    layout: ClassVar[Layout] = "table"

    def read(self, part: Part, data: DataConfig, progress: Progress | None = None) -> None:
        """Read every row; those without one of the sides are noted."""
        records, given = _unfolded(read_rows(part, data), data.columns)
        read_examples(part, records, (SOURCE, TARGET), given, ("source", "target"))
        part.examples = [
            replace(one, values={**one.values, "text": f"{one.values['source']} {one.values['target']}"})
            for one in part.examples
        ]

    def examine(self, part: Part, tokens: Tokens | None = None) -> None:
        """Lengths of both sides, sides that are the same or badly matched, duplicates."""
        check_texts(part, ("source", "target"), tokens)
        _check_sides(part)
        _check_targets(part)
        check_same_texts(part)

    def compare(self, train: Part, held_out: Part, findings: Findings) -> None:
        """Sources that training has seen."""
        compare_texts(train, held_out, findings, ignore=("target", "text"))


def _unfolded(records: Records, given: Mapping[str, str]) -> tuple[Records, Mapping[str, str]]:
    """The sides of a column of pairs as columns of their own, and which is which: as given, else in their order."""
    index = next((i for i, name in enumerate(records.names) if name.casefold() in PAIR), None)
    cells = [] if index is None else records.column(index)
    first = next((cell for cell in cells if isinstance(cell, dict)), None)
    if first is None or len(first) < 2:
        return records, given
    names = tuple(map(str, first))
    sides = {role: name for role, name in given.items() if name in names}
    free = [name for name in names if name not in sides.values()]
    for role in (SOURCE.name, TARGET.name):
        if role not in sides:
            sides[role] = free.pop(0)

    def column(index: int) -> list[Any]:
        return [cell.get(names[index]) if isinstance(cell, dict) else None for cell in cells]

    return replace(records, names=names, column=column), sides


def _check_sides(part: Part) -> None:
    """Note pairs whose sides are equal, and whose lengths do not match as those of others do."""
    ratios = [len(one.values["source"]) / len(one.values["target"]) for one in part.examples]
    usual = statistics.median(ratios) if ratios else 1.0
    for example, ratio in zip(part.examples, ratios, strict=True):
        source, target = example.values["source"], example.values["target"]
        if source.strip() == target.strip():
            part.findings.add("same-sides", f"{part.place(example)} {shortened(source, 40)!r}")
        elif max(len(source), len(target)) >= _LEAST and not usual / RATIO <= ratio <= usual * RATIO:
            sides = f"{shortened(source, 30)!r} → {shortened(target, 30)!r}"
            part.findings.add("odd-ratio", f"{part.place(example)} {sides}")


def _check_targets(part: Part) -> None:
    """Note sources that are translated in more than one way."""
    targets: defaultdict[str, dict[str, str]] = defaultdict(dict)
    for example in part.examples:
        source = plain_text(example.values["source"])
        targets[source].setdefault(plain_text(example.values["target"]), part.place(example))
    for source, found in targets.items():
        if len(found) > 1:
            part.findings.add("many-targets", f"{', '.join(list(found.values())[:3])} {shortened(source, 40)!r}")
