"""What can be wrong or odd in a data set: one table of kinds, and what was found of each.

A "problem" cannot be used, teaches something wrong, or makes a score untrue; a "notice" is worth a look.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

Severity = Literal["problem", "notice"]

SHOWN = 5
"""How many places of each kind are named; the others are counted."""


@dataclass(frozen=True)
class Kind:
    """One thing that can be found."""

    phrase: str
    """What it is, after its number; "{row|rows}" is chosen by the number."""
    severity: Severity
    advice: str = ""
    """What to do about it, or what it means."""


SPEAKERS = ("system", "developer", "user", "assistant", "tool")
"""Who may speak in a conversation."""

KINDS: dict[str, Kind] = {
    # -- what cannot be read
    "unreadable": Kind("{row|rows} that cannot be read", "problem", "mend or remove"),
    "bad-file": Kind("{file|files} that cannot be used", "problem", "mend or remove, or --skip-bad leaves them out"),
    "other-file": Kind("{file|files} of another kind in the folder", "notice", "they are not read"),
    "empty-folder": Kind("{folder|folders} without a file that can be used", "problem"),
    "row-missing-value": Kind("{row|rows} without a value that is needed", "problem", "fill in or remove"),
    "row-wrong-kind": Kind("{value|values} of another kind than expected", "problem", "text or a number is expected"),
    "not-listed": Kind("{file|files} in the folder that the table does not name", "notice", "they are not read"),
    "no-class": Kind("{file|files} beside the folders of classes", "problem", "move each into the folder of its class"),
    "unlabelled": Kind("{file|files} without a label", "problem"),
    # -- texts
    "near-empty": Kind("{text|texts} of at most one letter or digit", "notice"),
    "lost-characters": Kind("{text|texts} with U+FFFD, where bytes were lost", "problem", "decode the source again"),
    "mojibake": Kind("{text|texts} that look decoded with the wrong character set (Ã¤ for ä)", "problem"),
    "control-characters": Kind("{text|texts} with control characters", "notice", "remove them"),
    "markup": Kind("{text|texts} with HTML tags or entities", "notice", "decode unless they are meant"),
    "long-text": Kind("{text|texts} over ten times as long as the median", "notice"),
    "cut": Kind("{text|texts} longer than the base takes: cut, or refused", "notice", "raise --max-length, or split"),
    # -- labels
    "conflicting-labels": Kind("{example|examples} given with different labels", "problem", "decide for one"),
    "few-examples": Kind("{label|labels} with fewer than 5 examples", "notice"),
    "not-classes": Kind("{column|columns} of labels that cannot be classes", "problem"),
    "dominant-label": Kind("{label|labels} with over 90 % of the examples", "notice", "accuracy will mislead"),
    "labels-alike": Kind("{group|groups} of labels that differ only in case or spacing", "problem", "write them alike"),
    "unseen-label": Kind("{label|labels} that only the evaluation has", "problem", "no model can learn it"),
    "unmet-label": Kind("{label|labels} of training that the evaluation lacks", "notice", "they are not scored"),
    # -- duplicates
    "duplicate": Kind("{example|examples} that came before, word for word", "notice", "--drop-duplicates keeps one"),
    "near-duplicate": Kind("{example|examples} nearly the same as one before", "notice"),
    "leak": Kind("evaluation {example|examples} that training shows as well", "problem", "the score will flatter"),
    "short-leak": Kind("short evaluation {example|examples} that training shows as well", "notice"),
    "near-leak": Kind("evaluation {example|examples} nearly the same as a training example", "notice"),
    # -- pairs and conversations
    "same-sides": Kind("{pair|pairs} whose two sides are the same", "notice"),
    "odd-ratio": Kind("{pair|pairs} with one side over four times as long as is usual", "notice", "aligned wrongly?"),
    "many-targets": Kind("{source|sources} with several translations", "notice"),
    "no-completion": Kind("{prompt|prompts} without a completion", "problem", "nothing to learn from them"),
    "no-prompt": Kind("{completion|completions} without a prompt", "problem"),
    "not-a-conversation": Kind(
        "{row|rows} without a list of messages with role and content", "problem", 'e.g. [{"role": "user", …}]'
    ),
    "unknown-role": Kind(
        "{conversation|conversations} with a role that is not known", "problem", f"known are {', '.join(SPEAKERS)}"
    ),
    "no-assistant": Kind(
        "{conversation|conversations} without an answer of the assistant", "problem", "nothing to learn"
    ),
    "empty-message": Kind("{conversation|conversations} with an empty message", "problem"),
    "not-in-turn": Kind("{conversation|conversations} where one side speaks twice in a row", "notice"),
    "ends-on-question": Kind("{conversation|conversations} that do not end with the assistant", "notice"),
    # -- pictures
    "tiny-picture": Kind("{picture|pictures} with a side under 32 pixels", "notice"),
    "huge-picture": Kind("{picture|pictures} of over 25 megapixels", "notice", "slow to read; scale them down once"),
    "extreme-aspect": Kind("{picture|pictures} over four times as long as wide", "notice"),
    "grey-picture": Kind("grey {picture|pictures} among coloured ones", "notice"),
    "cmyk-picture": Kind("{picture|pictures} in CMYK or LAB", "notice", "colours are converted without a profile"),
    "deep-picture": Kind("{picture|pictures} with over 8 bits a channel", "notice", "scaled to 8 bits"),
    "transparent-picture": Kind("{picture|pictures} with transparency", "notice", "laid on white"),
    "animated-picture": Kind("{picture|pictures} with several frames", "notice", "the first one is used"),
    "turned-picture": Kind("{picture|pictures} that EXIF turns", "notice", "they are read upright"),
    "blank-picture": Kind("{picture|pictures} of a single colour", "notice"),
    # -- captions
    "uncaptioned": Kind(
        "{picture|pictures}, none with a caption",
        "problem",
        "give metadata.jsonl, or NAME.txt for each; unless options.instance_prompt is to serve all",
    ),
    "no-caption": Kind("{picture|pictures} without a caption", "problem", "write it, or --skip-bad leaves them out"),
    "empty-caption": Kind("empty {caption|captions}", "problem", "write what is to be seen"),
    "bad-caption": Kind("{caption|captions} that cannot be read", "problem", "save the file again as UTF-8"),
    "lone-caption": Kind("{caption|captions} beside no picture", "notice", "they are not read"),
    "shared-caption": Kind(
        "{caption|captions} that 3 pictures or more share",
        "notice",
        "meant for a subject; a style wants each described",
    ),
    # -- boxes
    "no-boxes": Kind("{picture|pictures} without a box", "notice", "taken as showing nothing"),
    "bad-annotation": Kind("{annotation|annotations} that cannot be used", "problem"),
    "box-outside": Kind("{box|boxes} wholly outside the picture", "problem", "they cannot be used"),
    "box-over-edge": Kind("{box|boxes} that reach over the picture's edge", "notice", "cut at the edge"),
    "box-without-area": Kind("{box|boxes} without width or height", "problem", "they cannot be used"),
    "tiny-box": Kind("{box|boxes} with a side under 4 pixels", "notice"),
    "whole-box": Kind("{box|boxes} over more than 95 % of the picture", "notice"),
    "double-box": Kind("{box|boxes} drawn twice over the same thing", "notice"),
    "unknown-category": Kind("{box|boxes} of a category that is not listed", "problem"),
    "unknown-picture": Kind("{box|boxes} of a picture that is not listed", "problem"),
    "wrong-size": Kind("{picture|pictures} of another size than the annotations say", "problem", "boxes will be off"),
    # -- recordings
    "silent": Kind("silent {recording|recordings}", "problem"),
    "quiet": Kind("very quiet {recording|recordings} (below −45 dB)", "notice"),
    "clipped": Kind("clipped {recording|recordings}", "notice", "recorded too loudly"),
    "stereo": Kind("{recording|recordings} with several channels", "notice", "mixed to one"),
    "other-rate": Kind("{recording|recordings} at another sample rate than most", "notice", "resampled"),
    "low-rate": Kind("{recording|recordings} below 16 kHz", "notice", "what lies above half the rate is missing"),
    "short-recording": Kind("{recording|recordings} under 0.1 s", "notice"),
    "long-recording": Kind("{recording|recordings} over 30 s", "notice", "more than Whisper takes at once"),
    "odd-pace": Kind(
        "{recording|recordings} over three times faster or slower than is usual",
        "notice",
        "transcript and sound agree?",
    ),
    "rare-character": Kind("{character|characters} in fewer than 3 transcripts", "notice"),
}
"""Every kind by its name, in the order of a report."""


@dataclass(frozen=True)
class Finding:
    """All that was found of one kind in one part, as plain data."""

    kind: str
    severity: Severity
    count: int
    what: str
    """The kind in words, without the number."""
    advice: str
    places: list[str]
    """The first `SHOWN`, each a file and line with what was found there."""

    @property
    def sentence(self) -> str:
        """The whole finding as one sentence."""
        more = f" and {self.count - len(self.places):,} more" if self.count > len(self.places) else ""
        advice = f"; {self.advice}" if self.advice else ""
        return f"{self.count:,} {self.what}: {', '.join(self.places)}{more}{advice}"


@dataclass
class Findings:
    """What was found so far, by kind and reason; holds few places of each, however many there are."""

    _counts: dict[tuple[str, str], int] = field(default_factory=dict)
    _places: dict[tuple[str, str], list[str]] = field(default_factory=dict)

    def add(self, kind: str, place: str, *, reason: str = "", count: int = 1) -> None:
        """Note one more of a kind; `reason` keeps different ones apart. Raises KeyError for an unknown kind."""
        key = (kind, reason)
        places = self._places.setdefault(key, [])
        if KINDS[kind] and len(places) < SHOWN:
            places.append(place)
        self._counts[key] = self._counts.get(key, 0) + count

    def __iter__(self) -> Iterator[Finding]:
        """In the order of the table; reasons from frequent to rare."""
        order = {name: number for number, name in enumerate(KINDS)}
        for key in sorted(self._counts, key=lambda key: (order[key[0]], -self._counts[key], key[1])):
            kind, reason = KINDS[key[0]], key[1]
            count = self._counts[key]
            what = _number(kind.phrase, count) + (f" ({reason})" if reason else "")
            yield Finding(key[0], kind.severity, count, what, kind.advice, list(self._places[key]))

    def count(self, kind: str) -> int:
        """How many of a kind there are, of all reasons."""
        return sum(count for (name, _), count in self._counts.items() if name == kind)


def _number(phrase: str, count: int) -> str:
    """Singular or plural, by the count."""

    def chosen(match: re.Match[str]) -> str:
        return match[1] if count == 1 else match[2]

    return re.sub(r"\{([^|{}]*)\|([^|{}]*)\}", chosen, phrase)


def shortened(text: Any, most: int = 60) -> str:
    """A text on one line, cut to `most` characters: for places and tables."""
    line = " ".join(str(text).split())
    return line if len(line) <= most else line[: most - 1].rstrip() + "…"
