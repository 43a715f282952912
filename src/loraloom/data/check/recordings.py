"""Recordings of speech, each with its transcript."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from loraloom.data.check.duplicates import check_same_files, compare_files
from loraloom.data.check.files import read_part
from loraloom.data.check.findings import Findings
from loraloom.data.check.modality import Layout, Sheet
from loraloom.data.check.part import Part, Progress, Tokens, check_balance, compare_labels
from loraloom.data.check.texts import check_texts
from loraloom.data.columns import Role
from loraloom.data.config import DataConfig
from loraloom.data.recordings import CLIPPED_FROM, RECORDINGS

TEXT = Role(
    "text",
    ("text", "transcript", "transcription", "sentence", "normalized_text", "utterance", "words", "label"),
)
SPEAKER = Role("speaker", ("speaker", "speaker_id", "speaker_name", "voice", "reader", "client_id"), "label")

SHORT, LONG, LOW_RATE, QUIET = 0.1, 30.0, 16_000, -45.0
"""Seconds, seconds, Hz, and decibels below full scale of the root mean square."""

PACE = 3.0
"""How many times the usual characters a second is odd."""

_RARE = 3


class Recordings:
    """Files of speech with what is said in them, and by whom where that is known."""

    sheet: ClassVar[Sheet] = "recordings"
    layout: ClassVar[Layout] = "folders"

    def read(self, part: Part, data: DataConfig, progress: Progress | None = None) -> None:
        """Decode every recording; those that cannot be used, or have no transcript, are noted."""
        read_part(part, RECORDINGS, (TEXT, SPEAKER), ("text",), data, progress)

    def examine(self, part: Part, tokens: Tokens | None = None) -> None:
        """Durations, odd sound, odd transcripts, speakers, duplicates."""
        _check_sound(part)
        check_texts(part, ("text",), tokens)
        _check_pace(part)
        _check_characters(part)
        if speakers := part.tally("speaker"):
            check_balance(part, speakers)
        check_same_files(part)

    def compare(self, train: Part, held_out: Part, findings: Findings) -> None:
        """Recordings that are in both, and speakers that one part alone has."""
        compare_files(train, held_out, findings)
        compare_labels(train, held_out, findings, role="speaker")


Facts = Mapping[str, Any]

_ODD: dict[str, Callable[[Facts], bool]] = {
    "silent": lambda facts: bool(facts["silent"]),
    "quiet": lambda facts: not facts["silent"] and level(facts) < QUIET,
    "clipped": lambda facts: facts["clipped"] >= CLIPPED_FROM,
    "stereo": lambda facts: facts["channels"] > 1,
    "short-recording": lambda facts: facts["seconds"] < SHORT,
    "long-recording": lambda facts: facts["seconds"] > LONG,
    "low-rate": lambda facts: facts["rate"] < LOW_RATE,
}
"""Kind of finding to what shows it."""

_TELLING: dict[str, Callable[[Facts], str]] = {
    "quiet": lambda facts: f" ({level(facts):.0f} dB)",
    "clipped": lambda facts: f" ({100 * facts['clipped']:.1f} % of its samples)",
    "stereo": lambda facts: f" ({facts['channels']})",
    "short-recording": lambda facts: f" ({facts['seconds']:.3f} s)",
    "long-recording": lambda facts: f" ({facts['seconds']:.1f} s)",
    "low-rate": lambda facts: f" ({facts['rate']:,} Hz)",
}


def level(facts: Facts) -> float:
    """Root mean square in decibels below full scale; at least −120."""
    return 20 * math.log10(max(facts["rms"], 1e-6))


def _told(kind: str, facts: Facts) -> str:
    return _TELLING[kind](facts) if kind in _TELLING else ""


def _check_sound(part: Part) -> None:
    """Gather durations and levels, note odd sound and mixed sample rates."""
    rates = Counter(int(example.values["rate"]) for example in part.examples)
    for example in part.examples:
        facts = example.values
        part.series["seconds"].append(float(facts["seconds"]))
        part.series["level (dB)"].append(level(facts))
        for kind, shows in _ODD.items():
            if shows(facts):
                part.findings.add(kind, part.place(example) + _told(kind, facts))
    if len(rates) > 1:
        part.tallies["sample rate"] = Counter({f"{rate:,} Hz": count for rate, count in rates.items()})
        most = rates.most_common(1)[0][0]
        for example in part.examples:
            if example.values["rate"] != most:
                part.findings.add("other-rate", f"{part.place(example)} ({example.values['rate']:,} Hz)")


def _check_pace(part: Part) -> None:
    """Note transcripts that are far too long or short for their sound."""
    paces = [len(one.values["text"]) / one.values["seconds"] for one in part.examples]
    usual = statistics.median(paces) if paces else 0.0
    part.series["characters a second"] = paces
    for example, pace in zip(part.examples, paces, strict=True):
        if not usual / PACE <= pace <= usual * PACE:
            told = f"{part.place(example)} ({pace:.0f} characters a second, usual are {usual:.0f})"
            part.findings.add("odd-pace", told)


def _check_characters(part: Part) -> None:
    """Note characters that hardly any transcript has: a CTC head learns each as a class of its own."""
    seen = Counter(character for one in part.examples for character in set(one.values["text"].lower()))
    if len(part.examples) < 10 * _RARE:
        return
    for character, count in sorted(seen.items()):
        if count < _RARE:
            part.findings.add("rare-character", f"{character!r} ({count})")
