"""The shortest list of names that selects exactly some paths: a name means itself and every path that ends in it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence


def shortest_names(chosen: Sequence[str], others: Iterable[str], *, parts: int = 1) -> tuple[list[str], list[str]]:
    """Names that select `chosen` and none of `others`, and the paths that no name can select without an other.

    A name has at least `parts` parts where the path has them.

    >>> shortest_names(["a.0.query", "a.1.query"], ["a.0.key", "a.1.key"])
    (['query'], [])
    >>> shortest_names(["fc"], ["block.fc"])
    ([], ['fc'])
    """
    wanted = set(chosen)
    taken = {end for other in others if other not in wanted for end in _ends(other)}
    names, hopeless = set(), []
    for path in chosen:
        ends = _ends(path)
        name = next((end for end in ends[min(parts, len(ends)) - 1 :] if end not in taken), None)
        if name is None:
            hopeless.append(path)
        else:
            names.add(name)
    return sorted(names), hopeless


def _ends(path: str) -> list[str]:
    """The path's ends at its dots, shortest first: "a.b.c" → c, b.c, a.b.c."""
    pieces = path.split(".")
    return [".".join(pieces[start:]) for start in range(len(pieces) - 1, -1, -1)]


def exact_expression(names: Iterable[str], paths: Iterable[str]) -> str:
    """A regular expression over whole paths for what ends in one of `names`, and for exactly these `paths`."""
    return "|".join([*(rf"(?:.*\.)?{re.escape(name)}" for name in names), *map(re.escape, paths)])


def by_value(values: dict[str, float], default: float) -> dict[str, float]:
    """Patterns over the end of a path → value, for the paths whose value is not the default.

    A pattern is escaped; one that begins with ^ stands for the whole path.
    """
    patterns: dict[str, float] = {}
    for value in sorted(set(values.values()) - {default}):
        chosen = [path for path, own in values.items() if own == value]
        names, hopeless = shortest_names(chosen, values)
        patterns |= {re.escape(name): value for name in names}
        patterns |= {f"^{re.escape(path)}": value for path in hopeless}
    return patterns


def most_common(values: Sequence[float]) -> float:
    """The value that occurs most, the smallest of them in a tie."""
    counts = Counter(values)
    return min(counts, key=lambda value: (-counts[value], value))
