"""Pictures, each of a class: image classification. And what can be odd about a picture, for boxes too."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from PIL import Image

from loraloom.data.check.duplicates import check_same_files, compare_files
from loraloom.data.check.files import read_part
from loraloom.data.check.findings import Findings
from loraloom.data.check.modality import Layout, Sheet
from loraloom.data.check.part import Part, Progress, Tokens, check_labels, compare_labels
from loraloom.data.check.perceptual import look_of
from loraloom.data.columns import Role
from loraloom.data.config import DataConfig
from loraloom.data.pictures import PICTURES, open_picture

LABEL = Role("label", ("label", "labels", "class", "category", "target", "breed", "species"), "label")

TINY, HUGE, EXTREME = 32, 25_000_000, 4.0
"""Pixels of the shorter side; pixels in all; the longer side by the shorter."""

_ORIENTATION = 0x0112
_GREY = ("1", "L", "LA")
_DEEP = ("I", "F")


def look_at(path: Path) -> dict[str, Any]:
    """Facts of a picture, decoded whole: its upright "width" and "height", how it is stored, and how it looks.

    "mode" is Pillow's, "turned" whether EXIF turns it, "frames" how many it has, "grey" whether it is without
    colour, "blank" whether it is of one colour; "look" is for `PictureIndex`. Raises DataError.
    """
    upright = open_picture(path)
    facts = {"width": upright.width, "height": upright.height, "look": look_of(upright)}
    small = upright.resize((32, 32), Image.Resampling.BOX) if min(upright.size) > 32 else upright
    extremes = small.getextrema()
    facts["blank"] = all(high - low <= 2 for low, high in extremes)  # type: ignore[misc]
    return {**facts, **_stored(path)}


def _stored(path: Path) -> dict[str, Any]:
    """How a picture is stored: its header alone is read."""
    with Image.open(path) as image:
        mode = image.mode
        try:
            turned = image.getexif().get(_ORIENTATION, 1) not in (0, 1)
            frames = 1 if image.format == "MPO" else int(getattr(image, "n_frames", 1))
        except Exception:  # damaged metadata of a picture that can be used: no reason to refuse it
            turned, frames = False, 1
        transparent = image.has_transparency_data
    return {"mode": mode, "turned": turned, "frames": frames, "transparent": transparent}


LOOKED_AT = replace(PICTURES, probe=look_at)
"""Picture files, with facts that only a check needs."""


class Pictures:
    """Files of pictures, each of a class."""

    sheet: ClassVar[Sheet] = "pictures"
    layout: ClassVar[Layout] = "folders"

    def read(self, part: Part, data: DataConfig, progress: Progress | None = None) -> None:
        """Open every picture; those that cannot be used are noted."""
        read_part(part, LOOKED_AT, (LABEL,), (), data, progress)
        unlabelled = [example for example in part.examples if "label" not in example.values]
        for example in unlabelled:
            part.findings.add("unlabelled", part.place(example))

    def examine(self, part: Part, tokens: Tokens | None = None) -> None:
        """Sizes, labels, odd pictures, duplicates."""
        check_pictures(part)
        check_labels(part)
        check_same_files(part)

    def compare(self, train: Part, held_out: Part, findings: Findings) -> None:
        """Leaks, and labels that one part alone has."""
        compare_files(train, held_out, findings)
        compare_labels(train, held_out, findings)


Facts = Mapping[str, Any]

_ODD: dict[str, Callable[[Facts], bool]] = {
    "tiny-picture": lambda facts: min(facts["width"], facts["height"]) < TINY,
    "huge-picture": lambda facts: facts["width"] * facts["height"] > HUGE,
    "extreme-aspect": lambda facts: aspect(facts) > EXTREME,
    "cmyk-picture": lambda facts: facts["mode"] in ("CMYK", "LAB", "YCbCr"),
    "deep-picture": lambda facts: facts["mode"] in _DEEP or facts["mode"].startswith("I;"),
    "transparent-picture": lambda facts: facts["transparent"],
    "animated-picture": lambda facts: facts["frames"] > 1,
    "turned-picture": lambda facts: facts["turned"],
    "blank-picture": lambda facts: facts["blank"],
}
"""Kind of finding to what shows it."""


def aspect(facts: Facts) -> float:
    """The longer side by the shorter, 1 for a square."""
    return float(max(facts["width"], facts["height"]) / min(facts["width"], facts["height"]))


def check_pictures(part: Part) -> None:
    """Gather the sizes of pictures and note odd ones."""
    for example in part.examples:
        facts = example.values
        for side in ("width", "height"):
            part.series[side].append(float(facts[side]))
        for kind, shows in _ODD.items():
            if shows(facts):
                part.findings.add(kind, f"{part.place(example)} ({facts['width']}×{facts['height']})")
    modes = Counter(str(example.values["mode"]) for example in part.examples)
    if len(modes) > 1:
        part.tallies["colour mode"] = modes
    grey = [example for example in part.examples if example.values["mode"] in _GREY]
    if grey and len(grey) < len(part.examples):
        for example in grey:
            part.findings.add("grey-picture", part.place(example))
