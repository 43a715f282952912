"""What can be odd about one text, and how long texts are."""

from __future__ import annotations

import re
import statistics
from collections.abc import Sequence

from loraloom.data.check.findings import shortened
from loraloom.data.check.part import Part, Tokens
from loraloom.data.table import Example

# What a byte of 0x80–0xBF, the second and later bytes of UTF-8, looks like when read as Windows-1252 or Latin-1.
_LATER = "".join(
    sorted(set(bytes(range(0x80, 0xC0)).decode("cp1252", "ignore")) | {chr(code) for code in range(0x80, 0xC0)})
)
_MOJIBAKE = re.compile(f"[ÂÃÐÑ][{_LATER}]|[âã][{_LATER}]{{2}}|ð[{_LATER}]{{3}}")
# tab, line feed and carriage return are ordinary; U+FEFF is a byte order mark that has strayed into the text
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028\u2029\ufeff]")
_MARKUP = re.compile(
    r"&(?:amp|lt|gt|quot|nbsp|apos|#\d{2,5}|#x[0-9a-fA-F]{2,5});|</?(?:br|p|div|span|a|b|i|img)\b[^<>]*>"
)
_LETTER = re.compile(r"[^\W_]")

LONG = 10
"""How many times the median a text's words are before it is called long."""


def check_texts(part: Part, roles: Sequence[str], tokens: Tokens | None = None) -> None:
    """Note what is odd in the texts of `roles` of every example, and how long they are."""
    for role in roles:
        prefix = "" if len(roles) == 1 else f"{role} "
        words = [0] * len(part.examples)
        for number, example in enumerate(part.examples):
            text = str(example.values.get(role, ""))
            words[number] = len(text.split())
            part.series[f"{prefix}characters"].append(len(text))
            if text:
                _check_one(part, example, text)
        part.series[f"{prefix}words"] = [float(count) for count in words]
        _note_long(part, role, words)
    if tokens is not None and part.examples:
        apart = roles if "target" in roles else ("text",)  # the sides of a pair are read by themselves
        for role in apart:
            _count_tokens(part, role, tokens)


def _check_one(part: Part, example: Example, text: str) -> None:
    for kind, what in odd_parts(text):
        part.findings.add(kind, f"{part.place(example)} {what!r}")


def odd_parts(text: str) -> list[tuple[str, str]]:
    """What is odd about a text: the kind of each finding, and the part of the text that shows it."""
    found = []
    if len(_LETTER.findall(text[:200])) < 2 and len(_LETTER.findall(text)) < 2:
        found.append(("near-empty", shortened(text, 20)))
    if "�" in text:
        found.append(("lost-characters", _around(text, text.index("�"))))
    for kind, pattern in (("mojibake", _MOJIBAKE), ("control-characters", _CONTROL), ("markup", _MARKUP)):
        if match := pattern.search(text):
            found.append((kind, _around(text, match.start())))
    return found


def _around(text: str, at: int) -> str:
    """A little of the text on both sides of a place."""
    begin, end = max(0, at - 12), at + 18
    return f"{'…' if begin else ''}{text[begin:end]}{'…' if end < len(text) else ''}"


def _note_long(part: Part, role: str, words: Sequence[int]) -> None:
    if not words:
        return
    usual = max(5.0, statistics.median(words))
    for example, count in zip(part.examples, words, strict=True):
        if count > LONG * usual:
            part.findings.add("long-text", f"{part.place(example)} ({role}, {count:,} words)")


def _count_tokens(part: Part, role: str, tokens: Tokens) -> None:
    counts = tokens.count([str(example.values[role]) for example in part.examples])
    part.series["tokens" if role == "text" else f"{role} tokens"] = [float(count) for count in counts]
    part.notes.append(f"tokens of {tokens.base}, which takes {'any number' if not tokens.limit else tokens.limit}")
    for example, count in zip(part.examples, counts, strict=True):
        if tokens.limit is not None and count > tokens.limit:
            part.findings.add("cut", f"{part.place(example)} ({count:,} tokens)", reason=f"{tokens.limit:,} tokens")
