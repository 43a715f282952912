"""Pictures with labelled boxes: COCO JSON and Pascal VOC folders, every file opened and every box checked.

folder/annotations_train.json    COCO, beside the pictures or a folder train/ of them
folder/annotations/*.json        COCO, as the COCO data sets themselves are laid out
folder/train/_annotations….json  COCO, a folder per split
annotations.json                 COCO, its pictures beside it, in images/ or in a folder of the split's name
folder/Annotations/*.xml         Pascal VOC with JPEGImages/ and perhaps ImageSets/Main/train.txt
folder/*.xml                     the same files beside their pictures
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loraloom.data.box_files import Annotated, Box, read_annotations
from loraloom.data.config import DataConfig
from loraloom.data.files import probe_file
from loraloom.data.pictures import PICTURES, frames_note
from loraloom.data.records import cannot_be_used, quoted
from loraloom.data.table import Example, Table
from loraloom.errors import ConfigError, DataError, suggest

_SLACK = 1.0  # pixels: what sticks out by less is rounding and not worth a note


def read_boxes(
    source: str, *, data: DataConfig, split: str | None = None, prefer_splits: Sequence[str] = ("train",)
) -> Table:
    """Read pictures with their boxes; every picture is opened, whole, once.

    Values of an example: "file" (its path), "sha256" (of its bytes), "width" and "height" in pixels, "boxes"
    (list of [x, y, width, height] in pixels, inside the picture), "labels" (a name for each), "areas" (pixels
    that count for the size classes of COCO) and "crowd" (whether a box holds a whole group). A picture
    without boxes is background. `data.where` may keep the boxes of some labels.

    Raises DataError that names the pictures and boxes that cannot be used, unless `data.skip_bad` leaves
    them out with a note; ConfigError for settings that do not fit.
    """
    annotated = read_annotations(source, split, prefer_splits)
    reading = _Reading(annotated, _wanted(source, annotated, data))
    examples = [example for number in range(len(annotated.pictures)) if (example := reading.example(number))]
    faults = [*annotated.faults, *reading.faults]
    if faults and not (data.skip_bad and examples):
        raise DataError(_fault_sentence(source, faults))
    left_out = [f"{_fault_sentence(source, faults)}: left out"] if faults else []
    if not examples:
        raise DataError(f"{source} names no pictures")
    return Table(
        name=source,
        examples=examples,
        columns=dict(annotated.columns),
        notes=[*annotated.notes, *reading.notes(examples), *left_out],
        sha256=_digest(examples),
    )


def _wanted(source: str, annotated: Annotated, data: DataConfig) -> frozenset[str] | None:
    """The labels whose boxes are kept, None for all. Raises ConfigError for what is not there."""
    for column in data.where:
        if column != "label":
            raise ConfigError(f"where: of boxes only the column 'label' can be asked for, found {column!r}")
    if "label" not in data.where:
        return None
    known = {box.label for picture in annotated.pictures for box in picture.boxes}
    for label in data.where["label"]:
        if label not in known:
            raise ConfigError(f"where: no box of {source} has the label {label!r}{suggest(label, known)}")
    return frozenset(data.where["label"])


@dataclass
class _Reading:
    """The pictures of one source while they are opened, and what is found wrong or worth telling."""

    annotated: Annotated
    wanted: frozenset[str] | None
    faults: list[str] = field(default_factory=list)
    clipped: int = 0
    frames: dict[str, Mapping[str, Any]] = field(default_factory=dict)

    def example(self, number: int) -> Example | None:
        """The picture of this number with its boxes, or None where it cannot be used."""
        picture = self.annotated.pictures[number]
        path = self.annotated.path_of(picture.name)
        try:
            found = probe_file(path, PICTURES)
        except DataError as error:
            self.faults.append(str(error))
            return None
        size = (found["width"], found["height"])
        if picture.size is not None and picture.size != size:
            self.faults.append(_other_size(picture.name, picture.size, size))
            return None
        self.frames[picture.name] = found
        boxes = [box for box in picture.boxes if self.wanted is None or box.label in self.wanted]
        kept = [inside for box in boxes if (inside := self._inside(picture.name, box, *size))]
        values = {
            **{key: found[key] for key in ("file", "sha256", "width", "height")},
            "boxes": [box.sides for box in kept],
            "labels": [box.label for box in kept],
            "areas": [box.area for box in kept],
            "crowd": [box.crowd for box in kept],
        }
        return Example(values, self.annotated.source, picture.line)

    def _inside(self, name: str, box: Box, width: int, height: int) -> Box | None:
        """The part of a box that lies in its picture; what is wrong with the box goes to the faults."""
        if fault := _box_fault(box.sides):
            self.faults.append(f"{box.place} ({name}): {fault}")
            return None
        x, y, w, h = box.sides
        left, top, right, bottom = max(0.0, x), max(0.0, y), min(float(width), x + w), min(float(height), y + h)
        if right <= left or bottom <= top:
            told = ", ".join(f"{side:g}" for side in box.sides)
            self.faults.append(f"{box.place} ({name}): its box [{told}] lies outside the {width} x {height} picture")
            return None
        out = max(left - x, top - y, x + w - right, y + h - bottom)
        if out <= 0:
            return box
        self.clipped += out > _SLACK
        return Box([left, top, right - left, bottom - top], box.label, box.place, crowd=box.crowd)

    def notes(self, examples: Sequence[Example]) -> list[str]:
        """What was found, in sentences."""
        source = self.annotated.source
        counts = Counter(label for example in examples for label in example.values["labels"])
        shown = ", ".join(f"{name} ({count})" for name, count in sorted(counts.items())[:8])
        told = [f"{source}: {len(examples)} pictures, {counts.total()} boxes: {shown or 'none'}"]
        empty = sum(not example.values["boxes"] for example in examples)
        crowds = sum(sum(example.values["crowd"]) for example in examples)
        if empty:
            told.append(f"{source}: {empty} pictures have no box and are kept as background")
        if self.clipped:
            told.append(f"{source}: {self.clipped} boxes stuck out of their picture and were cut at its edge")
        if crowds:
            told.append(f"{source}: {crowds} boxes hold a crowd: not learnt from, and passed over in scoring")
        return [*told, *frames_note(self.frames)]


def _box_fault(sides: Any) -> str:
    """What is wrong with [x, y, width, height], or "" when nothing is."""
    expected = "four numbers [x, y, width, height] in pixels are expected"
    if not isinstance(sides, list) or len(sides) != 4:
        return f"its box is {sides!r}, {expected}"
    if not all(isinstance(side, int | float) and not isinstance(side, bool) for side in sides):
        return f"its box is {sides!r}, {expected}"
    if not all(math.isfinite(side) for side in sides):
        return f"its box {sides!r} is not finite, {expected}"
    if sides[2] <= 0 or sides[3] <= 0:
        return f"its box is {sides[2]:g} wide and {sides[3]:g} high, both must be above 0"
    return ""


def _other_size(name: str, told: tuple[int, int], found: tuple[int, int]) -> str:
    turned = ", as if its EXIF data turned it after the boxes were drawn" if told == found[::-1] != found else ""
    return (
        f"{name} is {found[0]} x {found[1]} pixels but annotated as {told[0]} x {told[1]}{turned}: its boxes "
        "would be in the wrong place"
    )


def _fault_sentence(source: str, faults: Sequence[str]) -> str:
    told = cannot_be_used(source, "pictures or boxes", faults)
    return told if source in told else f"{source}: {told}"


def _digest(examples: Sequence[Example]) -> str:
    """One hash over every picture's bytes and boxes, in order, wherever the folder lies."""
    digest = hashlib.sha256()
    for example in examples:
        values = {**example.values, "file": Path(example.values["file"]).name}
        digest.update(repr(sorted(values.items())).encode())
    return digest.hexdigest()


def known_labels(examples: Sequence[Example]) -> tuple[str, ...]:
    """The names of all boxes' labels, in alphabetical order. Raises DataError where there is no box to learn from."""
    names = sorted({label for example in examples for label in example.values["labels"]})
    if not names:
        source = examples[0].source if examples else "the training data"
        raise DataError(f"{source}: none of its {len(examples)} pictures has a box; there is nothing to learn")
    return tuple(names)


def refuse_unknown(examples: Sequence[Example], names: Sequence[str]) -> None:
    """Raise DataError when a box of `examples` has a label that training never saw."""
    unknown = Counter(label for example in examples for label in example.values["labels"] if label not in names)
    if unknown:
        first = next(example for example in examples if set(example.values["labels"]) & set(unknown))
        label = sorted(unknown)[0]
        raise DataError(
            f"{first.source}: {unknown.total()} boxes have labels that the model was not trained on, "
            f"{quoted(sorted(unknown), most=5)}, first in {Path(first.values['file']).name}; it knows "
            f"{quoted(list(names))}{suggest(label, names, most=1)}"
        )
