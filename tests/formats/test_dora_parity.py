"""DoRA as PEFT, LyCORIS and diffusers have it: one definition, and files that go between them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from tests.formats.files import random
from tests.formats.pipelines import PIPELINES as MAKERS
from tests.formats.pipelines import assert_differs, assert_same, outputs, parts, pipeline_of
from torch import nn

from loraloom.errors import FormatError
from loraloom.formats import load_any, read_any
from loraloom.formats.convert import Conversion, convert
from loraloom.formats.updates import updates_of


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(5, 6)
        self.conv = nn.Conv2d(6, 4, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(self.proj(x).permute(0, 3, 1, 2))


def _peft(folder: Path) -> tuple[Two, Any]:
    torch.manual_seed(3)
    base = Two().eval()
    wrapped = get_peft_model(base, LoraConfig(target_modules=["proj", "conv"], r=2, lora_alpha=3, use_dora=True))
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_" in name:
                parameter.copy_(random(*parameter.shape, seed=len(name)).abs() if "magn" in name else parameter + 0.3)
    wrapped.save_pretrained(folder)
    torch.manual_seed(3)
    return Two().eval(), wrapped.eval()


def test_a_magnitude_is_the_norm_of_an_outputs_row(tmp_path: Path) -> None:
    """W' = m · (W + ΔW) / ‖W + ΔW‖ by rows: LyCORIS' formula with `wd_on_out`, held to what PEFT computes."""
    base, wrapped = _peft(tmp_path)
    updates, rest = updates_of(read_any(tmp_path), magnitudes=True)
    assert not rest and set(updates) == {"proj", "conv"}
    with torch.no_grad():
        for path, update in updates.items():
            weight = base.get_submodule(path).weight
            whole = weight.double() + update.delta()
            norm = whole.flatten(1).norm(dim=1)
            assert update.magnitude is not None
            size = (update.magnitude.double() / norm).reshape(-1, *(1,) * (whole.dim() - 1))
            weight.copy_(whole * size)
        x = random(2, 3, 3, 5)
        torch.testing.assert_close(base(x), wrapped(x), rtol=1e-4, atol=1e-5)


def test_it_is_not_attached(tmp_path: Path) -> None:
    base, _ = _peft(tmp_path)
    with pytest.raises(FormatError, match="is an adapter of DoRA, .* can be converted, but not attached"):
        load_any(base, tmp_path)


@pytest.mark.parametrize("edit", ["magnitude gone", "config silent"])
def test_a_folder_that_is_dora_by_half(edit: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    _peft(tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    if edit == "config silent":
        config["use_dora"] = False
    else:
        del tensors["base_model.model.proj.lora_magnitude_vector"]
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(FormatError, match="of DoRA"):
        read_any(tmp_path)


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_diffusers_to_kohya_and_back(kind: str, tmp_path: Path) -> None:
    """What diffusers saved comes back from kohya's file to the bit, and diffusers gives the same outputs with it."""
    pipeline = MAKERS[kind]()
    layers = {}
    for name in ("unet", "text_encoder", "text_encoder_2"):
        if (module := getattr(pipeline, name, None)) is None:
            continue
        targets = ["to_q", "to_v", "conv1"] if name == "unet" else ["q_proj", "fc1"]
        module.add_adapter(LoraConfig(target_modules=targets, r=4, lora_alpha=4, use_dora=True), "default")
        with torch.no_grad():
            for key, parameter in module.named_parameters():
                if "lora_" in key:
                    noise = random(*parameter.shape, seed=len(key)) * 0.1
                    parameter.copy_(parameter * 1.5 if "magnitude" in key else parameter + noise)
        layers[f"{name}_lora_layers"] = get_peft_model_state_dict(module)
    wanted = outputs(pipeline)
    assert_differs(wanted, outputs(parts(kind)))
    pipeline.save_lora_weights(tmp_path, **layers)
    source, middle, back = (
        tmp_path / n for n in ("pytorch_lora_weights.safetensors", "k.safetensors", "b.safetensors")
    )
    with pytest.warns(UserWarning, match="divide by another norm"):
        assert convert(Conversion(source, middle, "kohya", kind=kind)).largest == 0
    assert convert(Conversion(middle, back, "diffusers", kind=kind)).largest == 0
    assert_same(loaded(kind, back), loaded(kind, source), 0)
    assert_same({"unet": loaded(kind, back)["unet"]}, {"unet": wanted["unet"]})  # its text encoders lose magnitudes


def loaded(kind: str, file: Path) -> dict[str, torch.Tensor]:
    """What diffusers makes of a file."""
    pipeline = pipeline_of(kind)
    pipeline.load_lora_weights(file.parent, weight_name=file.name)
    try:
        return outputs(pipeline)
    finally:
        pipeline.unload_lora_weights()
