"""Draw a data set of a machine that spells: every letter of a text has a sound of its own, and no voice is in it.

    python examples/speech_synthesis/draw_tones.py ../shared/data/causal_lm/pride_and_prejudice/train.jsonl runs/tones

Vowels are a buzz through three formants, consonants hiss or hum in a band, spaces are silent. A base model that
learns from these recordings has met every letter, learnt to go through a text from left to right, and has never
heard anybody speak. The same prose gives the same files.
"""

from __future__ import annotations

import json
import random
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

RATE = 16_000
TRAIN, TEST = 400, 4
LONGEST = 110
"""Characters of a text."""

FORMANTS = {
    "a": (730, 1090, 2440),
    "e": (530, 1840, 2480),
    "i": (300, 2290, 3010),
    "o": (570, 840, 2410),
    "u": (320, 870, 2240),
    "y": (270, 2000, 2700),
    "m": (250, 1000, 2200),
    "n": (250, 1500, 2500),
    "l": (360, 1300, 2700),
    "r": (420, 1200, 1600),
    "w": (300, 650, 2200),
    "j": (280, 2200, 3200),
}
"""Hz: what is buzzed."""
BANDS = {
    "s": (4500, 7500),
    "z": (4000, 7000),
    "f": (1500, 7000),
    "v": (1000, 4000),
    "h": (500, 3000),
    "x": (3000, 6000),
    "t": (3000, 7500),
    "d": (2000, 5000),
    "k": (1500, 3500),
    "g": (1000, 2500),
    "c": (2500, 6000),
    "q": (1200, 2600),
    "p": (300, 1500),
    "b": (200, 900),
}
"""Hz: what is hissed."""
_SHORT = frozenset("tdkgcqpb")

Samples = NDArray[np.float64]


def spell(text: str, seed: int) -> Samples:
    """The sound (T,) of a text at 16 kHz, shares of full scale; what is no letter is a short silence."""
    draw = np.random.default_rng(seed)
    pitch = draw.uniform(140, 200)
    sounds = [_letter(letter, pitch * (1.1 - 0.2 * place / len(text)), draw) for place, letter in enumerate(text)]
    edge = np.zeros(RATE // 20)
    whole = np.concatenate([edge, *sounds, edge])
    return whole + draw.normal(0.0, 3e-4, len(whole))


def _letter(letter: str, pitch: float, draw: np.random.Generator) -> Samples:
    letter = letter.lower()
    seconds = 0.09 if letter in FORMANTS else 0.05 if letter in _SHORT or letter not in BANDS else 0.07
    count = int(RATE * seconds * draw.uniform(0.9, 1.1))
    if letter in FORMANTS:
        sound = 0.25 * _buzz(FORMANTS[letter], pitch, count)
    elif letter in BANDS:
        sound = 0.08 * _hiss(BANDS[letter], count, draw)
    else:
        return np.zeros(count)
    fade = np.minimum(1.0, np.arange(count) / (0.01 * RATE))
    return sound * fade * fade[::-1]


def _buzz(formants: tuple[int, int, int], pitch: float, count: int) -> Samples:
    """All overtones of a pitch (Hz), each as loud as it is near to a formant."""
    overtones = np.arange(pitch, 7000, pitch)
    loudness: Samples = np.full(len(overtones), 0.01)
    for place, formant in enumerate(formants):
        loudness += np.exp(-(((overtones - formant) / (90 + 0.05 * formant)) ** 2)) / (1 + place)
    angles = 2 * np.pi * overtones[:, None] * np.arange(count)[None, :] / RATE
    found: Samples = (loudness[:, None] * np.sin(angles + overtones[:, None])).sum(0)
    return _scaled(found, float(np.abs(found).max()))


def _hiss(band: tuple[int, int], count: int, draw: np.random.Generator) -> Samples:
    """Noise between two frequencies (Hz)."""
    spectrum = np.fft.rfft(draw.normal(size=count))
    frequencies = np.fft.rfftfreq(count, 1 / RATE)
    spectrum[(frequencies < band[0]) | (frequencies > band[1])] *= 0.01
    found: Samples = np.fft.irfft(spectrum, count)
    return _scaled(found, float(np.abs(found).std() * 3))


def _scaled(sound: Samples, by: float) -> Samples:
    found: Samples = sound / max(1e-9, by)
    return found


def phrases(prose: Path, count: int, seed: int) -> Iterator[str]:
    """Runs of words from a .jsonl file of {"text": …}: three in four short, one in four a whole line."""
    draw = random.Random(seed)
    lines = [json.loads(line)["text"] for line in prose.read_text("utf-8").splitlines()]
    words = [re.sub(r"[^A-Za-z,.;' -]", "", " ".join(line.split())).split() for line in lines]
    words = [line for line in words if len(line) > 6]
    for number in range(count):
        line = draw.choice(words)
        first = draw.randrange(len(line) - 5)
        most = LONGEST if number % 4 == 0 else 32
        chosen = line[first]
        for word in line[first + 1 :]:
            if len(chosen) + len(word) >= most:
                break
            chosen += f" {word}"
        yield chosen[:most]


def draw(prose: Path, folder: Path, *, train: int = TRAIN, test: int = TEST) -> None:
    """Write folder/train and folder/test with recordings and metadata.jsonl; nothing where they are already."""
    for split, count, seed in (("train", train, 1), ("test", test, 2)):
        part = folder / split
        if (part / "metadata.jsonl").exists():
            continue
        part.mkdir(parents=True, exist_ok=True)
        rows = []
        for number, text in enumerate(phrases(prose, count, seed)):
            name = f"{number:04d}.wav"
            soundfile.write(part / name, spell(text, seed * 10_000 + number), RATE, subtype="PCM_16")
            rows.append(json.dumps({"file_name": name, "text": text}))
        (part / "metadata.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(f"two paths are expected, found {len(sys.argv) - 1}: the prose, and the folder to write")
    draw(Path(sys.argv[1]), Path(sys.argv[2]))
