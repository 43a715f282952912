"""Which pictures a sheet is made of: one recipe per cell, checked before anything is painted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any

from loraloom.errors import ConfigError, LoraloomError
from loraloom.imaging.grid.axis import Axis
from loraloom.imaging.grid.kinds import KINDS
from loraloom.imaging.recipe import Recipe

Place = tuple[int, int, int]
"""Block, row and column of a cell, from 0."""


@dataclass(frozen=True)
class Grid:
    """Rows × columns (× blocks) of pictures over one recipe; None is a side that does not vary.

    Raises ConfigError for two sides that vary the same, and for a weight axis that does not tell whose weight.
    """

    rows: Axis | None
    columns: Axis | None
    recipe: Recipe
    blocks: Axis | None = None
    title: str = ""

    def __post_init__(self) -> None:
        if not self.axes:
            raise ConfigError("a sheet needs something that varies: rows or columns")
        seen: set[tuple[str, str]] = set()
        for axis in self.axes:
            if (axis.kind, axis.name) in seen:
                raise ConfigError(f"two sides of the sheet vary the same: {' '.join((axis.kind, axis.name)).strip()}")
            seen.add((axis.kind, axis.name))
            self._check_weights(axis)
            self._check_words(axis)

    def _check_weights(self, axis: Axis) -> None:
        """A weight axis without a name needs one adapter that it must mean."""
        if not axis.turns_adapters or axis.name or any(other.puts_adapter for other in self.axes):
            return
        names = [use.name for use in self.recipe.adapters]
        if any(other.kind == "setup" for other in self.axes) or len(names) != 1:
            known = f"one of {', '.join(names)}" if names else "there is none that it could mean"
            raise ConfigError(
                f"{axis.kind}: whose? name the adapter, as in '{axis.kind} NAME: 0..1/0.25' ({known}); "
                "'scale' turns all of them"
            )

    def _check_words(self, axis: Axis) -> None:
        if axis.kind != "word" or any(other.kind in ("prompt", "negative") for other in self.axes):
            return
        if axis.name not in self.recipe.prompt + "\n" + self.recipe.negative:
            raise ConfigError(f"word: neither prompt has the text {axis.name!r} in it")

    @property
    def axes(self) -> tuple[Axis, ...]:
        """The sides that vary."""
        return tuple(axis for axis in (self.blocks, self.rows, self.columns) if axis is not None)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Blocks, rows, columns."""
        blocks, rows, columns = (
            len(axis.values) if axis is not None else 1 for axis in (self.blocks, self.rows, self.columns)
        )
        return blocks, rows, columns

    def __len__(self) -> int:
        blocks, rows, columns = self.shape
        return blocks * rows * columns

    def places(self) -> Iterator[Place]:
        """Every place, block by block, row by row."""
        blocks, rows, columns = self.shape
        return product(range(blocks), range(rows), range(columns))

    @cached_property
    def cells(self) -> dict[Place, Recipe]:
        """The recipe at every place. Raises ConfigError, naming the place, for one that cannot be."""
        return {place: self._recipe_at(place) for place in self.places()}

    def _recipe_at(self, place: Place) -> Recipe:
        given = zip((self.blocks, self.rows, self.columns), place, strict=True)
        chosen = [(axis, index) for axis, index in given if axis is not None]
        chosen.sort(key=lambda entry: list(KINDS).index(entry[0].kind))
        added = tuple(name for axis, index in chosen if axis.puts_adapter for name in axis.adapters(index))
        if not any(axis.puts_adapter for axis, _ in chosen):
            added = tuple(use.name for use in self.recipe.adapters)
        recipe = self.recipe
        try:
            for axis, index in chosen:
                recipe = axis.apply(recipe, index, added if axis.turns_adapters else ())
        except LoraloomError as error:
            told = ", ".join(f"{axis.heading} {axis.labels[index]}" for axis, index in chosen)
            raise type(error)(f"{told}: {error}") from None
        return recipe

    def labels(self, place: Place) -> dict[str, str]:
        """What varies and its value at a place, e.g. {"seed": "1"}."""
        given = zip((self.blocks, self.rows, self.columns), place, strict=True)
        return {axis.heading: axis.labels[index] for axis, index in given if axis is not None}

    def to_json(self) -> dict[str, Any]:
        """The sheet's recipe as JSON data, which `from_json` reads."""
        sides = {"rows": self.rows, "columns": self.columns, "blocks": self.blocks}
        axes = {side: axis.to_json() for side, axis in sides.items() if axis is not None}
        return {"title": self.title, **axes, "recipe": self.recipe.to_json()}

    @classmethod
    def from_json(cls, data: Any) -> Grid:
        """A sheet from what `to_json` gave. Raises ConfigError for anything else."""
        if not isinstance(data, dict) or not isinstance(data.get("recipe"), dict):
            raise ConfigError("what was read is not the recipe of a sheet")
        axes = {side: Axis.from_json(data[side]) for side in ("rows", "columns", "blocks") if side in data}
        recipe = Recipe.from_json(data["recipe"])
        return cls(axes.get("rows"), axes.get("columns"), recipe, axes.get("blocks"), str(data.get("title", "")))
