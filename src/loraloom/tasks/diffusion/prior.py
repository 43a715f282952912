"""Pictures of a subject's class, which keep a base from forgetting it (DreamBooth's prior preservation).

Ruiz et al. 2022, arXiv 2208.12242, § 3.3: the base itself makes them before it is trained, once; or they are
the user's own.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from loraloom.data.config import DataConfig
from loraloom.data.files import probe_file, read_files
from loraloom.data.pictures import PICTURES
from loraloom.errors import DataError, OutputError
from loraloom.tasks.diffusion.base import Diffusion
from loraloom.tasks.diffusion.cache import key_of
from loraloom.tasks.diffusion.sampling import Sketch, paint
from loraloom.tasks.diffusion.texts import Texts


def own_class_pictures(folder: str, count: int) -> list[dict[str, Any]]:
    """The first `count` pictures of a folder, as values of examples. Raises DataError."""
    table = read_files(folder, PICTURES, (), data=DataConfig(train=folder), required_roles=())
    return [example.values for example in table.examples[:count]]


def made_class_pictures(
    diffusion: Diffusion, texts: Texts, sketch: Sketch, count: int, cache: Path, fingerprint: str
) -> tuple[list[dict[str, Any]], int]:
    """`count` pictures that the base makes of the sketch's prompt, one per seed; and how many are new.

    They lie as PNG in a folder of the cache, where those made before are found again. Raises OutputError.
    """
    facts = {"size": sketch.size, "steps": sketch.steps, "guidance": sketch.guidance, "negative": sketch.negative}
    facts |= {"device": diffusion.device.type, "dtype": str(diffusion.dtype)}
    folder = cache / "class-pictures" / key_of(kind="class", base=fingerprint, prompt=sketch.prompt, **facts)[:16]
    found, made = [], 0
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot write {folder}: {error.strerror or error}") from None
    for seed in range(count):
        path = folder / f"{seed:04d}.png"
        values = _found(path)
        if values is None:
            paint(diffusion, texts, replace(sketch, seed=seed)).save(path)
            values, made = probe_file(path, PICTURES), made + 1
        found.append(values)
    return found, made


def _found(path: Path) -> dict[str, Any] | None:
    """What is known of a picture that lies there; None for one that is not there, or damaged."""
    try:
        return probe_file(path, PICTURES)
    except DataError:
        return None
