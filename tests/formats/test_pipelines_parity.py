"""Files of ours in diffusers, and files of diffusers and PEFT here: the same outputs, to float32's last digits."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.loaders.lora_conversion_utils import _convert_kohya_flux_lora_to_diffusers
from peft import LoraConfig, get_peft_model_state_dict
from tests.formats.files import random, write
from tests.formats.pipelines import (
    PIPELINES,
    TARGETS,
    Made,
    adapted,
    assert_differs,
    assert_same,
    lent,
    outputs,
    parts,
    pipeline_of,
)

from loraloom.adapters import AdapterSet
from loraloom.adapters.layers import layer_kind
from loraloom.formats import describe_adapter, load_any, read_any, save_adapter, save_diffusers, save_kohya
from loraloom.formats.dotting import dotted, underscored
from loraloom.formats.kohya import kohya_tensors
from loraloom.formats.resolving import canonical
from loraloom.formats.unet_names import from_original, to_original
from loraloom.formats.updates import updates_of

Save = Callable[[AdapterSet, Path, str], Path]


def kohya(adapters: AdapterSet, folder: Path, kind: str) -> Path:
    save_kohya(adapters, "style", folder / "kohya.safetensors", kind=kind)
    return folder / "kohya.safetensors"


def diffusers(adapters: AdapterSet, folder: Path, kind: str) -> Path:
    save_diffusers(adapters, "style", folder, kind=kind)
    return folder


def peft(adapters: AdapterSet, folder: Path, kind: str) -> Path:
    save_adapter(adapters, "style", folder / "peft")
    return folder / "peft"


CASES: dict[str, dict[str, Any]] = {
    "all linear": {},
    "everything": {"targets": "everything", "size": 0.2},
    "rsLoRA": {"scaling": "rslora", "size": 0.2},
    "two alphas": {"size": 0.2, "alpha_pattern": {"to_q": 3.0, "fc1": 0.7}},
    "two ranks": {"rank_pattern": {"to_k": 2, "fc2": 3}},
}


@pytest.fixture(scope="module")
def made() -> Callable[[str, str], Made]:
    kept: dict[tuple[str, str], Made] = {}

    def make(kind: str, case: str) -> Made:
        if (kind, case) not in kept:
            kept[kind, case] = adapted(kind, **CASES[case])
        return kept[kind, case]

    return make


@pytest.mark.parametrize("save", [kohya, diffusers, peft])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", PIPELINES)
def test_ours_loads_here(kind: str, case: str, save: Save, made: Callable[[str, str], Made], tmp_path: Path) -> None:
    wanted = made(kind, case)
    path = save(wanted.adapters, tmp_path, kind)
    with lent(kind) as model, warnings.catch_warnings():
        warnings.simplefilter("error")
        load_any(model, path, name="again")
        assert_same(outputs(model), wanted.outputs)


@pytest.mark.parametrize("save", [kohya, diffusers])
@pytest.mark.parametrize("case", [case for case in CASES if case != "all linear"])
@pytest.mark.parametrize("kind", PIPELINES)
def test_diffusers_loads_ours(
    kind: str, case: str, save: Save, made: Callable[[str, str], Made], tmp_path: Path
) -> None:
    wanted = made(kind, case)
    pipeline = pipeline_of(kind)
    path = save(wanted.adapters, tmp_path, kind)
    assert_differs({"unet": outputs(pipeline)["unet"]}, {"unet": wanted.outputs["unet"]})
    pipeline.load_lora_weights(tmp_path, weight_name=path.name if path.is_file() else None)
    try:
        assert_same(outputs(pipeline), wanted.outputs)
    finally:
        pipeline.unload_lora_weights()


def _with_peft(kind: str, **config: Any) -> Any:
    """A pipeline with an adapter that PEFT made, filled with random numbers."""
    pipeline = PIPELINES[kind]()
    generator = torch.Generator().manual_seed(5)
    for name in ("unet", "text_encoder", "text_encoder_2"):
        module = getattr(pipeline, name, None)
        if module is None:
            continue
        wanted = [
            t.removeprefix("unet.") for t in TARGETS["all linear"] if ("proj" in t or "fc" in t) or name == "unet"
        ]
        module.add_adapter(LoraConfig(**{"r": 4, "lora_alpha": 4, "target_modules": wanted, **config}), "default")
        with torch.no_grad():
            for key, parameter in module.named_parameters():
                if "lora_" in key:
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return pipeline


@pytest.mark.parametrize(
    ("config", "with_metadata"),
    [
        ({}, False),
        ({"lora_alpha": 1}, True),
        ({"lora_alpha": 3, "use_rslora": True}, True),
        ({"rank_pattern": {"to_k": 2}, "alpha_pattern": {"to_v": 7}, "lora_alpha": 2}, True),
    ],
)
@pytest.mark.parametrize("kind", PIPELINES)
def test_files_of_diffusers_load_here(kind: str, config: dict[str, Any], with_metadata: bool, tmp_path: Path) -> None:
    pipeline = _with_peft(kind, **config)
    wanted = outputs(pipeline)
    layers, metadata = {}, {}
    for name in ("unet", "text_encoder", "text_encoder_2"):
        if (module := getattr(pipeline, name, None)) is not None:
            layers[f"{name}_lora_layers"] = get_peft_model_state_dict(module)
            metadata[f"{name}_lora_adapter_metadata"] = module.peft_config["default"].to_dict()
    pipeline.save_lora_weights(tmp_path, **layers, **(metadata if with_metadata else {}))
    with lent(kind) as model:
        load_any(model, tmp_path)
        assert_same(outputs(model), wanted)


@pytest.mark.parametrize("kind", PIPELINES)
def test_what_a_header_tells(kind: str, made: Callable[[str, str], Made], tmp_path: Path) -> None:
    wanted = made(kind, "all linear")
    sites = len(wanted.adapters.plan("style").sites)
    for save, form, alpha in ((kohya, "kohya", 2.0), (diffusers, "diffusers", None), (peft, "peft", 2.0)):
        facts = describe_adapter(save(wanted.adapters, tmp_path, kind))
        assert (facts.format, facts.sites, facts.rank, facts.alpha) == (form, sites, 4, alpha)
        assert set(facts.parts) == set(wanted.parts)
        assert facts.kind == kind or (form == "peft" and kind == "sd1")


def test_why_a_kohya_file_gets_one_alpha(made: Callable[[str, str], Made], tmp_path: Path) -> None:
    """diffusers takes the alpha of most layers for all of them. Once it does not, ours need not be folded."""
    wanted = made("sd1", "two alphas")
    updates = updates_of(read_any(peft(wanted.adapters, tmp_path, "sd1")))[0]
    tensors = kohya_tensors(updates.values(), "sd1", None)
    for path, update in updates.items():
        stem = f"lora_{canonical(path).replace('.', '_').replace('text_encoder', 'te')}"
        tensors |= {f"{stem}.alpha": torch.tensor(update.alpha), f"{stem}.lora_up.weight": update.b}
    file = write(tmp_path / "two.safetensors", tensors)
    with lent("sd1") as model:
        load_any(model, file)
        assert_same(outputs(model), wanted.outputs)
    pipeline = pipeline_of("sd1")
    pipeline.load_lora_weights(file.parent, weight_name=file.name)
    try:
        with pytest.raises(AssertionError):
            assert_same(outputs(pipeline), wanted.outputs, 1e-2)
    finally:
        pipeline.unload_lora_weights()


def test_diffusers_understands_our_names_of_flux(tmp_path: Path) -> None:
    tensors = {}
    for index, layer in enumerate(
        ("attn.to_q", "attn.to_v", "attn.to_add_out", "ff.net.0.proj", "norm1_context.linear")
    ):
        path = f"transformer.transformer_blocks.1.{layer}"
        tensors |= {
            f"{path}.lora_A.weight": random(2, 8, seed=index),
            f"{path}.lora_B.weight": random(8, 2, seed=index),
        }
    updates = updates_of(read_any(write(tmp_path / "a.safetensors", tensors)))[0]
    theirs = _convert_kohya_flux_lora_to_diffusers(kohya_tensors(updates.values(), "flux", torch.float32))
    for path, update in updates.items():
        product = theirs[f"{path}.lora_B.weight"].double() @ theirs[f"{path}.lora_A.weight"].double()
        torch.testing.assert_close(product, update.delta(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", PIPELINES)
def test_every_layer_of_a_unet_has_a_name_both_ways(kind: str) -> None:
    layers = [path for path, module in parts(kind)["unet"].named_modules() if layer_kind(module) is not None]
    for path in layers:
        assert dotted(underscored(path)) == path
        if kind == "sdxl":
            original = to_original(underscored(path))
            assert original is not None and from_original(original) == underscored(path)
