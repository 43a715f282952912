"""Text on a sheet: any script that an installed font has, wrapped to a width, cut with an ellipsis.

Pillow's own face is the first choice, since it is the same on every machine; what it lacks (×, Greek, Cyrillic)
comes from the face that matplotlib ships, and Chinese, Arabic and the like from what is installed.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import matplotlib
from matplotlib.font_manager import fontManager
from PIL import ImageDraw, ImageFont

Font = ImageFont.FreeTypeFont

_OTHER_SCRIPTS = ("Noto Sans CJK", "Noto Sans Arabic", "WenQuanYi", "Arial Unicode", "PingFang", "Microsoft YaHei")
_NEVER_DRAWN = "\U0010ffff"
_LOWER_BY = 0.8  # DejaVu's letters are larger than the first face's at the same nominal size
_WORD = re.compile(r"\S+|\n")


@dataclass(frozen=True)
class Face:
    """A size and a colour to set text in."""

    size: float
    """Pixels."""
    colour: str
    leading: float = 1.32
    """Line height as a multiple of the size."""

    @property
    def line(self) -> int:
        """Pixels from one line to the next."""
        return round(self.size * self.leading)

    def width(self, text: str) -> float:
        """Pixels that one line of text takes."""
        return sum(_font(number, self.size).getlength(run) for number, run in _runs(text))

    def draw(self, canvas: ImageDraw.ImageDraw, x: float, top: float, text: str) -> None:
        """One line of text with its left edge at `x`, in a line that begins at `top`."""
        baseline = top + self.line / 2 + self.size * 0.34
        for number, run in _runs(text):
            font = _font(number, self.size)
            canvas.text((x, baseline), run, font=font, fill=self.colour, anchor="ls")
            x += font.getlength(run)

    def wrap(self, text: str, width: float, lines: int) -> list[str]:
        """`text` in at most `lines` lines of at most `width` pixels; what does not fit ends in an ellipsis.

        A line feed in the text begins a new line; a word that is too long is broken where it must be.
        """
        found = [""]
        for word in _WORD.findall(text):
            found = [*found, ""] if word == "\n" else [*found[:-1], *self._joined(found[-1], word, width)]
        if len(found) <= lines:
            return found
        return [*found[: lines - 1], self._cut(f"{found[lines - 1]} {found[lines]}", width)]

    def _joined(self, line: str, word: str, width: float) -> list[str]:
        """`line` with `word` behind it, or below it where it does not fit."""
        joined = f"{line} {word}" if line else word
        if self.width(joined) <= width:
            return [joined]
        done = [line] if line else []
        while self.width(word) > width and len(word) > 1:
            length = self._fitting(word, width)
            done, word = [*done, word[:length]], word[length:]
        return [*done, word]

    def _fitting(self, word: str, width: float) -> int:
        """How many letters of `word` fit; after a comma, a slash or the like where one is near the end."""
        length = len(word) - 1
        while length > 1 and self.width(word[:length]) > width:
            length -= 1
        breaks = [place + 1 for place in range(length // 2, length) if word[place] in ",/_-:|)"]
        return breaks[-1] if breaks else length

    def _cut(self, text: str, width: float) -> str:
        while text and self.width(f"{text}…") > width:
            text = text[:-1]
        return f"{text.rstrip()}…"


def _runs(text: str) -> list[tuple[int, str]]:
    """`text` in pieces, each with the number of the first font that has its characters."""
    return [(number, "".join(run)) for number, run in groupby(text, key=_font_number)]


@functools.lru_cache(maxsize=4096)
def _font_number(character: str) -> int:
    """The first font that has the character; the first of all where none has."""
    if character.isspace():
        return 0
    for number in range(1 + len(_fallbacks())):
        font = _font(number, 16)
        if bytes(font.getmask(character)) != bytes(font.getmask(_NEVER_DRAWN)):
            return number
    return 0


@functools.lru_cache(maxsize=256)
def _font(number: int, size: float) -> Font:
    if number:
        return ImageFont.truetype(_fallbacks()[number - 1], size * (1 - (1 - _LOWER_BY) / 2))
    font = ImageFont.load_default(size)
    return font if isinstance(font, Font) else ImageFont.truetype(_fallbacks()[0], size)


@functools.cache
def _fallbacks() -> tuple[str, ...]:
    shipped = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    others = sorted(font.fname for font in fontManager.ttflist if font.name.startswith(_OTHER_SCRIPTS))
    return (str(shipped), *dict.fromkeys(others))
