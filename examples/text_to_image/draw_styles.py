"""Draw the restyled scenes that the style adapters learn from: pictures with captions in a metadata.jsonl.

    python -m examples.text_to_image.draw_styles runs/styles                  240 scenes in each of the three styles
    python -m examples.text_to_image.draw_styles runs/styles --style neon --count 60

Captions say what the scene shows and nothing of the style, so that the style comes with the adapter's weight alone.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

from .scenes import Scene, caption, draw, is_held_out, random_scene
from .scenes.styles import STYLES


def draw_style(folder: Path, style: str, count: int, *, seed: int = 7) -> None:
    """Write `count` restyled scenes, none of a held-out combination, and their captions into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(f"{style} {seed}")
    rows = []
    for index in range(count):
        scene = training_scene(rng)
        name = f"{index:04d}.png"
        STYLES[style].restyle(draw(scene)).save(folder / name)
        rows.append({"file_name": name, "text": caption(scene, rng), "subject": scene.subject, "colour": scene.colour})
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "metadata.jsonl").write_text(lines, encoding="utf-8")


def training_scene(rng: random.Random) -> Scene:
    """A scene of a combination that training may see."""
    scene = random_scene(rng)
    while is_held_out(scene.colour, scene.subject, scene.place):
        scene = random_scene(rng)
    return scene


def main() -> None:
    """Read the command line and draw."""
    parser = argparse.ArgumentParser(description="Draw restyled scenes with captions.")
    parser.add_argument("folder", type=Path, help="where a folder for each style goes")
    parser.add_argument("--style", choices=list(STYLES), action="append", help="this style alone (repeatable)")
    parser.add_argument("--count", type=int, default=240, help="scenes in each style (default: 240)")
    options = parser.parse_args()
    for style in options.style or STYLES:
        draw_style(options.folder / style, style, options.count)


if __name__ == "__main__":
    main()
