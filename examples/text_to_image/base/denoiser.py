"""Train the base's U-Net and text encoder together, from scratch, on latents that were computed once."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

WIDTH = 128
"""Features of the text encoder's hidden states."""
LEVELS = (32, 64, 128)
"""Channels of the U-Net at 16 × 16, 8 × 8 and 4 × 4 latents; the second and the innermost look at the text."""
EMA = 0.998
DROPPED = 0.1
"""The share of captions that training leaves empty: what guidance is measured from."""
SNR_LIMIT = 5.0
SHORT = 28
"""Tokens per caption while training is young; its last part sees all 77 as every user of the base does."""


def new_unet() -> UNet2DConditionModel:
    """The untrained U-Net, about 4.2 million parameters."""
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        block_out_channels=LEVELS,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def new_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """The untrained text encoder, three layers."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=2 * WIDTH,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=77,
            projection_dim=WIDTH,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def new_scheduler() -> DDIMScheduler:
    """v-prediction over a schedule that ends in all but pure noise.

    Stable Diffusion's own schedule leaves 7 % of the signal at its end; over 16 × 16 latents that gives a picture's
    mean brightness away, which sampling from pure noise then lacks, and nights come out grey. 0.8 % does not.
    """
    return DDIMScheduler(
        beta_start=0.00085, beta_end=0.024, beta_schedule="scaled_linear", prediction_type="v_prediction",
        clip_sample=False, set_alpha_to_one=False, steps_offset=1, timestep_spacing="trailing",
    )  # fmt: skip


@dataclass
class State:
    """What training changes: the two networks, their moving averages, the optimiser's moments, and how far it is."""

    unet: UNet2DConditionModel
    text_encoder: CLIPTextModel
    averages: list[Tensor]
    optimiser: torch.optim.Optimizer
    step: int = 0
    seconds: float = 0.0

    def trained(self) -> list[nn.Parameter]:
        """All parameters, in the averages' order."""
        return [*self.unet.parameters(), *self.text_encoder.parameters()]

    def save(self, path: Path) -> None:
        """Everything needed to go on."""
        whole = {
            "unet": self.unet.state_dict(), "text_encoder": self.text_encoder.state_dict(), "averages": self.averages,
            "optimiser": self.optimiser.state_dict(), "step": self.step, "seconds": self.seconds,
        }  # fmt: skip
        torch.save(whole, path.with_suffix(".part"))
        path.with_suffix(".part").rename(path)

    def load(self, path: Path) -> None:
        """Go on from a saved state."""
        whole = torch.load(path, weights_only=True)
        self.unet.load_state_dict(whole["unet"])
        self.text_encoder.load_state_dict(whole["text_encoder"])
        self.optimiser.load_state_dict(whole["optimiser"])
        self.averages = whole["averages"]
        self.step, self.seconds = whole["step"], whole["seconds"]


def new_state(tokenizer: CLIPTokenizer, rate: float, seed: int = 0) -> State:
    """Untrained networks and their optimiser."""
    torch.manual_seed(seed)
    unet = new_unet().to(memory_format=torch.channels_last)
    encoder = new_text_encoder(tokenizer)
    weights = [*unet.parameters(), *encoder.parameters()]
    optimiser = torch.optim.AdamW(weights, lr=rate, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    return State(unet, encoder, [weight.detach().clone() for weight in weights], optimiser)


@dataclass(frozen=True)
class Schedule:
    """How long to train and how fast; the rate follows the clock, so that it ends low whenever that is."""

    minutes: float
    rate: float = 1e-3
    batch: int = 32
    steps: int | None = None
    """Stop after so many steps, whatever the clock says."""

    def done(self, state: State) -> float:
        """The share of the training that is behind us, 0–1."""
        by_clock = state.seconds / (60 * self.minutes)
        return min(1.0, state.step / self.steps if self.steps else by_clock)

    def rate_at(self, state: State) -> float:
        """Linear warm-up over 150 steps, then a cosine down to 2 %."""
        return self.rate * min(1.0, (state.step + 1) / 150) * (0.02 + 0.49 * (1 + math.cos(math.pi * self.done(state))))


Captions = Callable[[Sequence[int], random.Random], list[str]]
"""Captions for pictures by their indices."""


def train_denoiser(
    state: State, tokenizer: CLIPTokenizer, latents: Tensor, captions: Captions, schedule: Schedule, *,
    say: Callable[[str], None] = print, checkpoint: Callable[[State], Any] | None = None, every: float = 240.0,
) -> None:  # fmt: skip
    """Train until the schedule ends, on latents (N, 4, H, W) already scaled; `checkpoint` is called `every` s."""
    rng = random.Random(state.step + 1)
    noise = torch.Generator().manual_seed(state.step + 1)
    alphas = new_scheduler().alphas_cumprod
    saved, shown, mean = state.seconds, state.seconds, 0.0
    while schedule.done(state) < 1:
        begun = time.monotonic()
        for group in state.optimiser.param_groups:
            group["lr"] = schedule.rate_at(state)
        chosen = rng.sample(range(len(latents)), schedule.batch)
        tokens = _tokens(tokenizer, captions(chosen, rng), rng, SHORT if schedule.done(state) < 0.7 else 77)
        loss = _loss(state, latents[chosen], tokens, alphas, noise)
        _step(state, loss)
        mean = 0.98 * mean + 0.02 * loss.item() if mean else loss.item()
        state.seconds += time.monotonic() - begun
        if state.seconds - shown > 30:
            shown = state.seconds
            say(f"denoiser {state.step} {schedule.done(state):.0%} loss {mean:.4f} {shown / state.step:.3f} s/step")
        if checkpoint is not None and state.seconds - saved > every:
            saved = state.seconds
            checkpoint(state)


def _tokens(tokenizer: CLIPTokenizer, texts: list[str], rng: random.Random, length: int) -> Tensor:
    texts = ["" if rng.random() < DROPPED else text for text in texts]
    return tokenizer(texts, padding="max_length", truncation=True, max_length=length, return_tensors="pt").input_ids


def _loss(state: State, latents: Tensor, tokens: Tensor, alphas: Tensor, generator: torch.Generator) -> Tensor:
    """Min-SNR-weighted error of the predicted velocity (Hang et al. 2023, for v: min(SNR, γ) / (SNR + 1))."""
    count = len(latents)
    # One timestep from each of `count` equal stretches: the loss wavers less than with independent draws.
    times = ((torch.arange(count) + torch.rand(count, generator=generator)) / count * len(alphas)).long()
    noise = torch.randn(latents.shape, generator=generator)
    signal = alphas[times].sqrt()[:, None, None, None]
    spread = (1 - alphas[times]).sqrt()[:, None, None, None]
    noisy = (signal * latents + spread * noise).contiguous(memory_format=torch.channels_last)
    wanted = signal * noise - spread * latents
    hidden = state.text_encoder(tokens).last_hidden_state
    made = state.unet(noisy, times, hidden).sample
    ratio = alphas[times] / (1 - alphas[times])
    weight = ratio.clamp(max=SNR_LIMIT) / (ratio + 1)
    return (weight * (made - wanted).square().mean(dim=(1, 2, 3))).mean()


def _step(state: State, loss: Tensor) -> None:
    trained = state.trained()
    state.optimiser.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(trained, 1.0)
    state.optimiser.step()
    state.step += 1
    decay = min(EMA, (1 + state.step) / (10 + state.step))
    torch._foreach_lerp_(state.averages, [weight.detach() for weight in trained], 1 - decay)


def averaged(state: State, tokenizer: CLIPTokenizer) -> tuple[UNet2DConditionModel, CLIPTextModel]:
    """Copies of the two networks with the moving averages for weights."""
    unet, encoder = new_unet(), new_text_encoder(tokenizer)
    with torch.no_grad():
        for weight, average in zip([*unet.parameters(), *encoder.parameters()], state.averages, strict=True):
            weight.copy_(average)
    return unet.eval(), encoder.eval()
