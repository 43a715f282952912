"""`loraloom generate`: pictures from a prompt, with any number of weighted adapters."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
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
    from loraloom.imaging.painter import Picture

MOST_PICTURES = 1000
_OTHER_PICTURES = (".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")


@settings_flags(PICTURE_FLAGS)
def generate(
    *,
    lora: Lora = [],  # noqa: B006 typer wants the default as it is
    lora_dir: LoraDir = [],  # noqa: B006
    embeddings: Embeddings = None,
    base: PictureBase = None,
    batch: Annotated[int, typer.Option("--batch", "--count", metavar="N", help="How many; seeds count up.")] = 1,
    out: Annotated[
        str,
        typer.Option(metavar="PATH", help="A .png file, or a folder for SEED.png. [default: here]", show_default=False),
    ] = ".",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that are there.")] = False,
    again: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="PICTURE",
            help="Make this picture again, by the recipe that it carries; what other options say goes before it.",
        ),
    ] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    json: Json = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")] = False,
    debug: Debug = False,
    settings: Mapping[str, Any],
) -> None:
    """Make pictures from a prompt, with any number of weighted adapters."""
    if "prompt" not in settings and again is None:
        raise ConfigError('generate needs --prompt "TEXT", or --from PICTURE.png to make a picture again')
    if not 1 <= batch <= MOST_PICTURES:
        raise ConfigError(f"--batch is {batch}: from 1 to {MOST_PICTURES} pictures can be made")
    place = _places(out, batch)
    from loraloom.cli import output
    from loraloom.imaging.recipe import read_picture

    old = None if again is None else read_picture(again)
    painter = opened_painter(base, old, lora_dir=lora_dir, embeddings=embeddings, device=device, dtype=dtype)
    recipe = painter.check(recipe_of(painter, settings, lora, old=old))
    files = [place(recipe.seed + number) for number in range(batch)]
    if not overwrite:
        _refuse_existing(files)
    with _progress(quiet) as progress:
        pictures = painter.paint(recipe, batch=batch, progress=progress)
    for made, file in zip(pictures, files, strict=True):
        made.save(file)
    for note in dict.fromkeys(note for made in pictures for note in made.notes):
        print(f"note: {note}", file=sys.stderr)
    if json:
        output.emit({"pictures": [_told(made, file) for made, file in zip(pictures, files, strict=True)]})
    else:
        output.say(*(f"{file}  seed {made.seed}" for made, file in zip(pictures, files, strict=True)))


def _places(out: str, batch: int) -> Callable[[int], Path]:
    """Seed → the file that its picture goes to. Raises ConfigError, OutputError."""
    path = Path(out).expanduser()
    ending = "" if path.is_dir() else path.suffix.lower()
    if ending == ".png" and batch > 1:
        raise ConfigError(f"--out {out!r} is one file, and {batch} pictures are to be made; name a folder")
    if ending in _OTHER_PICTURES:
        raise ConfigError(f"--out {out!r}: pictures are written as .png, which carries their recipe")
    if ending == ".png":
        return lambda seed: path
    if path.is_file():
        raise OutputError(f"--out {out!r} is a file; name a folder, or a .png file")
    return lambda seed: path / f"{seed}.png"


def _refuse_existing(files: Sequence[Path]) -> None:
    """Raise OutputError before the work rather than after it."""
    for file in files:
        if file.exists():
            raise OutputError(f"'{file}' is there already; choose another --out, or replace it with --overwrite")


def _told(made: Picture, file: Path) -> dict[str, Any]:
    recipe, text = made.recipe.to_json(), made.parameters
    return {"file": str(file), "seed": made.seed, "recipe": recipe, "parameters": text, "notes": made.notes}


@contextmanager
def _progress(quiet: bool) -> Iterator[Callable[[int, int], None] | None]:
    """A bar on stderr where that is a terminal."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from loraloom.cli.output import console

    columns = (TextColumn("step"), MofNCompleteColumn(), BarColumn(bar_width=24), TimeRemainingColumn())
    with Progress(*columns, console=console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None)

        def progress(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        yield progress
