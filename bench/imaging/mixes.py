"""What does each way of mixing keep of the pictures? Three styles made one adapter, beside the three turned by weight.

    python -m bench.imaging.mixes                    the table into docs/imaging.md, a sheet into runs/
    python -m bench.imaging.mixes --prompts 10 --dry

Same prompts, same noise. The three adapters acting together are the reference; every mix is one file in their place.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from examples.text_to_image.scenes import Scene, held_out_scenes, plain_caption
from examples.text_to_image.scenes.styles import STYLES
from PIL import Image

from loraloom import formats
from loraloom.compose.mix import MixJob, mix
from loraloom.compose.weights import Weighted

from .checking import the_checker
from .painting import open_base, paint, sheet
from .report import put, share, table
from .styles import GUIDANCE, ROOT, SHIPPED, TOGETHER, Easel

WAYS: tuple[tuple[str, int | None, float | None], ...] = (
    ("exact", None, None),
    ("svd", 16, None),
    ("svd", 8, None),
    ("svd", 4, None),
    ("svd", 2, None),
    ("ties", 16, 0.2),
    ("ties", 16, 0.5),
    ("dare", 16, 0.5),
    ("magnitude-prune", 16, 0.5),
    ("magnitude-prune", 16, 0.2),
)
"""How, rank, density."""


@dataclass(frozen=True)
class Mixed:
    """One adapter made of the three, and its pictures."""

    name: str
    rank: int
    size: int
    """Bytes of the file."""
    error: float
    """‖result − exact sum‖ / ‖exact sum‖."""
    pictures: list[Image.Image]


def mixed(base: str, way: tuple[str, int | None, float | None], scenes: Sequence[Scene], folder: Path) -> Mixed:
    """Make one mix, and paint with it alone."""
    how, rank, density = way
    file = folder / f"{how}-{rank}-{density}.safetensors"
    styles = [Weighted(SHIPPED / f"{style}.safetensors", TOGETHER[style]) for style in STYLES]
    report = mix(MixJob(styles, file, how, rank, density))
    diffusion = open_base(base)
    formats.load_any(diffusion.parts, file, name="mix").activate({"mix": 1.0})
    prompts = [plain_caption(scene) for scene in scenes]
    pictures = paint(diffusion, prompts, range(len(scenes)), guidance=GUIDANCE)
    name = how if density is None else f"{how}, density {density:g}"
    return Mixed(name, max(site.rank for site in report.sites), file.stat().st_size, report.error, pictures)


def distance(first: Sequence[Image.Image], second: Sequence[Image.Image]) -> float:
    """Root mean square difference of the pixels of two rows of pictures, of 255."""
    pairs = [(np.asarray(a, float), np.asarray(b, float)) for a, b in zip(first, second, strict=True)]
    return float(np.sqrt(np.mean([np.mean((a - b) ** 2) for a, b in pairs])))


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description="Mix the three styles in every way and look at the pictures.")
    parser.add_argument("--base", default="scenes", help="the base (default: scenes)")
    parser.add_argument("--prompts", type=int, default=40, help="held-out prompts (default: 40)")
    parser.add_argument("--dry", action="store_true", help="print only")
    options = parser.parse_args()
    torch.set_num_threads(1)
    scenes, easel = held_out_scenes(options.prompts), Easel(options.base, SHIPPED)
    reference = easel.paint(scenes, TOGETHER)
    with tempfile.TemporaryDirectory() as folder:
        found = [mixed(options.base, way, scenes, Path(folder)) for way in WAYS]
    first = [reference, easel.paint(scenes, {})]
    sheet([picture for row in [*first, *(m.pictures for m in found)] for picture in row[:10]], 10, _SHEET)
    text = _report(found, reference, first[1], scenes)
    if options.dry:
        print(text)
    else:
        put("scenes-mixes", text)


_SHEET = ROOT / "runs" / "mixes.png"


def _report(
    found: Sequence[Mixed], reference: list[Image.Image], without: list[Image.Image], scenes: Sequence[Scene]
) -> str:
    head = ["made of the three", "rank", "file", "error of ΔW", "pixels", *STYLES, "subject found"]
    rows = [
        [m.name, str(m.rank), f"{m.size / 1024:.0f} KiB", f"{m.error:.1%}", *_looks(m.pictures, reference, scenes)]
        for m in found
    ]
    together = ["the three, turned by weight", "–", "–", "–", *_looks(reference, reference, scenes)]
    none = ["no adapter", "–", "–", "–", *_looks(without, reference, scenes)]
    return (
        f"One adapter in place of {', '.join(f'{style} {TOGETHER[style]:g}' for style in STYLES)}; {len(scenes)} "
        "held-out prompts, the same noise. Pixels: root mean square difference from the pictures of the three, of "
        f"255; then each style's own measure:\n\n{table(head, [together, *rows, none])}"
    )


def _looks(pictures: list[Image.Image], reference: list[Image.Image], scenes: Sequence[Scene]) -> list[str]:
    seen = the_checker().look(pictures)
    subjects = sum(subject == scene.subject for (_, subject), scene in zip(seen, scenes, strict=True))
    measures = [f"{np.mean([style.measure(picture) for picture in pictures]):.3f}" for style in STYLES.values()]
    return [f"{distance(pictures, reference):.1f}", *measures, share(subjects, len(scenes))]


if __name__ == "__main__":
    main()
