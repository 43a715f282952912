"""Small adapters for the tests of resizing and comparing, and their updates as dense float64 matrices."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from loraloom.formats import read_any
from loraloom.formats.updates import Update, as_peft, updates_of
from loraloom.formats.writing import Target, write_adapter

SITES = {
    "model.layers.0.attn.q": (12, 10),
    "model.layers.0.mlp.up": (20, 12),
    "model.layers.1.attn.q": (12, 10),
    "model.layers.1.mlp.up": (20, 12),
}


def noise(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def updates(seed: int, rank: int = 4, sites: Mapping[str, tuple[int, ...]] = SITES, alpha: float = 8.0) -> list[Update]:
    """Random updates with falling singular values; a shape of four is a convolution."""
    made = []
    for index, (path, (out, *inside)) in enumerate(sites.items()):
        fall = 0.6 ** torch.arange(rank)
        ones = (1,) * (len(inside) - 1)
        b = noise(out, rank, seed=100 * seed + index) * fall
        made.append(Update(path, noise(rank, *inside, seed=7 + 100 * seed + index), b.reshape(out, rank, *ones), alpha))
    return made


def folder(path: Path, made: list[Update]) -> Path:
    """A PEFT folder."""
    write_adapter(as_peft(made, path, {}), Target(path, "peft"))
    return path


def dense(path: Path) -> dict[str, Tensor]:
    """Path → ΔW as a matrix."""
    return {name: update.delta().flatten(1) for name, update in updates_of(read_any(path))[0].items()}
