"""Do the style adapters follow their weight? Each turned from 0 to 1 in eleven steps, measured on every picture.

    python -m bench.imaging.styles                    tables into docs/imaging.md, sheets into runs/
    python -m bench.imaging.styles --prompts 10 --dry

Per style: the mean of its own measure at each weight, Spearman's rank correlation between weight and measure, and how
often the checker still finds the asked subject. Then the three together, at tuned weights, in one picture.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from examples.text_to_image.scenes import Scene, held_out_scenes, plain_caption
from examples.text_to_image.scenes.styles import STYLES
from PIL import Image

from loraloom import formats
from loraloom.adapters import AdapterSet
from loraloom.tasks.diffusion.base import Diffusion

from .checking import the_checker
from .painting import open_base, paint, sheet
from .report import put, share, table

ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "src" / "loraloom" / "imaging" / "scenes" / "styles"
WEIGHTS = tuple(step / 10 for step in range(11))
TOGETHER: Mapping[str, float] = {"pencil": 0.3, "neon": 0.6, "glass": 0.3}
"""Weights at which all three show in one picture: leaving any one out lowers that one's own measure."""
GUIDANCE = 4.0


@dataclass(frozen=True)
class Turned:
    """One style at one weight: means over the prompts."""

    weight: float
    measure: float
    subjects: int
    """In how many pictures the asked subject was found."""


class Easel:
    """The base with the three adapters attached, all of weight 0 until asked for."""

    def __init__(self, base: str, folder: Path) -> None:
        self.diffusion: Diffusion = open_base(base)
        self.adapters: AdapterSet | None = None
        for style in STYLES:
            self.adapters = formats.load_any(self.diffusion.parts, folder / f"{style}.safetensors", name=style)

    def paint(self, scenes: Sequence[Scene], weights: Mapping[str, float]) -> list[Image.Image]:
        """The scenes' plain captions with these weights; the same noise whatever the weights are."""
        assert self.adapters is not None
        self.adapters.activate({style: weight for style, weight in weights.items() if weight})
        prompts = [plain_caption(scene) for scene in scenes]
        return paint(self.diffusion, prompts, range(len(scenes)), guidance=GUIDANCE)


def turn(easel: Easel, style: str, scenes: Sequence[Scene]) -> tuple[list[Turned], list[list[Image.Image]]]:
    """One style over all weights: what was measured, and the pictures, a list for each weight."""
    found, rows = [], []
    for weight in WEIGHTS:
        pictures = easel.paint(scenes, {style: weight})
        seen = the_checker().look(pictures)
        subjects = sum(subject == scene.subject for (_, subject), scene in zip(seen, scenes, strict=True))
        found.append(Turned(weight, float(np.mean([STYLES[style].measure(p) for p in pictures])), subjects))
        rows.append(pictures)
    return found, rows


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Spearman's ρ of two sequences without ties."""
    ranks = [np.argsort(np.argsort(values)).astype(float) for values in (first, second)]
    return float(np.corrcoef(*ranks)[0, 1])


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description="Turn each style adapter from 0 to 1 and measure.")
    parser.add_argument("--base", default="scenes", help="the base (default: scenes)")
    parser.add_argument("--styles", type=Path, default=SHIPPED, help="folder of the three adapters")
    parser.add_argument("--prompts", type=int, default=40, help="held-out prompts (default: 40)")
    parser.add_argument("--dry", action="store_true", help="print only")
    options = parser.parse_args()
    torch.set_num_threads(1)
    scenes, easel = held_out_scenes(options.prompts), Easel(options.base, options.styles)
    turned = {}
    for style in STYLES:
        turned[style], rows = turn(easel, style, scenes)
        sheet([picture for row in rows for picture in row[:10]], 10, ROOT / "runs" / f"style_{style}.png")
    text = "\n\n".join([_turned_table(turned, len(scenes)), _together(easel, scenes)])
    if options.dry:
        print(text)
    else:
        put("scenes-styles", text)


def _turned_table(turned: Mapping[str, Sequence[Turned]], prompts: int) -> str:
    head = ["style", *(f"{weight:g}" for weight in WEIGHTS), "ρ"]
    measures = [
        [style, *(f"{t.measure:.3f}" for t in row), f"{rank_correlation(WEIGHTS, [t.measure for t in row]):.3f}"]
        for style, row in turned.items()
    ]
    subjects = [[style, *(f"{100 * t.subjects / prompts:.0f} %" for t in row)] for style, row in turned.items()]
    return (
        f"Each style's own measure by its adapter's weight, mean over {prompts} held-out prompts, and its rank "
        f"correlation with the weight:\n\n{table(head, measures)}\n\n"
        f"Pictures in which the checker finds the asked subject:\n\n{table(head[:-1], subjects)}"
    )


def _together(easel: Easel, scenes: Sequence[Scene]) -> str:
    """Each style's measure in pictures of all three, and in the same pictures without that one."""
    pictures = easel.paint(scenes, TOGETHER)
    sheet(pictures, 10, ROOT / "runs" / "styles_together.png")
    seen = the_checker().look(pictures)
    subjects = sum(subject == scene.subject for (_, subject), scene in zip(seen, scenes, strict=True))
    rows = []
    for style, own in STYLES.items():
        others = easel.paint(scenes, {name: weight for name, weight in TOGETHER.items() if name != style})
        with_it, without = ([own.measure(picture) for picture in some] for some in (pictures, others))
        above = sum(a > b for a, b in zip(with_it, without, strict=True))
        means = f"{np.mean(without):.4f}", f"{np.mean(with_it):.4f}"
        rows.append([style, f"{TOGETHER[style]:g}", *means, share(above, len(scenes))])
    head = ["style", "weight", "its measure without it", "with it", "pictures where it is higher"]
    return (
        f"The three together; the subject is found in {share(subjects, len(scenes))}. Each style's measure with the "
        f"other two alone, and with all three:\n\n{table(head, rows)}"
    )


if __name__ == "__main__":
    main()
