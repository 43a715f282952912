"""Bases, embeddings and prompts that the tests of conditioning share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tests.imaging.conditioning import tiny
from torch import Tensor

from loraloom.tasks.diffusion import Diffusion

MAKERS = {
    "sd1": tiny.make_sd,
    "sd2": lambda: tiny.make_sd("sd2"),
    "sdxl": tiny.make_sdxl,
    "flux": tiny.make_flux,
    "sd3": tiny.make_sd3,
}
_made: dict[str, Diffusion] = {}


@pytest.fixture
def base() -> Callable[[str], Diffusion]:
    """A tiny base by its family, made once for all tests."""

    def find(kind: str) -> Diffusion:
        if kind not in _made:
            _made[kind] = MAKERS[kind]()
        return _made[kind]

    return find


@pytest.fixture
def embed(tmp_path: Path) -> Callable[..., dict[str, Tensor]]:
    """Write a random embedding file: embed("name", n, width), or with two widths for SDXL; the tensors come back."""
    folder = tmp_path / "embeddings"
    folder.mkdir()

    def write(name: str, count: int, *widths: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(count * 1000 + len(name))
        keys = ["emb_params"] if len(widths) == 1 else ["clip_l", "clip_g"]
        tensors = {key: torch.randn(count, width, generator=generator) for key, width in zip(keys, widths, strict=True)}
        save_file(tensors, folder / f"{name}.safetensors")
        return tensors

    return write


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where `embed` writes."""
    return tmp_path / "embeddings"
