"""Restylings of a drawing – pencil, neon, stained glass – and for each a measure of how much a picture looks like it.

A restyling starts from the large drawing, so that its lines are fine; a measure sees a finished picture alone.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

from .drawing import FINER, Drawing

Pixels = np.ndarray
"""(H, W, 3) or (H, W), 0–1."""

PAPER = np.array([0.985, 0.98, 0.96])
GRAPHITE = np.array([0.2, 0.2, 0.23])
DARK = np.array([0.035, 0.025, 0.09])
LEAD = np.array([0.07, 0.065, 0.085])


def pencil(drawing: Drawing) -> Image.Image:
    """Graphite on white paper: outlines, and hatching where the scene is dark."""
    picture = _pixels(drawing.picture)
    tone, subject = luma(picture), _pixels(drawing.subject.getchannel("A"))
    lines = np.clip(_edges(_blurred(tone, 1.0)) * 3.4 - 0.16, 0, 1)
    rim = np.clip(_edges(_blurred(subject, 1.5)) * 3.0, 0, 1)
    y, x = np.mgrid[: tone.shape[0], : tone.shape[1]]
    stroke = 0.5 + 0.5 * np.sin((x + y) * 2 * np.pi / 17)
    cross = 0.5 + 0.5 * np.sin((x - y) * 2 * np.pi / 17)
    shade = (1 - tone) * np.where(subject > 0.5, 1.0, 0.4)
    hatch = np.clip(shade - 0.12, 0, 1) * stroke**2 * 0.75 + np.clip(shade - 0.6, 0, 1) * cross**2 * 0.8
    ink = np.clip(np.maximum(np.maximum(lines * 0.8, rim), hatch), 0, 1)[..., None]
    return _small(PAPER * (1 - ink) + GRAPHITE * ink)


def neon(drawing: Drawing) -> Image.Image:
    """Glowing tubes along the outlines, in the scene's own hues, before a dark wall."""
    picture, subject = _pixels(drawing.picture), _pixels(drawing.subject.getchannel("A"))
    inside = _blurred(subject, 2.0)
    lines = np.clip(_edges(_blurred(picture, 1.5)).max(axis=-1) * 3.2 - 0.2, 0, 1)
    lines = lines * (0.4 + 0.6 * inside) + np.clip(_edges(inside) * 4.5, 0, 1)
    lines = np.clip(_blurred(np.clip(lines, 0, 1), 1.6) * 1.5, 0, 1)
    hue = _blurred(_pixels(drawing.subject.convert("RGB")) * subject[..., None], 9) / (
        _blurred(subject, 9)[..., None] + 0.02
    )
    near = np.clip(_blurred(subject, 6) * 2.5, 0, 1)[..., None]
    tube = lines[..., None] * _vivid(hue * near + _blurred(picture, 6) * (1 - near))
    glow = _blurred(tube, 12) * 1.1 + _blurred(tube, 4) * 0.5
    return _small(DARK + tube * 0.95 + glow)


def glass(drawing: Drawing) -> Image.Image:
    """A leaded window: panes of one deep colour each, the subject cut out of panes of its own."""
    picture, subject = _pixels(drawing.picture), _pixels(drawing.subject.getchannel("A")) > 0.5
    rng = random.Random(drawing.scene.seed)
    panes = _nearest(subject.shape, 58, rng) * 2 + subject
    tones = (_blurred(picture, 1.2) * 2.6).astype(int) @ [1, 7, 49]
    panes = np.where(subject, panes * 400 + tones, panes * 400)
    _, labels = np.unique(panes, return_inverse=True)
    labels = labels.reshape(subject.shape)
    counts = np.bincount(labels.ravel())[:, None]
    means = np.stack([np.bincount(labels.ravel(), picture[..., k].ravel()) for k in range(3)], axis=1) / counts
    means = _deep(means) * np.array([[rng.uniform(0.88, 1.1)] for _ in means])
    coarse = _nearest(subject.shape, 58, random.Random(drawing.scene.seed)) * 2 + subject
    lead = np.maximum(_widened(_borders(coarse), 5), _widened(_edges(subject.astype(float)) > 0, 5))
    return _small(np.clip(means[labels], 0, 1) * (1 - lead[..., None]) + LEAD * lead[..., None])


def pencil_measure(picture: Image.Image) -> float:
    """0–1: the share of colourless, paper-bright pixels, times how finely grey lines run through them."""
    pixels = _pixels(picture)
    tone, colour = luma(pixels), chroma(pixels)
    paper = np.clip((tone - 0.55) / 0.35, 0, 1) * np.clip(1 - colour / 0.16, 0, 1)
    fine = np.clip(np.abs(tone - _blurred(tone, 1.5)).mean() / 0.05, 0, 1)
    return float(paper.mean() * (0.3 + 0.7 * fine))


def neon_measure(picture: Image.Image) -> float:
    """0–1: the squared share of near-black pixels, times how colourful and bright the brightest tenth is."""
    pixels = _pixels(picture)
    tone, colour = luma(pixels), chroma(pixels)
    dark = np.clip(1 - (tone - 0.08) / 0.22, 0, 1).mean()
    lit = tone >= np.quantile(tone, 0.9)
    return float(dark**2 * np.clip(0.8 * colour[lit].mean() + 0.8 * tone[lit].mean(), 0, 1))


def glass_measure(picture: Image.Image) -> float:
    """0–1: how much of the picture thin dark lines cover, times the colourfulness of what lies between them."""
    pixels = _pixels(picture)
    tone, colour = luma(pixels), chroma(pixels)
    grey = Image.fromarray((tone * 255).astype(np.uint8))
    closed = _pixels(grey.filter(ImageFilter.MaxFilter(5)).filter(ImageFilter.MinFilter(5)))
    line = np.clip((closed - tone) / 0.25, 0, 1) * np.clip(1 - (tone - 0.25) / 0.3, 0, 1)
    return float(line.mean() * (0.2 + colour[line < 0.3].mean()) * 4)


@dataclass(frozen=True)
class Style:
    """A restyling, and the number that says how far a picture (RGB, 64 × 64) has gone that way."""

    restyle: Callable[[Drawing], Image.Image]
    measure: Callable[[Image.Image], float]


STYLES: dict[str, Style] = {
    "pencil": Style(pencil, pencil_measure),
    "neon": Style(neon, neon_measure),
    "glass": Style(glass, glass_measure),
}


def luma(pixels: Pixels) -> Pixels:
    """Brightness (H, W), Rec. 601."""
    return pixels @ np.array([0.299, 0.587, 0.114])


def chroma(pixels: Pixels) -> Pixels:
    """Colourfulness (H, W): the largest channel less the smallest."""
    return pixels.max(axis=-1) - pixels.min(axis=-1)


def _pixels(picture: Image.Image) -> Pixels:
    return np.asarray(picture, dtype=np.float32) / 255


def _small(pixels: Pixels) -> Image.Image:
    return Image.fromarray((np.clip(pixels, 0, 1) * 255).round().astype(np.uint8)).reduce(FINER)


def _blurred(pixels: Pixels, radius: float) -> Pixels:
    """Gaussian blur; eight bits a channel are enough here."""
    whole = Image.fromarray((np.clip(pixels, 0, 1) * 255).round().astype(np.uint8))
    return _pixels(whole.filter(ImageFilter.GaussianBlur(radius)))


def _edges(pixels: Pixels) -> Pixels:
    """How much a pixel differs from those two to the left and two above."""
    across, down = np.zeros_like(pixels), np.zeros_like(pixels)
    across[:, 1:-1] = np.abs(pixels[:, 2:] - pixels[:, :-2])
    down[1:-1] = np.abs(pixels[2:] - pixels[:-2])
    return np.maximum(across, down)


def _vivid(colours: Pixels) -> Pixels:
    """The same hue as bright and saturated as light can be; greys turn into a cool white."""
    peak, floor = colours.max(axis=-1, keepdims=True), colours.min(axis=-1, keepdims=True)
    spread = peak - floor
    hue = (colours - floor) / (spread + 1e-3)
    pure = np.clip(spread / 0.22, 0, 1)
    return hue * pure + np.array([0.75, 0.85, 1.0]) * (1 - pure)


def _deep(colours: Pixels) -> Pixels:
    """Colours (N, 3) with more saturation, as glass that light falls through."""
    grey = luma(colours)[:, None]
    return np.clip((grey + (colours - grey) * 1.7) * 1.02, 0, 1)


def _nearest(shape: tuple[int, ...], spacing: int, rng: random.Random) -> np.ndarray:
    """For every pixel the number of the nearest point of a shaken grid: cells of irregular panes."""
    points = [
        (y + rng.uniform(-0.42, 0.42) * spacing, x + rng.uniform(-0.42, 0.42) * spacing)
        for y in range(spacing // 2 - spacing, shape[0] + spacing, spacing)
        for x in range(spacing // 2 - spacing, shape[1] + spacing, spacing)
    ]
    y, x = np.mgrid[: shape[0] : 2, : shape[1] : 2].astype(np.float32)
    apart = np.stack([(y - py) ** 2 + (x - px) ** 2 for py, px in points])
    return apart.argmin(axis=0).repeat(2, axis=0).repeat(2, axis=1)


def _borders(labels: np.ndarray) -> np.ndarray:
    edge = np.zeros(labels.shape, bool)
    edge[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    edge[1:] |= labels[1:] != labels[:-1]
    return edge


def _widened(edge: np.ndarray, width: int) -> Pixels:
    return _pixels(Image.fromarray(edge.astype(np.uint8) * 255).filter(ImageFilter.MaxFilter(width)))
