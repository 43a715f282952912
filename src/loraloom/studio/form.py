"""The fields of the paint tab, and the recipe that they make together with the rack."""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from loraloom.errors import ConfigError
from loraloom.imaging.recipe import AdapterUse, Recipe
from loraloom.studio.rack import Use

MOST_STEPS, MOST_BATCH, MOST_SIDE = 150, 16, 2048
_LAST_SEED = 2**53 - 1
"""What a page can hold exactly; new seeds are below 2³² as everywhere."""
_OFF_PAGE = ("strength", "image", "eta", "guidance_rescale", "rescale_mean")


@dataclass(frozen=True)
class Form:
    """What the paint tab's fields hold, in their order."""

    prompt: str
    negative: str
    sampler: str
    steps: int
    guidance: float
    width: int
    height: int
    seed: int
    batch: int
    clip_skip: int

    @classmethod
    def of(cls, values: Sequence[Any]) -> Form:
        """The fields as the page sends them. Raises ConfigError for what is empty or out of range."""
        named = dict(zip((field.name for field in fields(cls)), values, strict=True))
        return cls(
            prompt=str(named["prompt"] or ""),
            negative=str(named["negative"] or ""),
            sampler=str(named["sampler"] or ""),
            steps=_whole("steps", named["steps"], 1, MOST_STEPS),
            guidance=_number("guidance", named["guidance"], 0.0, 50.0),
            width=_whole("width", named["width"], 8, MOST_SIDE),
            height=_whole("height", named["height"], 8, MOST_SIDE),
            seed=_whole("seed", named["seed"], 0, _LAST_SEED),
            batch=_whole("pictures", named["batch"], 1, MOST_BATCH),
            clip_skip=_whole("clip skip", named["clip_skip"], 1, 12),
        )

    @property
    def values(self) -> list[Any]:
        """In the order of the page."""
        return [getattr(self, field.name) for field in fields(self)]


def new_seed() -> int:
    """A seed that nobody chose."""
    return secrets.randbelow(2**32)


def recipe_of(form: Form, uses: Sequence[Use], base: str) -> Recipe:
    """What the painter is asked for."""
    return Recipe(
        prompt=form.prompt,
        negative=form.negative,
        adapters=tuple(AdapterUse(use.name, use.te, use.unet, use.blocks, use.steps) for use in uses),
        sampler=form.sampler,
        steps=form.steps,
        guidance=form.guidance,
        width=form.width,
        height=form.height,
        seed=form.seed,
        clip_skip=form.clip_skip,
        base=base,
    )


def form_of(recipe: Recipe, *, batch: int = 1) -> Form:
    """The fields that make a recipe again."""
    values = {field.name: getattr(recipe, field.name) for field in fields(Form) if field.name != "batch"}
    return Form(**{**values, "batch": batch})


def left_out(recipe: Recipe) -> list[str]:
    """What of a recipe the page has no field for, where it is not as usual."""
    usual = Recipe()
    return [name.replace("_", " ") for name in _OFF_PAGE if getattr(recipe, name) != getattr(usual, name)]


def uses_of_recipe(recipe: Recipe, known: Sequence[str]) -> tuple[list[Use], list[str]]:
    """The adapters of a recipe that are in the folders, and the names of those that are not."""
    uses, missing = [], []
    for adapter in recipe.adapters:
        name = adapter.name if adapter.name in known else Path(adapter.name).stem
        if name in known:
            uses.append(Use(name, adapter.te, adapter.unet, adapter.blocks, adapter.steps))
        else:
            missing.append(adapter.name)
    return uses, missing


def _whole(name: str, value: Any, least: int, most: int) -> int:
    number = _number(name, value, least, most)
    if not number.is_integer():
        raise ConfigError(f"{name}: {value!r} is no whole number")
    return int(number)


def _number(name: str, value: Any, least: float, most: float) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not least <= number <= most:  # NaN too
        found = "is empty" if value in (None, "") else f"is {str(value)[:40]}"
        raise ConfigError(f"{name} {found}; give a number from {least:g} to {most:g}")
    return number
