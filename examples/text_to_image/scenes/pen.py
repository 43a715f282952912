"""A pen that draws in a subject's own coordinates, wherever and however large the subject stands on the canvas.

A subject fills the square from (−1, −1), top left, to (1, 1), bottom right; it stands on y = 1.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from .palette import Colour

Point = tuple[float, float]


@dataclass(frozen=True)
class Pose:
    """Where a subject stands: `x`, `y` of its middle and `size`, its half height, all in canvas pixels."""

    x: float
    y: float
    size: float
    tilt: float = 0.0
    """Radians, clockwise on the screen."""
    mirrored: bool = False

    def at(self, point: Point) -> Point:
        """The canvas pixel of a point in the subject's coordinates."""
        x, y = (-point[0] if self.mirrored else point[0]), point[1]
        cos, sin = math.cos(self.tilt), math.sin(self.tilt)
        return self.x + self.size * (x * cos - y * sin), self.y + self.size * (x * sin + y * cos)


class Pen:
    """Draws filled shapes on a transparent layer of `canvas` × `canvas` pixels."""

    def __init__(self, canvas: int, pose: Pose) -> None:
        self.layer = Image.new("RGBA", (canvas, canvas), (0, 0, 0, 0))
        self.pose = pose
        self._draw = ImageDraw.Draw(self.layer)

    def polygon(self, points: Iterable[Point], colour: Colour) -> None:
        """A filled polygon."""
        self._draw.polygon([self.pose.at(point) for point in points], fill=(*colour, 255))

    def box(self, left: float, top: float, right: float, bottom: float, colour: Colour) -> None:
        """A filled rectangle."""
        self.polygon([(left, top), (right, top), (right, bottom), (left, bottom)], colour)

    def disc(self, x: float, y: float, radius: float, colour: Colour) -> None:
        """A filled circle."""
        self.oval(x, y, radius, radius, colour)

    def oval(self, x: float, y: float, wide: float, high: float, colour: Colour, turn: float = 0.0) -> None:
        """A filled ellipse of half axes `wide` and `high`, turned by `turn` radians."""
        self.polygon(oval(x, y, wide, high, turn), colour)

    def blob(self, points: Sequence[Point], colour: Colour) -> None:
        """A filled smooth closed curve through the points."""
        self.polygon(smooth(points), colour)

    def line(self, points: Sequence[Point], width: float, colour: Colour) -> None:
        """A stroke of `width` (in the subject's units) with round ends."""
        for first, second in itertools.pairwise(points):
            self._stroke(first, second, width / 2, colour)
        for x, y in points:
            self.disc(x, y, width / 2, colour)

    def _stroke(self, first: Point, second: Point, half: float, colour: Colour) -> None:
        dx, dy = second[0] - first[0], second[1] - first[1]
        length = math.hypot(dx, dy) or 1.0
        nx, ny = -dy / length * half, dx / length * half
        corners = [(first[0] + nx, first[1] + ny), (second[0] + nx, second[1] + ny)]
        self.polygon([*corners, (second[0] - nx, second[1] - ny), (first[0] - nx, first[1] - ny)], colour)


def oval(x: float, y: float, wide: float, high: float, turn: float = 0.0, corners: int = 36) -> list[Point]:
    """The outline of an ellipse."""
    cos, sin = math.cos(turn), math.sin(turn)
    points = []
    for step in range(corners):
        angle = 2 * math.pi * step / corners
        across, up = wide * math.cos(angle), high * math.sin(angle)
        points.append((x + across * cos - up * sin, y + across * sin + up * cos))
    return points


def smooth(points: Sequence[Point], pieces: int = 8) -> list[Point]:
    """A closed Catmull–Rom curve through the points, `pieces` segments between two of them."""
    n, curve = len(points), []
    for i in range(n):
        a, b, c, d = (points[(i + k - 1) % n] for k in range(4))
        for step in range(pieces):
            t = step / pieces
            curve.append((_spline(a[0], b[0], c[0], d[0], t), _spline(a[1], b[1], c[1], d[1], t)))
    return curve


def _spline(a: float, b: float, c: float, d: float, t: float) -> float:
    return 0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)
