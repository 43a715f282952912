"""`loraloom grid`: one sheet of pictures, in rows and columns over whatever a recipe has."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from loraloom.cli.options import Debug, Json, settings_flags
from loraloom.cli.recipe_options import (
    PICTURE_FLAGS,
    Device,
    Dtype,
    Embeddings,
    Lora,
    LoraDir,
    PictureBase,
    opened_painter,
    recipe_of,
)
from loraloom.errors import ConfigError, OutputError

if TYPE_CHECKING:
    from loraloom.imaging.grid import Grid, Sheet, SheetPlan
    from loraloom.imaging.recipe import Recipe

MOST_CELLS = 100
"""Cells of a sheet that is made without --yes."""
SEED = 0
"""Where neither an option nor an axis says; always the same, so that the same command goes on where it was ended."""

FLAGS = tuple(
    replace(flag, help=f"Seed of every picture. [default: {SEED}]") if flag.key == "seed" else flag
    for flag in PICTURE_FLAGS
)


@settings_flags(FLAGS)
def grid(
    *,
    rows: Annotated[
        str | None, typer.Option(metavar="AXIS", help="What varies downwards, such as 'seed: 1..4'.")
    ] = None,
    columns: Annotated[
        str | None, typer.Option(metavar="AXIS", help="What varies to the right: 'weight pencil: 0..1/0.25'.")
    ] = None,
    blocks: Annotated[
        str | None, typer.Option(metavar="AXIS", help="A third axis: the sheet has a block for each of its values.")
    ] = None,
    out: Annotated[str, typer.Option(metavar="FILE", help="The sheet, a .png file.")] = "sheet.png",
    pictures: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="Keep every single picture here, each with its own recipe."),
    ] = None,
    title: Annotated[str, typer.Option(metavar="TEXT", help="Stands at the top of the sheet.")] = "",
    cell: Annotated[
        int | None,
        typer.Option(metavar="N", help="Pixels of a cell's longer side. [default: the picture's, small ones enlarged]"),
    ] = None,
    lora: Lora = [],  # noqa: B006 typer wants the default as it is
    lora_dir: LoraDir = [],  # noqa: B006
    embeddings: Embeddings = None,
    base: PictureBase = None,
    again: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="FILE",
            help="Make this sheet again, or begin with the recipe of a picture; other options go before it.",
        ),
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option(min=1, max=64, metavar="N", help="Seeds that are painted in one call. [default: 1 or 4]"),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Tell how many pictures it would be, and end.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help=f"Make more than {MOST_CELLS} cells.")] = False,
    device: Device = "auto",
    dtype: Dtype = "auto",
    json: Json = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
    debug: Debug = False,
    settings: Mapping[str, Any],
) -> None:
    """Make one sheet of pictures over adapter weights, prompts, seeds and more.

    An axis is written KIND: VALUES, with a name behind the kind where it needs one. The kinds: seed, steps, guidance,
    sampler, size, clip-skip, strength, eta; prompt, negative (texts between bars, or @FILE with one a line); word TEXT
    (others in its place); weight NAME, te NAME, unet NAME (of an adapter); scale (of all adapters); adapter (pencil,
    neon:0.8, none); setup (none | pencil:1 | soft = pencil:0.6 neon:0.5); checkpoint (a folder of adapters). Numbers
    may be ranges: 1..4, 0..1/0.25 or 0..1[5]. A sheet that was interrupted goes on with the same command.
    """
    file = _sheet_file(out)
    from loraloom.cli import output
    from loraloom.imaging.grid import make_sheet, plan_sheet

    old, axes, old_title = _begun(again, {"rows": rows, "columns": columns, "blocks": blocks})
    painter = opened_painter(base, old, lora_dir=lora_dir, embeddings=embeddings, device=device, dtype=dtype)
    given = settings if old is not None else {"seed": SEED, **settings}
    recipe = painter.check(recipe_of(painter, given, lora, old=old))
    made = _grid(axes, recipe, title or old_title)
    kept = Path(pictures).expanduser() if pictures is not None else file.with_name(f".{file.name}.pictures")
    plan = plan_sheet(painter, made, folder=kept, cell=cell)
    if dry_run:
        return _tell_plan(plan, made, json)
    if plan.cells > MOST_CELLS and not yes:
        raise ConfigError(f"the sheet has {plan.cells:,} cells, {plan.left:,} of them to be painted: --yes makes it")
    from loraloom.cli.sheet_progress import sheet_progress

    try:
        with sheet_progress(quiet) as watch:
            sheet = make_sheet(painter, made, folder=kept, batch=batch, cell=cell, watch=watch)
    except KeyboardInterrupt:
        print(f"the finished pictures are kept in '{kept}': the same command goes on", file=sys.stderr)
        raise
    sheet.save(file)
    if pictures is None:
        _remove(kept)
    for note in sheet.notes:
        print(f"note: {note}", file=sys.stderr)
    if json:
        output.emit(_told(sheet, file, pictures))
    else:
        output.say(f"{file}  {_counted(sheet)}")


def _sheet_file(out: str) -> Path:
    """Raises ConfigError, OutputError before the work rather than after it."""
    path = Path(out).expanduser()
    if path.suffix.lower() != ".png":
        raise ConfigError(f"--out '{out}': the name must end in .png, which carries the recipe of the sheet")
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise OutputError(f"--out '{out}': {'it is a folder' if path.is_dir() else 'there is no such folder'}")
    return path


def _begun(again: str | None, written: Mapping[str, str | None]) -> tuple[Recipe | None, dict[str, Any], str]:
    """Recipe, axes and title to begin with: of an older sheet or picture, and what is written over it."""
    from loraloom.errors import DataError
    from loraloom.imaging.grid import parse_axis, read_grid
    from loraloom.imaging.recipe import read_picture

    axes = {side: parse_axis(text, f"--{side}") for side, text in written.items() if text is not None}
    if again is None:
        return None, axes, ""
    try:
        old = read_grid(again)
    except DataError:
        return read_picture(again), axes, ""
    before = {"rows": old.rows, "columns": old.columns, "blocks": old.blocks}
    return old.recipe, {**{side: axis for side, axis in before.items() if axis is not None}, **axes}, old.title


def _grid(axes: Mapping[str, Any], recipe: Recipe, title: str) -> Grid:
    from loraloom.imaging.grid import Grid

    if not axes:
        raise ConfigError("grid needs --rows AXIS or --columns AXIS, such as --columns 'seed: 1..4'")
    if "prompt" not in {axis.kind for axis in axes.values()} and not recipe.prompt:
        raise ConfigError('grid needs --prompt "TEXT", or an axis of prompts')
    return Grid(axes.get("rows"), axes.get("columns"), recipe, axes.get("blocks"), title)


def _remove(folder: Path) -> None:
    """The pictures that were kept lest the sheet be interrupted: it is whole now."""
    import shutil

    shutil.rmtree(folder, ignore_errors=True)


def _tell_plan(plan: SheetPlan, made: Grid, json: bool) -> None:
    from loraloom.cli import output

    blocks, rows, columns = made.shape
    if json:
        told = {"cells": plan.cells, "pictures": plan.pictures, "finished": plan.finished, "left": plan.left}
        shape = {"rows": rows, "columns": columns, "blocks": blocks, "cell": list(plan.cell)}
        return output.emit({**told, "steps": plan.steps, **shape})
    several = f"{blocks} blocks of " if blocks > 1 else ""
    output.say(
        f"{several}{rows} rows × {columns} columns: {plan.cells:,} cells of {plan.cell[0]} × {plan.cell[1]} pixels"
    )
    same = (
        f" ({plan.cells - plan.pictures:,} cells show one that is there already)" if plan.pictures < plan.cells else ""
    )
    finished = f", {plan.finished:,} of them finished" if plan.finished else ""
    output.say(f"{plan.pictures:,} pictures{same}{finished}; {plan.left:,} to paint, {plan.steps:,} steps")


def _told(sheet: Sheet, file: Path, pictures: str | None) -> dict[str, Any]:
    blocks, rows, columns = sheet.grid.shape
    return {
        "sheet": str(file),
        "pictures": pictures,
        "rows": rows,
        "columns": columns,
        "blocks": blocks,
        "width": sheet.image.width,
        "height": sheet.image.height,
        "painted": sheet.painted,
        "reused": sheet.reused,
        "seconds": round(sheet.seconds, 3),
        "notes": list(sheet.notes),
    }


def _counted(sheet: Sheet) -> str:
    from loraloom.cli.output import duration

    taken = f", {sheet.reused} were there already" if sheet.reused else ""
    size = f"{sheet.image.width} × {sheet.image.height} pixels"
    return f"{size}, {sheet.painted} pictures painted in {duration(sheet.seconds)}{taken}"
