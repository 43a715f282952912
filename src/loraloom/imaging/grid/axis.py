"""One side of a sheet: a kind, its values, and what is written beside each of them."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

from loraloom.errors import ConfigError, LoraloomError, suggest
from loraloom.imaging.grid.checkpoints import checkpoints_in
from loraloom.imaging.grid.kinds import ALIASES, KINDS, Kind, Turn, Value, kind_name, short_name, uses_of
from loraloom.imaging.recipe import Recipe

_WRITTEN = re.compile(r"""\s*([A-Za-z][\w-]*)\s*(?:"([^"]*)"|'([^']*)'|([^:=]*?))\s*[:=]\s*(.*)""", re.DOTALL)
_LABELLED = re.compile(r"([^=|]+?)\s*=\s*(.+)", re.DOTALL)


@dataclass(frozen=True)
class Axis:
    """A kind of change and its values, e.g. ``Axis("weight", (0, 0.5, 1), "pencil")``; checked when it is made.

    Raises ConfigError for an unknown kind, no values, or a value that cannot be.
    """

    kind: str
    values: tuple[Value, ...]
    """Plain data: numbers, or text as `parse_axis` reads it ("pencil:0.6 neon:0.5" for a set-up)."""
    name: str = ""
    """The adapter of a weight axis, the text that a word axis replaces."""
    labels: tuple[str, ...] = ()
    """What stands beside the values; () for the usual."""

    def __post_init__(self) -> None:
        known = kind_name(self.kind)
        if known is None:
            near = suggest(self.kind, [*KINDS, *ALIASES], most=1) or f"; there are {', '.join(KINDS)}"
            raise ConfigError(f"nothing of the name {self.kind!r} can vary{near}")
        object.__setattr__(self, "kind", known)
        object.__setattr__(self, "values", tuple(self.values))
        self._check()
        if not self.labels:
            object.__setattr__(self, "labels", tuple(self._kind.label(value) for value in self.values))
        if len(self.labels) != len(self.values):
            raise ConfigError(f"{known}: {len(self.labels)} labels for {len(self.values)} values")

    @property
    def _kind(self) -> Kind:
        return KINDS[self.kind]

    def _check(self) -> None:
        if not self.values:
            raise ConfigError(f"{self.kind}: there are no values")
        if self.name and not self._kind.named:
            raise ConfigError(f"{self.kind}: takes no name, found {self.name!r}; its values stand behind a colon")
        if not self.name and self._kind.named == "TEXT":
            raise ConfigError(f"{self.kind}: needs the text to replace, such as '{self.kind} cat: cat, dog, boat'")
        for value in self.values:
            try:
                self._kind.check(value)
            except LoraloomError as error:
                raise ConfigError(f"{self.kind}: {error}") from None
        twice = [str(value) for value, count in Counter(self.values).items() if count > 1]
        if twice:
            raise ConfigError(f"{self.kind}: {twice[0]!r} is there twice")

    @property
    def heading(self) -> str:
        """What varies, in the words of the sheet."""
        name = short_name(self.name) if self.name and self._kind.named == "[NAME]" else self.name or "weight"
        return self._kind.heading.format(kind=self.kind, name=name)

    @property
    def turns_adapters(self) -> bool:
        """Whether its values are weights of adapters."""
        return self._kind.named == "[NAME]"

    @property
    def puts_adapter(self) -> bool:
        """Whether each of its values is an adapter."""
        return self.kind in ("adapter", "checkpoint")

    def adapters(self, index: int) -> tuple[str, ...]:
        """The adapters that value number `index` of an axis of adapters puts in."""
        value = str(self.values[index])
        return (value,) if self.kind == "checkpoint" else tuple(use.name for use in uses_of(value))

    def apply(self, recipe: Recipe, index: int, names: tuple[str, ...] = ()) -> Recipe:
        """`recipe` with value number `index`; `names` are the adapters to turn where the axis names none itself."""
        own = (self.name,) if self.name else names
        return self._kind.apply(recipe, Turn(self.values[index], own))

    def to_json(self) -> dict[str, Any]:
        """The axis as JSON data, which `from_json` reads."""
        return {"kind": self.kind, "name": self.name, "values": list(self.values), "labels": list(self.labels)}

    @classmethod
    def from_json(cls, data: Any) -> Axis:
        """An axis from what `to_json` gave. Raises ConfigError for anything else."""
        try:
            return cls(str(data["kind"]), tuple(data["values"]), str(data["name"]), tuple(map(str, data["labels"])))
        except (KeyError, TypeError) as error:
            raise ConfigError(f"{str(data)[:60]!r} is not an axis of a sheet ({error})") from None


def parse_axis(text: str, where: str = "axis") -> Axis:
    """The axis that is written as ``KIND [NAME]: VALUES``, e.g. "weight pencil: 0..1/0.25"; `=` serves as well as `:`.

    Raises ConfigError, DataError in one sentence that begins with `where`.
    """
    found = _WRITTEN.fullmatch(text)
    if found is None or not text.strip():
        raise ConfigError(
            f"{where} {text!r} is not of the form KIND: VALUES, such as 'seed: 1..4'; the kinds are {', '.join(KINDS)}"
        )
    known = kind_name(found[1])
    name = next((group for group in found.group(2, 3, 4) if group), "")
    try:
        if known is None:
            return Axis(found[1], ("",))
        return _read(known, name, found[5].strip())
    except LoraloomError as error:
        raise type(error)(f"{where} {_shortened(text)!r}: {error}") from None


def _read(kind: str, name: str, text: str) -> Axis:
    values = KINDS[kind].read(text)
    if kind == "checkpoint":
        return Axis(kind, tuple(file for folder in values for file in checkpoints_in(str(folder))), name)
    if kind != "setup":
        return Axis(kind, values, name)
    labelled = [_LABELLED.fullmatch(str(value)) for value in values]
    plain = [found[2] if found else str(value) for found, value in zip(labelled, values, strict=True)]
    usual = Axis(kind, tuple(plain), name).labels
    shown = [found[1] if found else label for found, label in zip(labelled, usual, strict=True)]
    return Axis(kind, tuple(plain), name, tuple(shown))


def _shortened(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}…"
