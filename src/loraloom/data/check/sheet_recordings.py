"""The recordings of a sample sheet: the wave, its spectrogram, and what is said to be said."""

from __future__ import annotations

import math
import textwrap

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import SubFigure
from numpy.typing import NDArray

from loraloom.data.check.findings import shortened
from loraloom.data.check.part import Part
from loraloom.data.check.sheet_style import BLUE, GREY, ORANGE, TEXT, by_value, drawn
from loraloom.data.recordings import Recording, read_recording
from loraloom.data.table import Example

_ACROSS, _MOST = 3, 12
_TILE = 2.45  # inches
_DOTS = 700  # points along a wave
_WINDOW, _HOP = 0.025, 0.010  # seconds
_DEPTH = 70.0  # decibels between white and black
_FRAMES = 900  # of a spectrogram: more are not seen


def recordings_height(part: Part) -> float:
    """Inches that the recordings need."""
    return math.ceil(len(_chosen(part)) / _ACROSS) * _TILE + 0.2


def draw_recordings(figure: SubFigure, part: Part) -> None:
    """Draw the recordings, from the top."""
    chosen = _chosen(part)
    rows = max(1, math.ceil(len(chosen) / _ACROSS))
    grid = figure.add_gridspec(rows, _ACROSS, left=0.035, right=0.985, top=0.985, bottom=0.05, hspace=0.32, wspace=0.12)
    for number, (tag, example) in enumerate(chosen):
        inner = grid[divmod(number, _ACROSS)].subgridspec(3, 1, height_ratios=[0.42, 0.8, 1.1], hspace=0.0)
        caption, wave, picture = (figure.add_subplot(inner[row, 0]) for row in range(3))
        recording = read_recording(example.values["file"])
        _draw_caption(caption, part, tag, example)
        _draw_wave(wave, recording)
        _draw_spectrogram(picture, recording)


def _chosen(part: Part) -> list[tuple[str, Example]]:
    """The shortest, the longest, the loudest, the quietest, one of each speaker, and others by chance."""
    if not part.examples:
        return []
    found: dict[str, tuple[str, Example]] = {}

    def take(tag: str, example: Example) -> None:
        found.setdefault(example.values["file"], (tag, example))

    for (least, most), fact in (("shortest", "longest"), "seconds"), (("quietest", "loudest"), "rms"):
        ordered = sorted(part.examples, key=lambda one: float(one.values[fact]))
        take(least, ordered[0])
        take(most, ordered[-1])
    for name, examples in by_value(part.examples, "speaker", _MOST // 2).items():
        take(shortened(name, 14), drawn(examples, 1, name)[0])
    for example in drawn(part.examples, _MOST):
        take("random", example)
    return list(found.values())[:_MOST]


def _draw_caption(axes: Axes, part: Part, tag: str, example: Example) -> None:
    axes.axis("off")
    facts = example.values
    speaker = f" · {shortened(facts['speaker'], 14)}" if "speaker" in facts and tag != facts["speaker"] else ""
    told = f"{tag}{speaker} · {shortened(part.place(example), 26)} · {facts['seconds']:.2f} s · {facts['rate']:,} Hz"
    axes.text(0, 1.0, told, fontsize=7, color=GREY, va="top", transform=axes.transAxes, parse_math=False)
    lines = textwrap.wrap(facts.get("text", ""), 68) or [""]
    words = shortened(" ".join(lines), 66)
    axes.text(0, 0.52, words, fontsize=8.5, color=TEXT, va="top", transform=axes.transAxes, parse_math=False)


def _draw_wave(axes: Axes, recording: Recording) -> None:
    """The least and the greatest sample of each short stretch; full scale is marked."""
    step = max(1, len(recording.samples) // _DOTS)
    stretches = recording.samples[: len(recording.samples) // step * step].reshape(-1, step)
    times = np.arange(len(stretches)) * step / recording.rate
    axes.fill_between(times, stretches.min(axis=1), stretches.max(axis=1), color=BLUE, linewidth=0.4)
    loudest = float(np.abs(recording.samples).max())
    room = min(1.05, max(0.02, 1.15 * loudest))
    axes.set(xlim=(0, recording.seconds), ylim=(-room, room))
    for side in (-1, 1) if room > 0.9 else ():
        axes.axhline(side, color=ORANGE, linewidth=0.7)
    axes.text(
        0.995, 0.93, f"peak {loudest:.2f}", fontsize=6.5, color=GREY, ha="right", va="top", transform=axes.transAxes
    )
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[["top", "right", "left", "bottom"]].set_visible(False)


def _draw_spectrogram(axes: Axes, recording: Recording) -> None:
    levels = spectrogram(recording)
    extent = (0.0, recording.seconds, 0.0, recording.rate / 2000)
    axes.imshow(levels, origin="lower", aspect="auto", extent=extent, cmap="magma", vmin=-_DEPTH, vmax=0)
    axes.tick_params(labelsize=6.5, length=2, colors=GREY)
    axes.set_ylabel("kHz", fontsize=6.5, color=GREY, labelpad=1)
    axes.spines[["top", "right", "left", "bottom"]].set_visible(False)


def spectrogram(recording: Recording) -> NDArray[np.float64]:
    """Decibels (frequencies, frames) below the loudest, of Hann windows of 25 ms; at most `_FRAMES` frames."""
    window = max(16, round(_WINDOW * recording.rate))
    samples = np.pad(recording.samples, (0, max(0, window - len(recording.samples))))
    hop = max(1, round(_HOP * recording.rate), (len(samples) - window) // _FRAMES)
    frames = np.lib.stride_tricks.sliding_window_view(samples, window)[::hop]
    power = np.abs(np.fft.rfft(frames * np.hanning(window), axis=1)).T ** 2
    loudest = max(float(power.max()), 1e-12)
    return np.asarray(10 * np.log10(np.maximum(power / loudest, 1e-12)), dtype=np.float64)
