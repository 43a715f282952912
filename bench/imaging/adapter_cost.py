"""What three adapters cost per picture, against the base alone, turn by turn in one process.

    python -m bench.imaging.adapter_cost [--rounds 7]     table into docs/imaging.md

Measured in processor seconds, so that what else the machine does counts little; ratios are of neighbours in time, and
their median is told. PEFT's layers, as diffusers loads them, run through the same loop with the same weights.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from loraloom.adapters import attach
from loraloom.formats import save_kohya
from loraloom.imaging.conditioning import Conditioner
from loraloom.imaging.painter import Painter
from loraloom.imaging.prompt import parse_prompt
from loraloom.imaging.recipe import AdapterUse, Recipe
from loraloom.imaging.samplers import SAMPLERS
from loraloom.imaging.sampling import Denoising
from loraloom.imaging.shelf import AdapterShelf
from loraloom.tasks.diffusion import Diffusion, load_diffusion

from .report import put, table

NAMES = ("one", "two", "three")
RANK = 8
TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "q_proj", "k_proj", "v_proj", "out_proj")
PROMPT, NEGATIVE = "a red house by the sea", "blue"
MOST = 1.08
"""What a picture with three adapters may cost, over the base's."""


def narrow_sd15() -> Diffusion:
    """The U-Net of SD 1.5, block by block, at a fifth of its width; pictures of 256 × 256."""
    from tests.imaging import tiny

    pipeline = tiny.sd1(
        block_out_channels=(64, 128, 256, 256), attention_head_dim=8, norm_num_groups=32, sample_size=32
    )
    return Diffusion.of(pipeline, name="narrow-sd1.5")


def bases() -> dict[str, tuple[Callable[[], Diffusion], int]]:
    """Name → how to load it, and sampling steps of a picture."""
    return {
        "small base, 64 × 64": (lambda: load_diffusion("scenes"), 20),
        "SD 1.5 at a fifth, 256 × 256": (narrow_sd15, 4),
    }


def write_adapters(diffusion: Diffusion, folder: Path) -> None:
    """Three random adapters as kohya files."""
    for number, name in enumerate(NAMES):
        adapters = attach(diffusion.parts, name=name, rank=RANK, targets=TARGETS)
        generator = torch.Generator().manual_seed(number)
        for parameter in adapters.parameters(name):
            parameter.data.normal_(0, 0.02, generator=generator)
        save_kohya(adapters, name, folder / f"{name}.safetensors", kind=diffusion.kind)
    adapters.detach()


def measure(load: Callable[[], Diffusion], steps: int, rounds: int) -> dict[str, float]:
    """Time per picture over the base's, by what is done; and the base's own seconds."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_adapters(load(), folder)
        sides = {**_ours(load, folder, steps), "PEFT's layers, weights fixed": _peft(load, folder, steps)}
        for _ in range(2):  # loads, folds and encodes
            for paint in sides.values():
                paint()
        times: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(rounds):
            for name, paint in sides.items():
                start = time.process_time()
                paint()
                times[name].append(time.process_time() - start)
    base = times.pop("base")
    found = {name: statistics.median(t / b for t, b in zip(own, base, strict=True)) for name, own in times.items()}
    return {"base, seconds": statistics.median(base), **found}


def _ours(load: Callable[[], Diffusion], folder: Path, steps: int) -> dict[str, Callable[[], Any]]:
    painters = {name: Painter(load(), adapters=AdapterShelf(folder)) for name in ("base", "fixed", "turned", "layers")}
    painters["layers"].mixer.fold = False
    turns = _turns()

    def recipe(painter: Painter, weight: float | None) -> Recipe:
        uses = () if weight is None else tuple(AdapterUse(name, weight, weight) for name in NAMES)
        return painter.recipe(prompt=PROMPT, negative=NEGATIVE, steps=steps, seed=1, adapters=uses)

    return {
        "base": lambda: painters["base"].paint(recipe(painters["base"], None)),
        "three adapters, weights fixed": lambda: painters["fixed"].paint(recipe(painters["fixed"], 0.5)),
        "three adapters, each turned before every picture": lambda: painters["turned"].paint(
            recipe(painters["turned"], next(turns))
        ),
        "three adapters as layers, not folded": lambda: painters["layers"].paint(recipe(painters["layers"], 0.5)),
    }


def _turns() -> Iterator[float]:
    while True:
        yield from (0.3, 0.5, 0.7)


def _peft(load: Callable[[], Diffusion], folder: Path, steps: int) -> Callable[[], Any]:
    """The same loop over the layers that diffusers and PEFT put in."""
    diffusion = load()
    pipeline = diffusion.pipeline
    for name in NAMES:
        pipeline.load_lora_weights(str(folder), weight_name=f"{name}.safetensors", adapter_name=name)
    pipeline.set_adapters(list(NAMES), [0.5] * len(NAMES))
    painter = Painter(diffusion)
    recipe = painter.recipe(steps=steps)
    conditioner = Conditioner(diffusion)
    size = (recipe.width, recipe.height)
    texts = [
        conditioner.conditionings(parse_prompt(text, steps=steps), steps, size=size) for text in (PROMPT, NEGATIVE)
    ]
    plan = Denoising(diffusion, SAMPLERS[recipe.sampler], steps, texts[0], texts[1], recipe.guidance)
    return lambda: plan.picture(1, size)


def main(words: list[str] | None = None) -> int:
    """Print the figures and put them into docs/imaging.md; 1 where three adapters cost too much."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--dry", action="store_true", help="print only")
    options = parser.parse_args(words)
    worst, rows = 0.0, []
    for name, (load, steps) in bases().items():
        found = measure(load, steps, options.rounds)
        seconds = found.pop("base, seconds")
        rows += [[name, f"{seconds:.2f} s", what, f"{ratio:.3f} ×"] for what, ratio in found.items()]
        worst = max(worst, found["three adapters, weights fixed"])
    text = (
        f"One thread, processor time, medians of {options.rounds} rounds in turns. Weights fixed: at most "
        f"{worst:.3f} ×, {MOST} × is allowed.\n\n"
        + table(["base", "a picture without adapters", "with", "times that"], rows)
    )
    if options.dry:
        print(text)
    else:
        put("adapter-cost", text)
    return int(worst > MOST)


if __name__ == "__main__":
    sys.exit(main())
