"""Adapter files of every program: recognised by content, read, described, attached.

    adapters = load_any(pipeline_parts, "style.safetensors", name="style")     # kohya, diffusers, LyCORIS, PEFT …
    facts = describe_adapter("style.safetensors")                              # from the header alone

docs/formats.md has the key tables.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

from torch import nn

from loraloom.adapters import AdapterSet
from loraloom.errors import FormatError
from loraloom.formats.foreign import ForeignReader
from loraloom.formats.keys import PARTS
from loraloom.formats.peft import attach_file
from loraloom.formats.peft_file import CONFIG_NAME, WEIGHTS_NAME, AdapterFile, read_folder
from loraloom.formats.resolving import Resolver
from loraloom.formats.updates import as_peft, updates_of

DIFFUSERS_NAME = "pytorch_lora_weights.safetensors"
"""The file that diffusers' `save_lora_weights` makes in a folder."""


def read_any(
    path: Path | str, *, model: nn.Module | None = None, rank: int | None = None, alpha: float | None = None
) -> AdapterFile:
    """Read an adapter file or folder of any known program, in PEFT's vocabulary.

    With `model` its layers' own names decide what the file's names mean; without one, the names that these models are
    known to have. A folder may be PEFT's, one of PEFT's folders per part ("unet", "text_encoder" …), or hold one file.
    LyCORIS' decompositions become LoRA, exactly or, where `rank` is given, by an SVD to that rank; a warning says so.
    `alpha` is what a loralib file was trained with, which such files do not hold.
    Raises FormatError that names everything in it which cannot be used.
    """
    place = Path(path)
    source = locate_adapter(place)
    if source.is_dir():
        return _peft(source, model)
    reader = ForeignReader(source, model, rank, alpha)
    file = as_peft(reader.read().values(), source, reader.metadata)
    for sentence in reader.notes:
        warnings.warn(sentence, stacklevel=2)
    return file


def load_any(model: nn.Module, path: Path | str, *, name: str = "default") -> AdapterSet:
    """Attach the adapter of a file or folder of any known program; `model` may be a container of a pipeline's parts.

    Raises FormatError that names everything which does not fit; the model is then as it was.
    """
    file = read_any(path, model=model)
    if file.path.is_file():  # its targets were read off its tensors: to hold these against them would find nothing
        file = replace(file, config={**file.config, "target_modules": None})
    return attach_file(model, file, name, copy=file.path.is_file())


def locate_adapter(path: Path) -> Path:
    """The file, or the PEFT folder, that a path means. Raises FormatError where there is none, or several."""
    if path.is_file():
        inside_folder = path.name == WEIGHTS_NAME and (path.parent / CONFIG_NAME).is_file()
        return path.parent if inside_folder else path
    if not path.is_dir():
        raise FormatError(f"there is no adapter at {path}")
    if (path / CONFIG_NAME).is_file() or any((child / CONFIG_NAME).is_file() for child in path.iterdir()):
        return path
    if (path / DIFFUSERS_NAME).is_file():
        return path / DIFFUSERS_NAME
    files = sorted(path.glob("*.safetensors"))
    if len(files) == 1:
        return files[0]
    if files:
        raise FormatError(f"{path} holds several files ({', '.join(f.name for f in files[:5])}): name one of them")
    raise FormatError(f"{path} is not an adapter: it has neither {CONFIG_NAME} nor a .safetensors file")


# -- PEFT ---------------------------------------------------------------------------------------------


def part_folders(folder: Path) -> dict[str, Path]:
    """PEFT folders for the parts of a pipeline, by part, in a folder that is none itself."""
    if (folder / CONFIG_NAME).is_file():
        return {}
    found = {part: folder / part for part in PARTS if (folder / part / CONFIG_NAME).is_file()}
    others = [child.name for child in folder.iterdir() if (child / CONFIG_NAME).is_file() and child.name not in found]
    return {} if others else found


def _peft(folder: Path, model: nn.Module | None) -> AdapterFile:
    parts = part_folders(folder)
    if not parts:
        return _placed(read_folder(folder), model)
    updates = []
    for part, own in parts.items():
        found, rest = updates_of(read_folder(own), magnitudes=True)
        if rest:
            raise FormatError(f"{own}: {rest[0]!r} is no update of a layer, and cannot be joined with other parts")
        updates += [replace(update, path=f"{part}.{path}") for path, update in found.items()]
    return _placed(as_peft(updates, folder, {}), model)


def _placed(file: AdapterFile, model: nn.Module | None) -> AdapterFile:
    """The file with its paths as the model has them, where it has them under another name.

    A folder for one part of a pipeline does not name the part, and transformers 5 has no `text_model` in CLIP.
    """
    if model is None:
        return file
    updates, rest = updates_of(file, magnitudes=True)
    resolver = Resolver(model)
    if rest or all(path in resolver.modules for path in updates):
        return file
    parts = [""] + [f"{part}." for part in PARTS if part in dict(model.named_children())]
    for part in parts:
        placed = {path: resolver.dotted(part + path) for path in updates}
        if all(placed.values()):
            moved = [replace(update, path=str(placed[path])) for path, update in updates.items()]
            return as_peft(moved, file.path, file.metadata)
    return file
