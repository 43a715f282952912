"""`<name:arg:key=value>` tags: found, cut out of the prompt, and taken apart.

The form is the web UI's: a word, a colon, then anything but ">". An argument with exactly one "=" is named.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from loraloom.imaging.prompt.faults import Faults, quoted
from loraloom.imaging.prompt.parsed import Tag

_HEAD = re.compile(r"<(\w+):")


@dataclass(frozen=True)
class Found:
    """A tag and where it stood, as offsets into the prompt."""

    start: int
    end: int
    tag: Tag


def find_tags(text: str) -> list[Found]:
    """Every tag of a prompt, in its order."""
    found: list[Found] = []
    cursor = close = 0
    for head in _HEAD.finditer(text):
        if head.start() < cursor:
            continue
        if close < head.end():
            close = text.find(">", head.end())
        if close < 0:
            break
        if close > head.end():  # `<name:>` is no tag
            cursor = close + 1
            found.append(Found(head.start(), cursor, _tag(head[1], text[head.end() : close])))
    return found


def _tag(name: str, body: str) -> Tag:
    items = [item.split("=") for item in body.split(":")]
    named = {item[0]: item[1] for item in items if len(item) == 2}
    return Tag(name, tuple("=".join(item) for item in items if len(item) != 2), named)


def without(text: str, found: list[Found]) -> str:
    """The prompt with the tags cut out; the blanks around them stay."""
    ends = [0, *(one.end for one in found)]
    starts = [*(one.start for one in found), len(text)]
    return "".join(text[end:start] for end, start in zip(ends, starts, strict=True))


def warn_of_tags(found: list[Found], faults: Faults) -> None:
    """Say of each tag that stands where none is read, as in a negative prompt."""
    for one in found:
        name = quoted(one.tag.args[0] if one.tag.args else "")
        sentence = f"the tag <{one.tag.name}:…> of {name} is left as text, since a negative prompt has no tags"
        faults.add("negative tag", one.start, sentence)
