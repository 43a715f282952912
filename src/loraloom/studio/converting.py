"""An adapter of the folders written in another program's format, beside the others."""

from __future__ import annotations

from loraloom.errors import ConfigError, FormatError
from loraloom.formats.convert import Conversion, convert
from loraloom.studio.desk import Desk
from loraloom.studio.places import inside, plain_name

_FILES = ("kohya", "diffusers", "loralib")
"""Formats that are one file; PEFT's is a folder."""


def write_as(desk: Desk, name: str, to: str, new: str) -> str:
    """Convert an adapter into the first adapter folder under a new name, and say how exact it came out.

    Raises ConfigError for a name that is none or without a folder to write to, FormatError where the format cannot
    hold the adapter, OutputError for a name that is taken.
    """
    if not desk.places.adapters:
        raise ConfigError("there is no folder of your own to write to; start the studio with --adapters FOLDER")
    stem = plain_name(new, "name of the new file").removesuffix(".safetensors")
    ending = ".safetensors" if to in _FILES else ""
    target = inside(desk.places.adapters[0], f"{stem}{ending}", "name of the new file")
    found = convert(Conversion(desk.adapter(name).path, target, to))
    if not found.holds:
        raise FormatError(f"'{target.name}' was not written: a layer differs by {found.largest:.1e} of its size")
    exact = "the same to the bit" if found.largest == 0 else f"ΔW differs by at most {found.largest:.1e}"
    return f"{target.name} is written: {len(found.sites)} layers, {exact}"
