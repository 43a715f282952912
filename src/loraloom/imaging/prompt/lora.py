"""`<lora:NAME:TE:UNET>` read: the web UI's arguments, and two of our own that it passes over.

<lora:ink:0.8>                                the whole adapter at 0.8
<lora:ink:0.5:0.9>, <lora:ink:te=0.5:unet=0.9>      text encoder and denoiser apart
<lora:ink:0.8:blocks=down*0,mid*0.5,up.2*1.5>       × 0, × 0.5, × 1.5 in those blocks, × 1 elsewhere
<lora:ink:0.8:steps=0.3*0,0.6*0..1>                 off for 30 % of the steps, then rising till 60 %
<lora:ink:0.8:steps=8*1,0.2>                        × 1 up to step 8, then × 0.2
"""

from __future__ import annotations

import math
import re

from loraloom.errors import suggest
from loraloom.imaging.prompt.faults import Faults, quoted
from loraloom.imaging.prompt.parsed import LoraTag, Tag
from loraloom.imaging.prompt.schedules import step_of

LORA_TAGS = ("lora", "lyco")
"""Tags that name an adapter; the web UI reads the second as the first."""

BLOCKS = ("down", "mid", "up", "te", "te1", "te2", "te3", "double", "single")
"""What `blocks=` may name; down, up, double (Flux's and SD3's joint blocks) and single also with a number, "up.1"."""

_NAMED = ("te", "unet", "blocks", "steps")
_BLOCK = re.compile(r"(?:down|up|double|single)(?:\.\d+)?|mid|te[123]?")
_WHEN = re.compile(r"\d+\.?\d*|\.\d+", re.ASCII)


def read_lora(tag: Tag, place: int, steps: int, faults: Faults) -> LoraTag | None:
    """The adapter that a tag asks for, or None if it names none; what cannot be read is warned of and left out."""
    if not tag.args or not tag.args[0]:
        faults.add("no name", place, f"<{tag.name}:…> names no adapter and is left out, e.g. <lora:NAME:0.8>")
        return None
    reader = _Reader(tag.args[0], place, steps, faults)
    reader.warn_of_arguments(tag)
    positional = [*tag.args[1:3], "", ""]
    te = reader.number("te", tag.named.get("te", positional[0]), 1.0)
    unet = reader.number("unet", tag.named.get("unet", positional[1]), te)
    blocks = reader.blocks(tag.named["blocks"]) if "blocks" in tag.named else {}
    pieces = reader.steps(tag.named["steps"]) if "steps" in tag.named else ()
    return LoraTag(tag.args[0], te, unet, blocks, pieces)


def finite(text: str) -> float | None:
    """The number that a text is, or None for one that is none or not finite."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


class _Reader:
    """The arguments of one tag; warnings name it."""

    def __init__(self, name: str, place: int, steps: int, faults: Faults) -> None:
        self.name, self.place, self.count, self.faults = name, place, steps, faults
        self._kind = f"lora {name}"

    def warn(self, sentence: str) -> None:
        self.faults.add(self._kind, self.place, f"adapter {quoted(self.name)}: {sentence}")

    def hint(self, word: str, options: tuple[str, ...]) -> str:
        """The nearest right word, looked for only while warnings are still told."""
        return "" if self.faults.full(self._kind) else suggest(word[:16], options, most=1)

    def warn_of_arguments(self, tag: Tag) -> None:
        for key in tag.named:
            if key == "dyn":
                self.warn("'dyn', a part of the rank, is not supported and has no effect")
            elif key not in _NAMED:
                hint = self.hint(key, _NAMED)
                self.warn(f"unknown argument {quoted(key)} has no effect; there are {', '.join(_NAMED)}{hint}")
        for extra in tag.args[3:]:
            self.warn(f"argument {quoted(extra)} has no effect: a name and two weights go before it")

    def number(self, what: str, text: str, default: float) -> float:
        """A weight; an empty one is the default."""
        value = finite(text) if text else default
        if value is None:
            self.warn(f"{what} {quoted(text)} is no number, so that {default:g} is taken")
            return default
        return value

    def blocks(self, text: str) -> dict[str, float]:
        found: dict[str, float] = {}
        for entry in text.split(","):
            name, _, factor = (part.strip() for part in entry.partition("*"))
            value = finite(factor)
            if not _BLOCK.fullmatch(name):
                hint = self.hint(name.partition(".")[0], BLOCKS)
                self.warn(f"blocks: {quoted(name)} is no block, and has no effect; there are {', '.join(BLOCKS)}{hint}")
            elif value is None:
                self.warn(f"blocks: {quoted(entry.strip())} has no effect, as no number follows: write {name}*0.5")
            else:
                found[name] = value
        return found

    def steps(self, text: str) -> tuple[tuple[int, float], ...]:
        """`END*FACTOR` or `END*FACTOR..FACTOR` pieces; a last FACTOR alone holds to the end, otherwise 1 does."""
        pieces: list[tuple[int, float]] = []
        last = 0
        entries = [entry.strip() for entry in text.split(",")]
        for index, entry in enumerate(entries):
            when, star, factors = (part.strip() for part in entry.partition("*"))
            if not star and index + 1 == len(entries):
                when, factors = str(self.count), when
            ramp = [finite(part) for part in factors.split("..", 1)]
            if not _WHEN.fullmatch(when) or any(factor is None for factor in ramp):
                self.warn(f"steps: {quoted(entry)} has no effect; write END*FACTOR, e.g. 0.5*0 or 10*0..1")
                continue
            end = step_of(when, self.count)
            if end < last:
                self.warn(f"steps: {quoted(entry)} has no effect, as it ends before the piece before it")
                continue
            pieces += _ramp(last, end, [factor for factor in ramp if factor is not None])
            last = end
        if last < self.count:
            pieces.append((self.count, 1.0))
        return _joined(pieces)


def _ramp(last: int, end: int, factors: list[float]) -> list[tuple[int, float]]:
    """Pieces for the steps after `last` up to `end`: one, or one for each step of a straight line."""
    first, final = factors[0], factors[-1]
    if first == final:
        return [(end, first)] if end > last else []
    span = max(end - last - 1, 1)
    return [
        (step, final if step == end else first + (final - first) * (step - last - 1) / span)
        for step in range(last + 1, end + 1)
    ]


def _joined(pieces: list[tuple[int, float]]) -> tuple[tuple[int, float], ...]:
    """The pieces, neighbours of one factor as one."""
    joined: list[tuple[int, float]] = []
    for end, factor in pieces:
        if joined and joined[-1][1] == factor:
            joined.pop()
        joined.append((end, factor))
    return tuple(joined)
