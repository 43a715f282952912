"""Pictures with captions: from a table, from a text file beside each picture, or one prompt for all of them.

folder/metadata.jsonl            {"file_name": "1.png", "text": "a red house"} (or metadata.csv)
folder/1.png, folder/1.txt       a caption in a text file of the same name (.txt or .caption)
folder/*.jpg, instance_prompt    a few pictures of one subject (DreamBooth, Ruiz et al. 2022, arXiv 2208.12242)
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from loraloom.data.captions import TEXT, absent_caption, caption_file, read_caption
from loraloom.data.config import DataConfig
from loraloom.data.files import METADATA, read_files
from loraloom.data.pictures import PICTURES, frames_note
from loraloom.data.records import first_few
from loraloom.data.table import Example, Role, Table
from loraloom.errors import DataError

IDENTITY = ("file", TEXT.name)
"""Roles that make no two examples the same: a prompt may serve all pictures of a subject."""


@dataclass(frozen=True)
class CaptionReader:
    """Reads tables and folders of captioned pictures."""

    columns: Mapping[str, str]
    """Columns by role that training read, looked for first."""
    prompt: str | None = None
    """The caption of every picture, whatever lies beside it; None to read them."""
    prefix: str = ""
    """Put before every caption that is read."""

    @property
    def role(self) -> Role:
        """Where captions stand in a table."""
        known = (self.columns[TEXT.name],) if TEXT.name in self.columns else ()
        return Role(TEXT.name, (*known, *TEXT.candidates))

    def read(self, source: str, data: DataConfig, *, split: str | None, prefer: Sequence[str]) -> Table:
        """Every usable picture with its caption as "text".

        Raises DataError that names the pictures without a caption, or with `data.skip_bad` leaves them out with
        a note.
        """
        table = self._table(source, data, split, prefer)
        captions = {id(example): self._caption(example) for example in table.examples}
        faults = [fault for _, fault in captions.values() if fault]
        kept = [
            replace(example, values={**example.values, TEXT.name: captions[id(example)][0]})
            for example in table.examples
            if not captions[id(example)][1]
        ]
        if faults and not (data.skip_bad and kept):
            raise DataError(_sentence(source, faults, len(table.examples)))
        left_out = [f"{_sentence(source, faults, len(table.examples))}: left out"] if faults else []
        facts = {example.values["file"]: example.values for example in kept}
        return replace(table, examples=kept, notes=[*table.notes, *left_out, *frames_note(facts)])

    def _table(self, source: str, data: DataConfig, split: str | None, prefer: Sequence[str]) -> Table:
        roles = () if self.prompt is not None else (self.role,)
        table = read_files(source, PICTURES, roles, data=data, split=split, prefer_splits=prefer, required_roles=())
        bare = self.prompt is None and TEXT.name not in table.columns
        if bare and _is_table(source, table) and not any(_beside(example) for example in table.examples):
            # A table whose column has a name of its own: found by its content, or refused by name.
            return read_files(source, PICTURES, roles, data=data, split=split, prefer_splits=prefer)
        return table

    def _caption(self, example: Example) -> tuple[str, str]:
        """The caption, or what is wrong with it."""
        if self.prompt is not None:
            return self.prompt, ""
        if TEXT.name in example.values:
            return self._with_prefix(example.values[TEXT.name]), ""
        path = _beside(example)
        if path is None:
            return "", absent_caption(Path(example.values["file"]))
        try:
            text = read_caption(path)
        except DataError as error:
            return "", str(error)
        return (self._with_prefix(text), "") if text else ("", f"{path} is empty; write what is to be seen")

    def _with_prefix(self, text: str) -> str:
        return " ".join(f"{self.prefix} {text}".split())


def _is_table(source: str, table: Table) -> bool:
    """Whether the examples stand in a table, rather than being the files of a folder."""
    path = Path(source).expanduser()
    if path.is_file():
        return path.suffix.lower() not in PICTURES.suffixes
    return any(
        (Path(example.values["file"]).parent / name).is_file() for example in table.examples for name in METADATA
    )


def _beside(example: Example) -> Path | None:
    return caption_file(Path(example.values["file"]))


def _sentence(source: str, faults: Sequence[str], count: int) -> str:
    if len(faults) == 1:
        return faults[0]
    how = "expected a table beside them (metadata.jsonl), NAME.txt for each, or options.instance_prompt for all"
    if len(faults) == count:
        return f"{source}: none of its {count} pictures has a caption, e.g. {faults[0]}; {how}"
    return f"{source}: {len(faults)} of {count} pictures have no caption: {first_few(faults)}; {how}"


def orders(caption: str, count: int) -> list[str]:
    """The caption, and up to `count` - 1 further orders of its comma-separated tags; always the same ones.

    >>> orders("a, b", 4)
    ['a, b', 'b, a']
    """
    tags = [tag.strip() for tag in caption.split(",") if tag.strip()]
    found = dict.fromkeys([caption])
    draw = random.Random(f"orders/{caption}")
    for _ in range(4 * count):
        if len(found) >= count or len(tags) < 2:
            break
        draw.shuffle(tags)
        found[", ".join(tags)] = None
    return list(found)
