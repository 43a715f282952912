"""The recipe of a sheet in the PNG itself: the whole of it, and of every picture on it.

`parameters`          the recipe that all cells share, as on any picture (the web UI reads it)
`loraloom-sheet`      rows, columns, blocks and that recipe, as JSON: `read_grid` makes the same sheet of it
`cell 2.3`            `parameters` of the picture in row 2, column 3, from 1; `cell 1.2.3` with the block in front
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Mapping
from pathlib import Path

from PIL import Image, PngImagePlugin

from loraloom.errors import DataError, OutputError
from loraloom.imaging.grid.plan import Grid, Place
from loraloom.imaging.recipe import write_parameters

SHEET_CHUNK, RECIPE_CHUNK = "loraloom-sheet", "parameters"
MOST_IN_CHUNK = 1_000_000
"""Bytes of text that readers still accept in one chunk."""


def chunks_of(grid: Grid, parameters: Mapping[Place, str]) -> dict[str, str]:
    """The text chunks of a sheet; one that would be too long for readers is left out."""
    found = {
        RECIPE_CHUNK: write_parameters(grid.recipe),
        SHEET_CHUNK: json.dumps({"version": 1, **grid.to_json()}, ensure_ascii=False),
    }
    for (block, row, column), text in sorted(parameters.items()):
        place = (block, row, column) if grid.blocks is not None else (row, column)
        found[f"cell {'.'.join(str(number + 1) for number in place)}"] = text
    return {key: text for key, text in found.items() if len(text.encode()) <= MOST_IN_CHUNK}


def write_sheet(path: Path, image: Image.Image, chunks: Mapping[str, str]) -> Path:
    """Write a PNG with its chunks beside its place, then put it there. Raises OutputError."""
    info = PngImagePlugin.PngInfo()
    for key, text in chunks.items():
        info.add_text(key, text, zip=len(text) > 4000)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", pnginfo=info)
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            file.write(buffer.getvalue())
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise OutputError(f"'{path}' cannot be written: {(error.strerror or str(error)).lower()}") from error
    return path


def read_grid(path: str | Path) -> Grid:
    """The sheet that a PNG was made as. Raises DataError where it is none, or has lost its recipe."""
    try:
        with Image.open(path) as image:
            image.load()
            text = getattr(image, "text", {}).get(SHEET_CHUNK)
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"'{path}' cannot be read as a picture ({error})") from None
    if text is None:
        raise DataError(
            f"'{path}' holds no recipe of a sheet (its chunk {SHEET_CHUNK!r} is missing); programs that change a "
            "picture often drop it"
        )
    try:
        return Grid.from_json(json.loads(text))
    except ValueError as error:  # ConfigError and what json raises
        raise DataError(f"'{path}': the recipe of the sheet is damaged ({error})") from None
