"""The checker: says which subject, in which colour, a 64 × 64 picture shows. It knows nothing of how scenes are drawn.

A small convolutional network of its own, trained on labelled pictures that are blurred, shifted, recoloured a little
and given noise, so that it judges shapes and colours and no single pixel. What it says of a picture that it was not
trained on is what the measures of the base and of the styles count.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "white", "black")
SUBJECTS = ("house", "tree", "boat", "rocket", "cat", "flower", "car", "fish", "bird", "balloon")


class Checker(nn.Module):
    """Four strided convolutions and two answers, each from the same features."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 24, 48, 96, 128)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 3, stride=2, padding=1), nn.GroupNorm(8, b), nn.ReLU())
            for a, b in itertools.pairwise(widths)
        )
        self.subject = nn.Linear(128 * 16, len(SUBJECTS))
        self.colour = nn.Linear(128 * 16, len(COLOURS))

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, subjects) and (B, colours) of pictures (B, 3, 64, 64) in 0–1."""
        hidden = pictures * 2 - 1
        for layer in self.layers:
            hidden = layer(hidden)
        hidden = F.dropout(hidden.flatten(1), 0.2, self.training)
        return self.subject(hidden), self.colour(hidden)

    @torch.no_grad()
    def look(self, pictures: Sequence[Image.Image]) -> list[tuple[str, str]]:
        """(colour, subject) that each picture shows; larger pictures are looked at as 64 × 64."""
        self.eval()
        found = []
        for start in range(0, len(pictures), 64):
            subjects, colours = self(as_tensor(pictures[start : start + 64]))
            pairs = zip(colours.argmax(1).tolist(), subjects.argmax(1).tolist(), strict=True)
            found += [(COLOURS[colour], SUBJECTS[subject]) for colour, subject in pairs]
        return found


def as_tensor(pictures: Sequence[Image.Image]) -> Tensor:
    """(B, 3, 64, 64) in 0–1."""
    made = [np.asarray(picture.convert("RGB").resize((64, 64)), dtype=np.float32) / 255 for picture in pictures]
    return torch.from_numpy(np.stack(made)).permute(0, 3, 1, 2)


def train_checker(
    pictures: np.ndarray, labels: Sequence[tuple[str, str]], *, epochs: int = 8, batch: int = 64,
    colour_counts: Sequence[bool] | None = None, seed: int = 0, say: Callable[[str], None] = print,
) -> Checker:  # fmt: skip
    """Train on pictures (N, 64, 64, 3) as bytes with (colour, subject) labels.

    `colour_counts` says of each picture whether its colour is to be learnt: a pencil drawing has none.
    """
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    checker = Checker().train()
    whole = torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous()
    colours = torch.tensor([COLOURS.index(colour) for colour, _ in labels])
    subjects = torch.tensor([SUBJECTS.index(subject) for _, subject in labels])
    counts = torch.ones(len(labels)) if colour_counts is None else torch.tensor(colour_counts).float()
    optimiser = torch.optim.AdamW(checker.parameters(), lr=2e-3, weight_decay=0.02)
    steps = epochs * (len(labels) // batch)
    rates = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=steps)
    for step in range(steps):
        rows = torch.randint(len(labels), (batch,), generator=generator)
        subject, colour = checker(_worn(whole[rows].float() / 255, generator))
        apart = F.cross_entropy(colour, colours[rows], reduction="none") * counts[rows]
        loss = F.cross_entropy(subject, subjects[rows], label_smoothing=0.02) + apart.mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        rates.step()
        if step % 100 == 0:
            say(f"checker {step}/{steps} loss {loss.item():.3f}")
    return checker.eval()


def _worn(batch: Tensor, generator: torch.Generator) -> Tensor:
    """The batch as a poor printer would show it: mirrored, shifted, tinted, blurred or grainy."""

    def each(low: float, high: float, channels: int = 1) -> Tensor:
        return low + (high - low) * torch.rand(len(batch), channels, 1, 1, generator=generator)

    batch = torch.where(each(0, 1) < 0.5, batch.flip(-1), batch)
    across, down = torch.randint(-4, 5, (2,), generator=generator).tolist()
    padded = F.pad(batch, (4, 4, 4, 4), mode="replicate")
    batch = padded[..., 4 + down : 68 + down, 4 + across : 68 + across]
    soft = F.avg_pool2d(F.pad(batch, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    batch = batch + (soft - batch) * each(0, 1) * (each(0, 1) < 0.6)
    batch = (batch - 0.5) * each(0.85, 1.1) + 0.5 + each(-0.06, 0.06) + each(-0.03, 0.03, 3)
    grain = torch.randn(batch.shape, generator=generator) * each(0, 0.06)
    return (batch + grain).clamp(0, 1)


def save_checker(checker: Checker, path: Path) -> None:
    """Write its weights."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in checker.state_dict().items()}, path)


def open_checker(path: Path) -> Checker:
    """Read its weights."""
    checker = Checker()
    checker.load_state_dict(load_file(path))
    return checker.eval()
