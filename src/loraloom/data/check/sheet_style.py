"""Colours, sizes and choices that the sample sheets share."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence

from loraloom.data.labels import label_name
from loraloom.data.table import Example

BLUE, ORANGE, GREY, TEXT = "#2563a8", "#c8641b", "#6b7280", "#1f2937"
CYCLE = ("#e11d48", "#2563a8", "#059669", "#c8641b", "#7c3aed", "#0891b2", "#ca8a04", "#be185d", "#4d7c0f", "#475569")
INCHES = 14.0
"""Width of a sheet; 100 dots an inch."""


def drawn(examples: Sequence[Example], count: int, salt: str = "") -> list[Example]:
    """At most `count` examples by chance, the same every time for the same `salt`, in file order."""
    if count >= len(examples):
        return list(examples)
    return [examples[number] for number in sorted(random.Random(f"sheet/{salt}").sample(range(len(examples)), count))]


def by_value(examples: Sequence[Example], role: str, most: int) -> dict[str, list[Example]]:
    """Examples by their label; of more than `most` labels, some from the most to the least frequent."""
    groups: defaultdict[str, list[Example]] = defaultdict(list)
    for example in examples:
        if role in example.values:
            groups[label_name(example.values[role])].append(example)
    ordered = sorted(groups, key=lambda name: (-len(groups[name]), name))
    if len(ordered) > most:
        ordered = [ordered[number * (len(ordered) - 1) // (most - 1)] for number in range(most)]
    return {name: groups[name] for name in ordered}
