"""Does the small base follow its prompts? 200 prompts of combinations that training never saw, judged by the checker.

python -m bench.imaging.scenes_base                      200 pictures, table into docs/imaging.md
python -m bench.imaging.scenes_base --count 60 --dry     a quick look: nothing is written but the sheet
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from examples.text_to_image.scenes import COLOURS, SUBJECTS, Scene, draw, held_out_scenes, plain_caption

from loraloom.tasks.diffusion.base import Diffusion

from .checking import the_checker
from .painting import open_base, paint, sheet
from .report import put, share, table

SHEET = Path(__file__).parents[2] / "runs" / "scenes_base.png"
WANTED = 0.85


@dataclass(frozen=True)
class Judged:
    """What was asked for, and what the checker saw."""

    scene: Scene
    colour: str
    subject: str

    @property
    def coloured(self) -> bool:
        """Whether the asked colour was found."""
        return self.colour == self.scene.colour

    @property
    def shaped(self) -> bool:
        """Whether the asked subject was found."""
        return self.subject == self.scene.subject

    @property
    def both(self) -> bool:
        """Whether both were."""
        return self.coloured and self.shaped


def judge(diffusion: Diffusion, scenes: Sequence[Scene], *, steps: int, guidance: float) -> tuple[list[Judged], float]:
    """Paint every scene's plain caption, have the checker look; also the seconds per picture."""
    begun = time.perf_counter()
    pictures = paint(diffusion, [plain_caption(scene) for scene in scenes], range(len(scenes)), steps=steps,
                     guidance=guidance)  # fmt: skip
    seconds = (time.perf_counter() - begun) / len(scenes)
    sheet(pictures, 20, SHEET)
    seen = the_checker().look(pictures)
    return [Judged(scene, *found) for scene, found in zip(scenes, seen, strict=True)], seconds


def of_drawings(scenes: Sequence[Scene]) -> list[Judged]:
    """What the checker says of the same scenes drawn: how far it can be trusted."""
    seen = the_checker().look([draw(scene).small() for scene in scenes])
    return [Judged(scene, *found) for scene, found in zip(scenes, seen, strict=True)]


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description="Judge the small base on held-out prompts.")
    parser.add_argument("--base", default="scenes", help="the base (default: scenes)")
    parser.add_argument("--count", type=int, default=200, help="prompts (default: 200)")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=4.0)
    parser.add_argument("--dry", action="store_true", help="print only")
    options = parser.parse_args()
    torch.set_num_threads(1)
    scenes = held_out_scenes(options.count)
    made, seconds = judge(open_base(options.base), scenes, steps=options.steps, guidance=options.guidance)
    text = report(made, of_drawings(scenes), seconds, options.steps, options.guidance)
    if options.dry:
        print(text)
    else:
        put("scenes-base", text)


def report(made: Sequence[Judged], drawn: Sequence[Judged], seconds: float, steps: int, guidance: float) -> str:
    """The tables, as Markdown."""
    rows = [
        [name, *_shares(judged)] for name, judged in (("the base's pictures", made), ("the same scenes drawn", drawn))
    ]
    whole = table(["200 prompts" if len(made) == 200 else f"{len(made)} prompts", "colour", "subject", "both"], rows)
    by_subject = [[name, *_shares([j for j in made if j.scene.subject == name])] for name in SUBJECTS]
    by_colour = [[name, *_shares([j for j in made if j.scene.colour == name])] for name in COLOURS]
    both = sum(judged.both for judged in made) / len(made)
    verdict = "reached" if both >= WANTED else "not reached"
    return (
        f"DPM++ 2M, {steps} steps, guidance {guidance:g}; {seconds:.2f} s per picture on one core in batches of 40. "
        f"{WANTED:.0%} colour and subject: {verdict} ({both:.1%}).\n\n{whole}\n\n"
        f"{table(['subject asked', 'colour', 'subject', 'both'], by_subject)}\n\n"
        f"{table(['colour asked', 'colour', 'subject', 'both'], by_colour)}"
    )


def _shares(judged: Sequence[Judged]) -> list[str]:
    counts = (sum(getattr(j, name) for j in judged) for name in ("coloured", "shaped", "both"))
    return [share(count, len(judged)) if judged else "–" for count in counts]


if __name__ == "__main__":
    main()
