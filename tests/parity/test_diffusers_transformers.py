"""Adapters of Flux and SD3, written here and loaded by diffusers: the transformer answers as it does with ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.imaging.conditioning.tiny import make_flux, make_sd3
from torch import Tensor

from loraloom.adapters import AdapterSet, attach
from loraloom.formats import load_any, save_diffusers

MAKERS = {"flux": make_flux, "sd3": make_sd3}
TARGETS = [
    "to_q",
    "to_k",
    "to_v",
    "to_out.0",
    "add_q_proj",
    "add_k_proj",
    "add_v_proj",
    "proj_mlp",
    "net.0.proj",
    "net.2",
]


def answer(kind: str, transformer: Any) -> Tensor:
    """What the transformer makes of fixed latents and texts."""
    generator = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    if kind == "flux":
        asked = {
            "hidden_states": normal(1, 16, 4),
            "encoder_hidden_states": normal(1, 5, 16),
            "pooled_projections": normal(1, 16),
            "timestep": torch.tensor([0.5]),
            "img_ids": torch.zeros(16, 3),
            "txt_ids": torch.zeros(5, 3),
        }
    else:
        asked = {
            "hidden_states": normal(1, 4, 8, 8),
            "encoder_hidden_states": normal(1, 5, 48),
            "pooled_projections": normal(1, 40),
            "timestep": torch.tensor([5.0]),
        }
    with torch.no_grad():
        return transformer(**asked).sample


def adapted(parts: Any) -> AdapterSet:
    """Random factors on every kind of layer of the transformer."""
    present = {path.partition(".")[2] for path, _ in parts.named_modules()}
    targets = [target for target in TARGETS if any(path.endswith(f".{target}") for path in present)]
    adapters = attach(parts, name="style", rank=3, alpha=2.0, targets=[f"transformer.*.{target}" for target in targets])
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in adapters.parameters("style"):
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return adapters


@pytest.mark.parametrize("kind", MAKERS)
def test_diffusers_answers_as_ours(kind: str, tmp_path: Path) -> None:
    """Kohya's names are not tried here: diffusers takes every Flux to be 3,072 wide when it reads them."""
    diffusion = MAKERS[kind]()
    transformer = diffusion.parts["transformer"]
    plain = answer(kind, transformer)
    adapters = adapted(diffusion.parts)
    wanted = answer(kind, transformer)
    file = tmp_path / "style.safetensors"
    save_diffusers(adapters, "style", file, kind=kind)
    adapters.detach()
    assert torch.equal(answer(kind, transformer), plain)

    diffusion.pipeline.load_lora_weights(str(tmp_path), weight_name=file.name)
    found = answer(kind, transformer)
    diffusion.pipeline.unload_lora_weights()
    assert float((found - wanted).norm() / wanted.norm()) < 1e-5
    assert float((plain - wanted).norm() / wanted.norm()) > 1e-2

    load_any(diffusion.parts, file, name="again")
    assert float((answer(kind, transformer) - wanted).norm() / wanted.norm()) < 1e-5
