"""`loraloom demo`: the main job on real input, LoRA beside full fine-tuning, in under four minutes."""

from __future__ import annotations

from typing import Annotated

import typer

from loraloom.cli.options import Debug, Json


def demo(
    *,
    out: Annotated[
        str, typer.Option(metavar="DIR", help="Folder for both runs; an earlier demo's is replaced.")
    ] = "runs/demo",
    epochs: Annotated[int, typer.Option(min=1, metavar="N", help="Passes over the training sentences.")] = 4,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Seed of both runs.")] = 0,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Train LoRA and full fine-tuning side by side on a small sentiment set."""
    from loraloom.cli import output, side_by_side

    folder = side_by_side.demo_folder(out)
    result = side_by_side.compare(folder, epochs=epochs, seed=seed)
    if json:
        output.emit(result)
    else:
        side_by_side.show(result)
    if not result["success"]:
        raise typer.Exit(1)
