"""Pictures with boxes drawn around what they show: object detection."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from loraloom.data.box_files import Annotated, Picture, read_annotations
from loraloom.data.check.duplicates import check_same_files, compare_files
from loraloom.data.check.files import probed
from loraloom.data.check.findings import Findings
from loraloom.data.check.modality import Layout, Sheet
from loraloom.data.check.part import Part, Progress, Tokens, check_balance, compare_labels
from loraloom.data.check.pictures import LOOKED_AT, check_pictures
from loraloom.data.config import DataConfig
from loraloom.data.table import Example

TINY, WHOLE, SAME = 4.0, 0.95, 0.9
"""Pixels of a side; share of the picture's area; overlap (intersection over union) of boxes drawn twice."""

_EDGE = 1.0  # pixels: counting from 0 or 1 is no fault worth a note


@dataclass(frozen=True)
class Box:
    """One box, in pixels."""

    category: str
    x: float
    """Left edge, from the picture's left."""
    y: float
    """Upper edge, from the picture's top."""
    width: float
    height: float
    crowd: bool = False
    """Whether it holds a group of things that were not told apart."""


class Boxes:
    """Files of pictures with the boxes that an annotation file gives them."""

    sheet: ClassVar[Sheet] = "pictures"
    layout: ClassVar[Layout] = "annotations"

    def read(self, part: Part, data: DataConfig, progress: Progress | None = None) -> None:
        """Read the annotations and open every picture; what cannot be used is noted."""
        found = read_annotations(part.source, part.split, ("train",))
        part.rows = len(found.pictures)
        part.columns, part.notes = dict(found.columns), list(found.notes)
        for fault in found.faults:
            part.findings.add(_kind_of(fault), fault)
        examples = [_example(part, found, picture) for picture in found.pictures]
        part.source = str(found.roots[0]) if found.roots else part.source
        part.examples = probed(part, examples, Path(), LOOKED_AT, progress)

    def examine(self, part: Part, tokens: Tokens | None = None) -> None:
        """Sizes of pictures and boxes, categories, odd ones of both, duplicates."""
        check_pictures(part)
        categories: Counter[str] = Counter()
        for example in part.examples:
            boxes: list[Box] = example.values["boxes"]
            categories.update(box.category for box in boxes)
            part.series["boxes a picture"].append(float(len(boxes)))
            part.series["box side"] += [float(side) for box in boxes for side in (box.width, box.height)]
            _check_picture(part, example)
        if categories:
            part.tallies["category"] = categories
            check_balance(part, categories)
        check_same_files(part)

    def compare(self, train: Part, held_out: Part, findings: Findings) -> None:
        """Leaks, and categories that one part alone has."""
        compare_files(train, held_out, findings)
        compare_labels(train, held_out, findings, role="category")


_FAULTS = {"which no image has": "unknown-picture", "category id": "unknown-category"}


def _kind_of(fault: str) -> str:
    """The kind of finding that a fault of the annotations is."""
    return next((kind for words, kind in _FAULTS.items() if words in fault), "bad-annotation")


def _example(part: Part, found: Annotated, picture: Picture) -> Example:
    """A picture with those of its boxes that are boxes."""
    boxes = []
    for box in picture.boxes:
        if _are_sides(box.sides):
            x, y, width, height = map(float, box.sides)
            boxes.append(Box(box.label, x, y, width, height, box.crowd))
        else:
            part.findings.add("bad-annotation", f"{box.place} ({picture.name}): {box.sides!r} are not four numbers")
    values = {"file": str(found.path_of(picture.name)), "boxes": boxes, "stated": picture.size}
    return Example(values, part.source, picture.line)


def _are_sides(sides: Any) -> bool:
    return (
        isinstance(sides, list)
        and len(sides) == 4
        and all(isinstance(side, int | float) and math.isfinite(side) for side in sides)
    )


def _check_picture(part: Part, example: Example) -> None:
    values, place = example.values, part.place(example)
    size = values["width"], values["height"]
    if values["stated"] is not None and values["stated"] != size:
        stated = f"{values['stated'][0]}×{values['stated'][1]}"
        part.findings.add("wrong-size", f"{place} ({size[0]}×{size[1]}, stated {stated})")
    if not values["boxes"]:
        part.findings.add("no-boxes", place)
    for box in values["boxes"]:
        if kind := fault_of(box, *size):
            part.findings.add(kind, f"{place} {_told(box)}")
    for box in _doubles(values["boxes"]):
        part.findings.add("double-box", f"{place} {_told(box)}")


def fault_of(box: Box, width: int, height: int) -> str | None:
    """The kind of finding that a box in a picture of this size is, if any."""
    if box.width <= 0 or box.height <= 0:
        return "box-without-area"
    right, bottom = box.x + box.width, box.y + box.height
    if box.x >= width or box.y >= height or right <= 0 or bottom <= 0:
        return "box-outside"
    if min(box.x, box.y) < -_EDGE or right > width + _EDGE or bottom > height + _EDGE:
        return "box-over-edge"
    if min(box.width, box.height) < TINY:
        return "tiny-box"
    return "whole-box" if box.width * box.height > WHOLE * width * height else None


def _doubles(boxes: list[Box]) -> list[Box]:
    """Boxes that cover an earlier one of the same category almost wholly."""
    seen: defaultdict[str, list[Box]] = defaultdict(list)
    found = []
    for box in boxes:
        if not box.crowd and any(overlap(box, other) > SAME for other in seen[box.category]):
            found.append(box)
        seen[box.category].append(box)
    return found


def overlap(one: Box, other: Box) -> float:
    """Intersection over union of two boxes, 0 to 1."""
    across = min(one.x + one.width, other.x + other.width) - max(one.x, other.x)
    down = min(one.y + one.height, other.y + other.height) - max(one.y, other.y)
    if across <= 0 or down <= 0:
        return 0.0
    shared = across * down
    return shared / (one.width * one.height + other.width * other.height - shared)


def _told(box: Box) -> str:
    sides = ", ".join(f"{side:g}" for side in (box.x, box.y, box.width, box.height))
    return f"{box.category} [{sides}]"
