"""The words above a sheet: what all its pictures share, and nothing that varies."""

from __future__ import annotations

from loraloom.imaging.grid.kinds import setup_label, short_name
from loraloom.imaging.grid.plan import Grid
from loraloom.imaging.grid.sheet import SheetText

_NO_PROMPT = "(empty)"


def text_of(grid: Grid) -> SheetText:
    """Title, prompts and settings that hold for every picture of a sheet."""
    varying = {axis.kind for axis in grid.axes}
    recipe = grid.recipe
    return SheetText(
        title=grid.title,
        prompt="" if "prompt" in varying else recipe.prompt or _NO_PROMPT,
        negative="" if "negative" in varying else recipe.negative,
        facts=" · ".join(_facts(grid, varying)),
    )


def _facts(grid: Grid, varying: set[str]) -> list[str]:
    recipe = grid.recipe
    told = {
        "sampler": recipe.sampler,
        "steps": f"{recipe.steps} steps",
        "guidance": f"guidance {recipe.guidance:g}",
        "size": f"{recipe.width}×{recipe.height}",
        "seed": f"seed {recipe.seed}",
        "clip-skip": f"clip skip {recipe.clip_skip}" if recipe.clip_skip > 1 else "",
        "strength": f"strength {recipe.strength:g}" if recipe.strength is not None else "",
        "setup": _adapters(grid),
    }
    return [*(text for kind, text in told.items() if text and kind not in varying), f"base {short_name(recipe.base)}"]


def _adapters(grid: Grid) -> str:
    """The adapters that no axis turns."""
    turned = {axis.name for axis in grid.axes if axis.turns_adapters}
    if "" in turned and not any(axis.puts_adapter for axis in grid.axes):
        return ""
    return ", ".join(setup_label([use]) for use in grid.recipe.adapters if use.name not in turned)
