"""Captions of pictures: the column that holds them, or a text file of the same name beside each picture.

folder/1.png, folder/1.txt       a caption in a text file (.txt or .caption)
"""

from __future__ import annotations

import codecs
from pathlib import Path

from loraloom.data.columns import Role
from loraloom.data.records import decode
from loraloom.errors import DataError, suggest

TEXT = Role("text", ("text", "caption", "prompt", "captions", "description", "additional_feature", "tags"))
BESIDE = (".txt", ".caption")
"""Suffixes of the files that hold a picture's caption."""


def caption_file(picture: Path) -> Path | None:
    """The file beside a picture that holds its caption, if there is one."""
    return next((path for suffix in BESIDE if (path := picture.with_suffix(suffix)).is_file()), None)


def read_caption(file: Path) -> str:
    """The caption in a file, on one line; "" when there is nothing in it.

    Raises DataError where it cannot be read or is not UTF-8.
    """
    try:
        content = file.read_bytes()
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}") from None
    if not content.removeprefix(codecs.BOM_UTF8).decode("utf-8", "replace").strip():
        return ""
    return " ".join(decode(content, str(file)).split())


def absent_caption(picture: Path) -> str:
    """The sentence on a picture that no caption lies beside, with the nearest name that there is."""
    folder = picture.parent
    texts = [entry.name for entry in folder.iterdir() if entry.suffix in BESIDE] if folder.is_dir() else []
    wanted = f"{picture.stem}.txt"
    return f"{picture} has no caption: {wanted} is not there{suggest(wanted, texts, most=1)}"
