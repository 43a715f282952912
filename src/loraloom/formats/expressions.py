"""Regular expressions out of files, matched without the runaway that a hostile one would cause.

Python's `re` tries one way after another, and `(a+)+b` has exponentially many. An expression with few repeats, none
inside another, cannot run away and goes to `re`. Any other is matched by the set of places that it reaches from a set
of places, piece by piece (Thompson, 1968): at most its length × the path's per repeat, whatever it says.
"""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from importlib import import_module
from typing import Any, NamedTuple

if sys.version_info >= (3, 11):
    _parser = import_module("re._parser")  # not public, and the same for many years
else:
    _parser = import_module("sre_parse")

_LONGEST = 20_000  # an alternative of a few hundred full paths
_LONGEST_ODD = 1_000  # of one that `re` does not match
_MOST_REPEATS, _MOST_CHOICES, _DEEPEST = 2, 4, 3
_PLAIN, _ESCAPED = re.compile(r"(?:[\w/]|\\[.-]|-)+"), re.compile(r"\\([.-])")
_DOT = re.compile(r"\.")
Node = tuple[Any, Any]


class _Cost(NamedTuple):
    """What makes `re` try many ways."""

    repeats: int = 0
    choices: int = 0
    nested: bool = False
    """Whether a repeat or a choice is inside a repeat."""

    @property
    def is_small(self) -> bool:
        return self.repeats <= _MOST_REPEATS and self.choices <= _MOST_CHOICES and not self.nested


class Expression:
    """An expression that can be matched in bounded time. Raises ValueError for one that is none or cannot be."""

    def __init__(self, text: str) -> None:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self._compiled, tree = re.compile(text), _parser.parse(text)
            self._nodes: list[Node] = list(tree)
            cost = _cost(self._nodes)
        except (re.error, RecursionError, OverflowError, MemoryError):
            raise ValueError("it is no regular expression") from None
        flat_choice = len(self._nodes) == 1 and cost.choices == 1  # a list of paths
        self._simple = cost.is_small
        if len(text) > (_LONGEST if self._simple or flat_choice else _LONGEST_ODD):
            raise ValueError(f"it has {len(text)} characters, more than an expression of its kind may have")
        if not self._simple and tree.state.flags & ~re.UNICODE:
            raise ValueError("it has flags beside repeats that could take for ever")
        if not self._simple and (fault := _unmatchable(self._nodes)):
            raise ValueError(f"it has {fault} beside repeats that could take for ever")

    @property
    def is_simple(self) -> bool:
        """Whether `re` itself can be trusted with it."""
        return self._simple

    @property
    def is_fixed(self) -> bool:
        """Whether it holds no repeat, so that it can be a part of a larger expression."""
        return self._simple and not _cost(self._nodes).repeats

    def fits(self, path: str, starts: Iterable[int] = (0,), ends: Iterable[int] | None = None) -> bool:
        """Whether some part of the path from one of `starts` to one of `ends` (its end) is matched in full."""
        stops = {len(path)} if ends is None else set(ends)
        if self._simple:
            return any(self._compiled.fullmatch(path, start, stop) for start in starts for stop in stops)
        return bool(_reached(self._nodes, path, set(starts)) & stops)


@lru_cache(maxsize=4096)
def expression(text: str) -> Expression:
    """The expression, worked out once. Raises ValueError as `Expression` does."""
    return Expression(text)


def is_expression(text: object) -> bool:
    """Whether a value of a file is an expression that can be matched."""
    try:
        return isinstance(text, str) and expression(text) is not None
    except ValueError:
        return False


def beginnings(path: str) -> list[int]:
    """Where the parts of a dotted path begin."""
    return [0, *(dot.end() for dot in _DOT.finditer(path))]


def endings(path: str) -> list[int]:
    """Where the parts of a dotted path end."""
    return [*(dot.start() for dot in _DOT.finditer(path)), len(path)]


class Table:
    """Values by pattern, where a pattern means a path or its end after a dot and the first that fits wins.

    Names, which most patterns are, are looked up; only what is a real expression is tried.
    """

    def __init__(self, patterns: Mapping[str, Any]) -> None:
        self._names: dict[str, tuple[int, Any]] = {}
        self._expressions: list[tuple[int, str, Any]] = []
        for at, (pattern, value) in enumerate(patterns.items()):
            name = _ESCAPED.sub(r"\1", pattern)
            if _PLAIN.fullmatch(pattern):
                self._names.setdefault(name, (at, value))
            else:
                self._expressions.append((at, pattern, value))

    def first(self, path: str, default: Any) -> Any:
        """The value of the first pattern that fits."""
        if not self._names and not self._expressions:
            return default
        starts = beginnings(path)
        found = [self._names[path[start:]] for start in starts if path[start:] in self._names]
        tried = next((entry for entry in self._expressions if expression(entry[1]).fits(path, starts)), None)
        found += [] if tried is None else [(tried[0], tried[2])]
        return min(found, key=lambda entry: entry[0])[1] if found else default


# -- how many ways ------------------------------------------------------------------------------------


def _cost(nodes: Iterable[Node]) -> _Cost:
    repeats = choices = 0
    nested = False
    for op, arg in nodes:
        inner = _total(_cost(part) for part in _parts(str(op), arg))
        if str(op).endswith("REPEAT"):
            nested |= arg[1] > 1 and (inner.repeats + inner.choices > 0)
            repeats += arg[1] > 1
            choices += arg[0] != arg[1]
        choices += str(op) == "BRANCH"
        repeats, choices, nested = repeats + inner.repeats, choices + inner.choices, nested or inner.nested
    return _Cost(repeats, choices, nested)


def _total(costs: Iterable[_Cost]) -> _Cost:
    found = list(costs)
    return _Cost(sum(c.repeats for c in found), sum(c.choices for c in found), any(c.nested for c in found))


def _parts(op: str, arg: Any) -> list[list[Node]]:
    """The pieces inside a piece."""
    if op == "BRANCH":
        return [list(part) for part in arg[1]]
    if op.endswith("REPEAT"):
        return [list(arg[2])]
    if op in ("SUBPATTERN", "ASSERT", "ASSERT_NOT"):
        return [list(arg[-1])]
    return [list(arg)] if op == "ATOMIC_GROUP" else []


# -- places -------------------------------------------------------------------------------------------


def _reached(nodes: Iterable[Node], path: str, places: set[int]) -> set[int]:
    """Where a row of pieces can end that begins at one of `places`."""
    for op, arg in nodes:
        places = _STEPS[str(op)](arg, path, places)
    return places


def _unmatchable(nodes: Iterable[Node], repeats: int = 0, looks: int = 0) -> str:
    """What could not be matched here, or not soon: an unknown piece, flags, many repeats inside one another."""
    for op, arg in nodes:
        name = str(op)
        if name not in _STEPS:
            return f"a piece ({name.lower()})"
        if name == "SUBPATTERN" and (arg[1] or arg[2]):
            return "flags"
        inside = repeats + name.endswith("REPEAT"), looks + name.startswith("ASSERT")
        if inside[0] > _DEEPEST or inside[1] > 1:
            return "repeats or looks deep inside others"
        if fault := next(filter(None, (_unmatchable(part, *inside) for part in _parts(name, arg))), ""):
            return fault
    return ""


def _one(holds: Callable[[Any, str], bool]) -> Callable[[Any, str, set[int]], set[int]]:
    """A piece that takes one character."""
    return lambda arg, path, places: {at + 1 for at in places if at < len(path) and holds(arg, path[at])}


def _choice(arg: Any, path: str, places: set[int]) -> set[int]:
    return set[int]().union(*(_reached(part, path, places) for part in arg[1]))


def _group(arg: Any, path: str, places: set[int]) -> set[int]:
    return _reached(arg[3], path, places)


def _repeat(arg: Any, path: str, places: set[int]) -> set[int]:
    least, most, part = arg
    for _ in range(least):
        after = _reached(part, path, places)
        if after == places:
            break
        places = after
    found, new, count = set(places), places, least
    while new and count < most:
        new = _reached(part, path, new) - found
        found |= new
        count += 1
    return found


def _look(arg: Any, path: str, places: set[int]) -> set[int]:
    direction, part = arg
    if direction > 0:
        return {at for at in places if _reached(part, path, {at})}
    return {at for at in places if any(at in _reached(part, path, {start}) for start in range(at + 1))}


def _at(arg: Any, path: str, places: set[int]) -> set[int]:
    name = str(arg)
    if name.startswith("AT_BEGINNING"):
        return places & {0}
    if name.startswith("AT_END"):
        return places & {len(path)}
    turns = {at for at in places if _is_word(path, at - 1) != _is_word(path, at)}
    return places - turns if "NON" in name else turns


def _is_word(path: str, at: int) -> bool:
    return 0 <= at < len(path) and (path[at].isalnum() or path[at] == "_")


_CATEGORIES: dict[str, Callable[[str], bool]] = {
    "DIGIT": str.isdecimal,
    "SPACE": str.isspace,
    "WORD": lambda sign: sign.isalnum() or sign == "_",
}


def _is_in(items: Any, sign: str) -> bool:
    found, wanted = False, True
    for op, arg in items:
        name = str(op)
        if name == "NEGATE":
            wanted = False
        elif name == "LITERAL":
            found |= ord(sign) == arg
        elif name == "RANGE":
            found |= arg[0] <= ord(sign) <= arg[1]
        else:
            kind = str(arg).rpartition("_")[2]
            found |= _CATEGORIES[kind](sign) != ("_NOT_" in str(arg))
    return found == wanted


_STEPS: dict[str, Callable[[Any, str, set[int]], set[int]]] = {
    "LITERAL": _one(lambda arg, sign: ord(sign) == arg),
    "NOT_LITERAL": _one(lambda arg, sign: ord(sign) != arg),
    "ANY": _one(lambda arg, sign: sign != "\n"),
    "IN": _one(_is_in),
    "BRANCH": _choice,
    "SUBPATTERN": _group,
    "MAX_REPEAT": _repeat,
    "MIN_REPEAT": _repeat,
    "ASSERT": _look,
    "ASSERT_NOT": lambda arg, path, places: places - _look(arg, path, places),
    "AT": _at,
}
