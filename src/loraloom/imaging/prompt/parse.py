"""The whole language in its order: tags, AND, schedules, then weights and BREAK."""

from __future__ import annotations

import math

from loraloom.errors import ConfigError
from loraloom.imaging.prompt.brackets import warn_of_brackets
from loraloom.imaging.prompt.emphasis import parse_emphasis
from loraloom.imaging.prompt.faults import Faults, Places, quoted
from loraloom.imaging.prompt.lora import LORA_TAGS, read_lora
from loraloom.imaging.prompt.parsed import LoraTag, ParsedPrompt, Part, Segment, Stage, Tag
from loraloom.imaging.prompt.schedules import read_schedule
from loraloom.imaging.prompt.split import Piece, split_parts, warn_of_and
from loraloom.imaging.prompt.tags import Found, find_tags, warn_of_tags, without

MOST_STEPS = 1000
"""As many as diffusion models have noise levels."""


def parse_prompt(text: str, *, steps: int, negative: bool = False) -> ParsedPrompt:
    """What a prompt means over `steps` sampling steps. No text is refused: what is odd is in `warnings`.

    A negative prompt has neither tags nor AND, as in the web UI: they are left as text, with a warning.
    Time is linear in the length of the text and in the number of stages. Raises ConfigError for a number of
    steps outside 1 … 1000.

    >>> prompt = parse_prompt("a [red:blue:0.5] (boat:1.2) <lora:ink:0.8>", steps=20)
    >>> [(stage.end_step, stage.text) for stage in prompt.parts[0].schedule]
    [(10, 'a red (boat:1.2)'), (20, 'a blue (boat:1.2)')]
    >>> prompt.loras[0].name, prompt.loras[0].unet
    ('ink', 0.8)
    """
    if not 1 <= steps <= MOST_STEPS:
        raise ConfigError(f"steps: {steps} found, and 1 to {MOST_STEPS} are accepted")
    faults = Faults()
    found = find_tags(text)
    if negative:
        warn_of_tags(found, faults)
        warn_of_and(text, faults)
        pieces, found = [Piece(0, text, 1.0)], []
    loras, networks = _networks(found, steps, faults)
    rest = without(text, found)
    faults.places = Places([(one.start, one.end) for one in found])
    if not negative:
        pieces = split_parts(rest, faults)
    parts = tuple(_part(piece, steps, faults) for piece in pieces)
    return ParsedPrompt(rest, loras, networks, parts, faults.sentences(), steps)


def _networks(found: list[Found], steps: int, faults: Faults) -> tuple[tuple[LoraTag, ...], tuple[Tag, ...]]:
    """The adapters and the other tags of a prompt."""
    loras: list[LoraTag] = []
    networks: list[Tag] = []
    names: set[str] = set()
    for one in found:
        if one.tag.name not in LORA_TAGS:
            networks.append(one.tag)
            continue
        lora = read_lora(one.tag, one.start, steps, faults)
        if lora is None:
            continue
        if lora.name in names:
            faults.add("twice", one.start, f"adapter {quoted(lora.name)} is named before")
        names.add(lora.name)
        loras.append(lora)
    return tuple(loras), tuple(networks)


def _part(piece: Piece, steps: int, faults: Faults) -> Part:
    faults.shift = piece.start
    inner_breaks = warn_of_brackets(piece.text, faults)
    segments: dict[str, tuple[Segment, ...]] = {}
    schedule = []
    for end, text in read_schedule(piece.text, steps, faults):
        if text not in segments:
            segments[text] = tuple(parse_emphasis(text))
        schedule.append(Stage(end, segments[text], text))
    read = [segment for run in segments.values() for segment in run]
    if any(text == "BREAK" and weight != -1 for text, weight in read):
        for place in inner_breaks:
            faults.add("break", place, "BREAK within brackets breaks nothing and is read as a word")
    if not all(map(math.isfinite, [piece.weight, *(weight for _, weight in read)])):
        faults.add("infinite", 0, "a weight of this part is beyond all numbers, so that it cannot be drawn")
    return Part(piece.weight, tuple(schedule))
