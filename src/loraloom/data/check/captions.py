"""Pictures, each with a caption: text-to-image."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from loraloom.data.captions import BESIDE, TEXT, absent_caption, caption_file, read_caption
from loraloom.data.check.duplicates import check_same_files, compare_files
from loraloom.data.check.files import list_part, probe_part, reason_of
from loraloom.data.check.findings import Findings, shortened
from loraloom.data.check.modality import Layout, Sheet
from loraloom.data.check.part import Part, Progress, Tokens, short_name
from loraloom.data.check.pictures import LOOKED_AT, check_pictures
from loraloom.data.check.texts import check_texts
from loraloom.data.config import DataConfig
from loraloom.data.files import METADATA
from loraloom.data.near import plain_text
from loraloom.data.table import Example
from loraloom.errors import DataError

SHARED = 3
"""Pictures from which on a caption that they have in common is told."""

SHAPES = {"1:1": 1.0, "5:4": 1.25, "4:3": 4 / 3, "3:2": 1.5, "16:9": 16 / 9, "2:1": 2.0, "3:1": 3.0}
"""Name of a shape to its width by its height; upright ones are named the other way round."""


class Captioned:
    """Files of pictures with what is to be seen in each: in a table, or in a text file beside it."""

    sheet: ClassVar[Sheet] = "captions"
    layout: ClassVar[Layout] = "folders"

    def read(self, part: Part, data: DataConfig, progress: Progress | None = None) -> None:
        """Open every picture and find its caption; those that have none, or cannot be used, are noted.

        Where no picture has one, as where a single prompt is to serve all of them, the pictures are kept.
        """
        folder = list_part(part, LOOKED_AT, (TEXT,), (), _with_column(part, data))
        _unlabel(part)
        part.examples = probe_part(part, folder, LOOKED_AT, progress)
        captions = [_caption_of(part, example) for example in part.examples]
        _note_alone(part, folder)
        if not any(text for text, *_ in captions) and all(kind == "no-caption" for _, kind, *_ in captions):
            for example in part.examples:
                part.findings.add("uncaptioned", part.place(example), reason=_elsewhere(example))
            return
        pairs = list(zip(part.examples, captions, strict=True))
        for _, (_, kind, told, reason) in pairs:
            if kind:
                part.findings.add(kind, told, reason=reason)
        part.examples = [replace(one, values={**one.values, "text": text}) for one, (text, *_) in pairs if text]

    def examine(self, part: Part, tokens: Tokens | None = None) -> None:
        """Sizes and shapes, odd pictures, odd captions and those that many share, duplicates."""
        check_pictures(part)
        _check_shapes(part)
        if any("text" in example.values for example in part.examples):
            check_texts(part, ("text",), tokens)
            _check_shared(part)
        check_same_files(part)

    def compare(self, train: Part, held_out: Part, findings: Findings) -> None:
        """Pictures that are in both; captions may be."""
        compare_files(train, held_out, findings)


def _with_column(part: Part, data: DataConfig) -> DataConfig:
    """The settings, with the column of captions in a table that calls it by a name of its own, as training finds it.

    Raises DataError for a table without such a column whose pictures have no captions beside them either.
    """
    trial = Part(part.name, part.source, part.split)
    folder = list_part(trial, LOOKED_AT, (TEXT,), (), data)
    in_table = "file" in trial.columns and "text" not in trial.columns
    if not in_table or any(caption_file(folder / str(one.values["file"])) for one in trial.examples):
        return data
    trial = Part(part.name, part.source, part.split)
    list_part(trial, LOOKED_AT, (TEXT,), ("text",), data)
    return data.model_copy(update={"columns": {**data.columns, "text": trial.columns["text"]}})


def _unlabel(part: Part) -> None:
    """Folders in the folder mean nothing to training; how many pictures are in each is told."""
    if part.columns.get("label") != "folder":
        return
    del part.columns["label"]
    part.tallies["folder"] = Counter(str(one.values["label"]) for one in part.examples if "label" in one.values)
    for number, one in enumerate(part.examples):
        values = {role: value for role, value in one.values.items() if role != "label"}
        part.examples[number] = replace(one, values=values)


def _caption_of(part: Part, example: Example) -> tuple[str, str, str, str]:
    """The caption; or "" and the kind of finding that it is, with its place and reason."""
    if "text" in example.values:
        return " ".join(str(example.values["text"]).split()), "", "", ""
    picture, place = Path(example.values["file"]), part.place(example)
    file = caption_file(picture)
    if file is None and "text" in part.columns:
        return "", "empty-caption", place, f"text column {part.columns['text']!r}"
    if file is None:
        told = absent_caption(picture).partition(" has no caption: ")[2]
        return "", "no-caption", f"{place}: {told}", ""
    try:
        text = read_caption(file)
    except DataError as error:
        return "", "bad-caption", short_name(str(file), part.source), reason_of(str(error), file)
    return (text, "", "", "") if text else ("", "empty-caption", short_name(str(file), part.source), "")


def _elsewhere(example: Example) -> str:
    """Where the captions may stand that training does not look for there."""
    folder = Path(example.values["file"]).parent
    name = next((name for name in METADATA if (folder / name).is_file()), None)
    return f"{folder.name}/{name} is not read: check and train on {folder.name}" if name else ""


def _note_alone(part: Part, folder: Path) -> None:
    """Note files of captions that lie beside no picture; not where no picture's caption is in a file."""
    pictures = {path.with_suffix("") for path in folder.rglob("*") if path.suffix.lower() in LOOKED_AT.suffixes}
    texts = [path for path in sorted(folder.rglob("*")) if path.suffix in BESIDE and not path.name.startswith(".")]
    alone = [path for path in texts if path.with_suffix("") not in pictures]
    if len(alone) < len(texts):
        for path in alone:
            part.findings.add("lone-caption", short_name(str(path), str(folder)))


def shape_of(width: int, height: int) -> str:
    """The name of the shape that a picture comes nearest to.

    >>> shape_of(1920, 1080), shape_of(480, 640)
    ('16:9', '3:4')
    """
    ratio = max(width, height) / min(width, height)
    name = min(SHAPES, key=lambda one: max(ratio / SHAPES[one], SHAPES[one] / ratio))
    return name if width >= height else ":".join(reversed(name.split(":")))


def _check_shapes(part: Part) -> None:
    """Gather how wide pictures are by their height: training sorts them into shapes of about the same area."""
    sizes = [(int(one.values["width"]), int(one.values["height"])) for one in part.examples]
    part.series["width / height"] = [width / height for width, height in sizes]
    shapes = Counter(shape_of(*size) for size in sizes)
    if len(shapes) > 1:
        part.tallies["shape"] = shapes


def _check_shared(part: Part) -> None:
    """Note captions that several pictures have, but for case, punctuation and spacing."""
    groups: defaultdict[str, list[Example]] = defaultdict(list)
    for example in part.examples:
        groups[plain_text(str(example.values["text"]))].append(example)
    for group in sorted(groups.values(), key=len, reverse=True):
        if len(group) >= SHARED:
            told = f"{shortened(group[0].values['text'], 60)!r} ({len(group):,} pictures)"
            part.findings.add("shared-caption", told)
