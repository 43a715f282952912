"""Make the small base that ships with the package: a Stable-Diffusion pipeline trained from scratch on drawn scenes.

    python -m examples.text_to_image.make_base                       about an hour on one core
    python -m examples.text_to_image.make_base --minutes 180         better: the rate follows the clock
    python -m examples.text_to_image.make_base --to runs/my_base     somewhere else than into the package

Stages: draw scenes, train the autoencoder, compute latents, train U-Net and text encoder, refine the decoder. Each
leaves its result in --work and is skipped where that is there, so a run that was stopped goes on where it was. The
pipeline is written whenever a checkpoint is, so an early one can be used while training goes on.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor
from transformers import CLIPTokenizer

from .base.autoencoder import encode_all, train_autoencoder, whiten
from .base.denoiser import Schedule, State, averaged, new_state, train_denoiser
from .base.packing import pack, size
from .base.pool import draw_pool, open_pool
from .base.vocabulary import make_tokenizer
from .draw_styles import training_scene
from .scenes import draw
from .scenes.captions import all_wordings
from .scenes.styles import STYLES

ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "src" / "loraloom" / "imaging" / "scenes"
RESTYLED = 60
"""Restyled scenes in each style that the decoder sees at the end."""


def main() -> None:
    """Read the command line and run the stages that are still to be run."""
    options = _options()
    torch.set_num_threads(options.threads)
    work: Path = options.work
    draw_pool(work / "pool", options.pictures)
    autoencoder = make_autoencoder(work, options.autoencoder_minutes)
    latents = make_latents(work, autoencoder)
    tokenizer = make_tokenizer(all_wordings(), work / "tokenizer")
    schedule = Schedule(options.minutes, options.rate, options.batch, options.steps)
    state = make_denoiser(work, options.to, autoencoder, tokenizer, latents, schedule)
    refined = refine_decoder(work, autoencoder, options.decoder_minutes)
    pack(options.to, refined, *averaged(state, tokenizer), tokenizer)
    _say(f"{options.to}: {size(options.to) / 1e6:.1f} MB")


def make_autoencoder(work: Path, minutes: float) -> AutoencoderKL:
    """The trained autoencoder, its latents white; kept in `work`/vae."""
    folder = work / "vae"
    if (folder / "config.json").exists():
        return AutoencoderKL.from_pretrained(folder).eval()
    pictures = open_pool(work / "pool").pictures
    autoencoder = train_autoencoder(pictures, minutes=minutes, say=_say)
    whiten(autoencoder, pictures[:600])
    autoencoder.save_pretrained(folder)
    return autoencoder


def make_latents(work: Path, autoencoder: AutoencoderKL) -> Tensor:
    """Latents (N, 4, 16, 16) of the pool's pictures; kept in `work`/latents.pt."""
    path = work / "latents.pt"
    if not path.exists():
        torch.save(encode_all(autoencoder, open_pool(work / "pool").pictures), path)
    return torch.load(path, weights_only=True)


def make_denoiser(
    work: Path, to: Path, autoencoder: AutoencoderKL, tokenizer: CLIPTokenizer, latents: Tensor, schedule: Schedule
) -> State:
    """Train U-Net and text encoder, going on from `work`/state.pt; pack the pipeline into `to` at every checkpoint."""
    state = new_state(tokenizer, schedule.rate)
    if (work / "state.pt").exists():
        state.load(work / "state.pt")

    def checkpoint(state: State) -> None:
        state.save(work / "state.pt")
        unet, encoder = averaged(state, tokenizer)
        pack(to, autoencoder, unet, encoder, tokenizer)
        _say(f"{to}: {size(to) / 1e6:.1f} MB at step {state.step}")

    pool = open_pool(work / "pool")
    train_denoiser(
        state, tokenizer, latents, lambda chosen, rng: [pool.caption(index, rng) for index in chosen], schedule,
        say=_say, checkpoint=checkpoint,
    )  # fmt: skip
    checkpoint(state)
    return state


def refine_decoder(work: Path, autoencoder: AutoencoderKL, minutes: float) -> AutoencoderKL:
    """The autoencoder with a sharper decoder, restyled scenes among its pictures; kept in `work`/vae_refined.

    The encoder stays, and with it the latents that the U-Net knows.
    """
    folder = work / "vae_refined"
    if not (folder / "config.json").exists():
        rng = random.Random(9)
        restyled = [style.restyle(draw(training_scene(rng))) for style in STYLES.values() for _ in range(RESTYLED)]
        again = np.stack([np.asarray(picture) for picture in restyled]).repeat(12, axis=0)
        pictures = np.concatenate([open_pool(work / "pool").pictures, again])
        refined = train_autoencoder(
            pictures, minutes=minutes, rate=1.5e-3, start=autoencoder, decoder_only=True, say=_say
        )
        refined.save_pretrained(folder)
    return AutoencoderKL.from_pretrained(folder).eval()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Make the small text-to-image base from scenes that are drawn here.")
    parser.add_argument("--to", type=Path, default=SHIPPED, help="folder for the pipeline (default: the package's own)")
    parser.add_argument(
        "--work", type=Path, default=ROOT / "runs" / "scenes_base", help="folder for what is kept between"
    )
    parser.add_argument("--pictures", type=int, default=20000, help="scenes to draw (default: 20000)")
    parser.add_argument("--autoencoder-minutes", type=float, default=16, help="default: 16")
    parser.add_argument("--decoder-minutes", type=float, default=8, help="for the decoder at the end (default: 8)")
    parser.add_argument("--minutes", type=float, default=45, help="for U-Net and text encoder (default: 45)")
    parser.add_argument("--steps", type=int, help="stop them after so many steps instead")
    parser.add_argument("--batch", type=int, default=32, help="pictures per step (default: 32)")
    parser.add_argument("--rate", type=float, default=1e-3, help="learning rate at its highest (default: 0.001)")
    parser.add_argument("--threads", type=int, default=1, help="cores to compute on (default: 1)")
    return parser.parse_args()


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    main()
