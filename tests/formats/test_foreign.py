"""Files of other programs, recognised by their content; every fault of one told in one error."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.formats.files import ATTENTION, CLIP, pair, random, sd1_file, write
from tests.scaling import grows_about_linearly
from torch import Tensor, nn

from loraloom.errors import FormatError
from loraloom.formats import describe_adapter, load_any, read_any
from loraloom.formats.dotting import dotted
from loraloom.formats.keys import ROLES
from loraloom.formats.unet_names import from_original, to_original
from loraloom.formats.updates import Update, updates_of

ATTENTION_PATH = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
CLIP_PATH = "text_encoder.text_model.encoder.layers.1.mlp.fc1"

ORIGINAL = {
    "input_blocks_0_0": "conv_in",
    "input_blocks_2_0_in_layers_2": "down_blocks_0_resnets_1_conv1",
    "input_blocks_3_0_op": "down_blocks_0_downsamplers_0_conv",
    "input_blocks_4_0_skip_connection": "down_blocks_1_resnets_0_conv_shortcut",
    "input_blocks_8_1_transformer_blocks_9_norm1": "down_blocks_2_attentions_1_transformer_blocks_9_norm1",
    "middle_block_0_emb_layers_1": "mid_block_resnets_0_time_emb_proj",
    "middle_block_1_proj_in": "mid_block_attentions_0_proj_in",
    "middle_block_2_out_layers_3": "mid_block_resnets_1_conv2",
    "output_blocks_2_2_conv": "up_blocks_0_upsamplers_0_conv",
    "output_blocks_5_1_transformer_blocks_0_attn2_to_k": "up_blocks_1_attentions_2_transformer_blocks_0_attn2_to_k",
    "output_blocks_8_0_in_layers_2": "up_blocks_2_resnets_2_conv1",
    "time_embed_2": "time_embedding_linear_2",
    "label_emb_0_0": "add_embedding_linear_1",
    "out_2": "conv_out",
}


@pytest.mark.parametrize("original", ORIGINAL)
def test_original_names_go_both_ways(original: str) -> None:
    name = ORIGINAL[original]
    assert from_original(original) == name
    assert to_original(name) == original
    assert dotted(name) is not None


@pytest.mark.parametrize(
    "name", ["down_blocks", "input_blocks_x_0_op", "input_blocks_1_2_op", "middle_block_3_x", "", "_"]
)
def test_what_is_no_original_name(name: str) -> None:
    assert from_original(name) is None


def test_an_upsampler_stands_in_the_place_of_attention_where_there_is_none() -> None:
    assert from_original("output_blocks_2_1_conv") == "up_blocks_0_upsamplers_0_conv"
    assert to_original("up_blocks_0_upsamplers_0_conv", plain_levels=[0]) == "output_blocks_2_1_conv"


def only(path: Path) -> Update:
    updates, rest = updates_of(read_any(path))
    assert not rest
    (update,) = updates.values()
    return update


def test_a_kohya_file_without_a_model(tmp_path: Path) -> None:
    updates, rest = updates_of(read_any(sd1_file(tmp_path / "a.safetensors")))
    assert not rest
    assert set(updates) == {
        ATTENTION_PATH,
        "unet.up_blocks.1.resnets.2.conv1",
        "unet.mid_block.attentions.0.proj_in",
        CLIP_PATH,
    }
    attention = updates[ATTENTION_PATH]
    assert (attention.rank, attention.scale) == (4, 0.5)
    stored = pair(f"lora_unet_{ATTENTION}")
    down, up = (stored[f"lora_unet_{ATTENTION}.lora_{end}.weight"] for end in ("down", "up"))
    torch.testing.assert_close(attention.delta(), 0.5 * up.double() @ down.double())
    assert updates["unet.up_blocks.1.resnets.2.conv1"].scale == 1.0


def test_no_alpha_is_a_scale_of_one(tmp_path: Path) -> None:
    for update in updates_of(read_any(sd1_file(tmp_path / "a.safetensors", alpha=None)))[0].values():
        assert update.scale == 1.0


def test_a_negative_alpha_turns_the_sign(tmp_path: Path) -> None:
    stem = f"lora_te_{CLIP}"
    minus, plus = (only(write(tmp_path / f"{a}.safetensors", pair(stem, alpha=a))) for a in (-2.0, 2.0))
    torch.testing.assert_close(minus.delta(), -plus.delta())


A, B = random(3, 5), random(6, 3)
SPELLINGS: dict[str, tuple[str, str, str]] = {
    "today's": (f"{ATTENTION_PATH}.lora_A.weight", f"{ATTENTION_PATH}.lora_B.weight", ATTENTION_PATH),
    "with the adapter's name": (
        f"{ATTENTION_PATH}.lora_A.default_0.weight",
        f"{ATTENTION_PATH}.lora_B.default_0.weight",
        ATTENTION_PATH,
    ),
    "lora.down": (f"{ATTENTION_PATH}.lora.down.weight", f"{ATTENTION_PATH}.lora.up.weight", ATTENTION_PATH),
    "processors": (
        "unet.mid_block.attentions.0.transformer_blocks.0.attn2.processor.to_out_lora.down.weight",
        "unet.mid_block.attentions.0.transformer_blocks.0.attn2.processor.to_out_lora.up.weight",
        "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0",
    ),
    "processors of the U-Net alone": (
        "mid_block.attentions.0.transformer_blocks.0.attn2.processor.to_k_lora.down.weight",
        "mid_block.attentions.0.transformer_blocks.0.attn2.processor.to_k_lora.up.weight",
        "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k",
    ),
    "lora_linear_layer": (
        "text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_linear_layer.down.weight",
        "text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_linear_layer.up.weight",
        "text_encoder.text_model.encoder.layers.0.self_attn.q_proj",
    ),
    "processors of a text encoder": (
        "text_encoder.text_model.encoder.layers.0.self_attn.to_out_lora.down.weight",
        "text_encoder.text_model.encoder.layers.0.self_attn.to_out_lora.up.weight",
        "text_encoder.text_model.encoder.layers.0.self_attn.out_proj",
    ),
    "a flat CLIP": (
        "text_encoder.encoder.layers.0.mlp.fc1.lora_A.weight",
        "text_encoder.encoder.layers.0.mlp.fc1.lora_B.weight",
        "text_encoder.text_model.encoder.layers.0.mlp.fc1",
    ),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_of_diffusers(spelling: str, tmp_path: Path) -> None:
    down, up, path = SPELLINGS[spelling]
    file = write(tmp_path / "x.safetensors", {down: A, up: B})
    update = only(file)
    assert (update.path, update.scale) == (path, 1.0)
    assert torch.equal(update.a, A) and torch.equal(update.b, B)
    assert describe_adapter(file).format == "diffusers"


def test_a_folder_with_one_file(tmp_path: Path) -> None:
    sd1_file(tmp_path / "any-name.safetensors")
    assert describe_adapter(tmp_path).sites == 4
    sd1_file(tmp_path / "another.safetensors")
    with pytest.raises(FormatError, match="several files"):
        read_any(tmp_path)


def test_the_format_is_no_matter_of_the_name(tmp_path: Path) -> None:
    file = sd1_file(tmp_path / "pytorch_lora_weights.safetensors")
    assert describe_adapter(file).format == "kohya"
    facts = describe_adapter(tmp_path)
    assert (facts.format, facts.kind, facts.sites, facts.rank, facts.alpha) == ("kohya", "sd1", 4, 4, 2.0)
    assert facts.parts == ("text_encoder", "unet")


# -- a model decides what underscored names mean ------------------------------------------------------


class Odd(nn.Module):
    """Names that no table knows, two of them written alike."""

    def __init__(self) -> None:
        super().__init__()
        self.my_layer = nn.Linear(5, 6)
        self.my = nn.ModuleDict({"layer": nn.Linear(5, 6), "conv": nn.Conv2d(5, 6, 1)})
        self.down_blocks = nn.ModuleList()


def test_a_model_resolves_names_that_no_table_knows(tmp_path: Path) -> None:
    model = nn.ModuleDict({"unet": Odd()})
    file = write(tmp_path / "a.safetensors", pair("lora_unet_my_conv", inside=(5, 1, 1)))
    with pytest.raises(FormatError, match="'lora_unet_my_conv' names no layer of a known model"):
        read_any(file)
    adapters = load_any(model, file, name="x")
    assert [site.path for site in adapters.plan("x").sites] == ["unet.my.conv"]


def test_linear_factors_fit_a_convolution_of_size_one_and_back(tmp_path: Path) -> None:
    model = nn.ModuleDict({"unet": nn.ModuleDict({"a": nn.Conv2d(5, 6, 1), "b": nn.Linear(5, 6)})})
    tensors = {**pair("lora_unet_a"), **pair("lora_unet_b", inside=(5, 1, 1))}
    adapters = load_any(model, write(tmp_path / "a.safetensors", tensors), name="x")
    up, down = tensors["lora_unet_a.lora_up.weight"], tensors["lora_unet_a.lora_down.weight"]
    torch.testing.assert_close(adapters.delta("x", "unet.a").flatten(1), 0.5 * up @ down)


def test_names_written_alike_are_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "a.safetensors", pair("lora_unet_my_layer"))
    with pytest.raises(FormatError, match="can be any of 'unet.my_layer', 'unet.my.layer', which are written alike"):
        load_any(nn.ModuleDict({"unet": Odd()}), file)


def test_a_part_that_the_model_has_not(tmp_path: Path) -> None:
    file = write(
        tmp_path / "a.safetensors", {**pair("lora_unet_my_conv", inside=(5, 1, 1)), **pair(f"lora_te2_{CLIP}")}
    )
    with pytest.raises(FormatError, match="3 tensors are for 'text_encoder_2', which this model does not have"):
        load_any(nn.ModuleDict({"unet": Odd()}), file)


# -- what cannot be used ------------------------------------------------------------------------------

STEM = f"lora_unet_{ATTENTION}"
GOOD = pair(STEM)
DOWN, UP, ALPHA = (f"{STEM}.{end}" for end in ("lora_down.weight", "lora_up.weight", "alpha"))
FAULTS: dict[str, tuple[dict[str, Tensor], str]] = {
    "alpha zero": ({**GOOD, ALPHA: torch.tensor(0.0)}, "its alpha is 0, expected a finite number"),
    "alpha not a number": ({**GOOD, ALPHA: torch.tensor(float("nan"))}, "its alpha is nan"),
    "alpha infinite": ({**GOOD, ALPHA: torch.tensor(float("inf"))}, "its alpha is inf"),
    "alpha of two numbers": ({**GOOD, ALPHA: torch.ones(2)}, "its alpha has shape \\(2,\\)"),
    "a factor missing": ({DOWN: GOOD[DOWN]}, "A alone makes no update"),
    "alpha alone": ({**GOOD, f"lora_te_{CLIP}.alpha": torch.tensor(1.0)}, "alpha alone makes no update"),
    "ranks that differ": ({**GOOD, UP: random(6, 3)}, "rank 4 in one, 3 in the other"),
    "dimensions that differ": ({**GOOD, UP: random(6, 4, 1, 1)}, "its factors have shapes"),
    "an up that is no 1×1": (
        {DOWN: random(4, 5, 3, 3), UP: random(6, 4, 3, 3)},
        "the second is not a convolution of size 1",
    ),
    "whole numbers": ({**GOOD, UP: torch.ones(6, 4, dtype=torch.int32)}, "expected floating-point numbers"),
    "not finite": ({**GOOD, UP: torch.full((6, 4), float("inf"))}, "not finite"),
    "empty": ({DOWN: torch.zeros(0, 5), UP: torch.zeros(6, 0)}, "empty"),
    "DoRA by inputs": ({**GOOD, f"{STEM}.dora_scale": torch.ones(1, 5)}, "it is DoRA with magnitudes of shape"),
    "DoRA of another size": ({**GOOD, f"{STEM}.dora_scale": torch.ones(7, 1)}, "it is DoRA with magnitudes of shape"),
    "DoRA in whole numbers": ({**GOOD, f"{STEM}.dora_scale": torch.ones(6, 1, dtype=torch.int8)}, "floating-point"),
    "DoRA that is not finite": ({**GOOD, f"{STEM}.dora_scale": torch.full((6, 1), float("nan"))}, "not finite"),
    "OFT": ({f"{STEM}.oft_blocks": torch.ones(2, 2, 2)}, "OFT, a rotation"),
    "a bias": ({**GOOD, f"{STEM}.diff_b": torch.ones(6)}, "a change of a bias"),
    "an unknown key": (
        {**GOOD, f"{STEM}.lora_dwon.weight": torch.ones(1)},
        f"'{STEM}.lora_dwon.weight' belongs to nothing known; did you mean '{STEM}.lora_down.weight'",
    ),
    "many unknown keys": (
        {**GOOD, **{f"bundle_emb.x.{i}": torch.ones(1) for i in range(9)}},
        "'bundle_emb.x.0' and 8 like it belongs to nothing known",
    ),
    "an unknown layer": (pair("lora_unet_down_blocks_0_attentoins_0_proj_in"), "names no layer of a known model"),
    "a path trick": (pair("lora_unet_../../etc/passwd"), "is not an adapter|belongs to nothing|names no layer"),
    "both spellings of a layer": (
        {**pair("lora_unet_input_blocks_4_1_proj_in"), **pair("lora_unet_down_blocks_1_attentions_0_proj_in")},
        "are both the layer 'unet.down_blocks.1.attentions.0.proj_in'",
    ),
    "a mixed file": ({**GOOD, f"{ATTENTION_PATH}.lora_A.weight": A}, "mixes the keys of several formats"),
    "no adapter at all": ({"model.weight": A}, "is not an adapter of PEFT, diffusers, kohya"),
    "PEFT's tensors without their config": ({f"base_model.model.{ATTENTION_PATH}.lora_A.weight": A}, "adapter_config"),
    "no tensor": ({}, "holds no tensor"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_told(fault: str, tmp_path: Path) -> None:
    tensors, told = FAULTS[fault]
    with pytest.raises(FormatError, match=told):
        read_any(write(tmp_path / "a.safetensors", tensors))


def test_all_faults_are_told_at_once(tmp_path: Path) -> None:
    tensors = {**GOOD, ALPHA: torch.tensor(0.0), **pair(f"lora_te_{CLIP}"), "nonsense": torch.ones(1)}
    tensors[f"lora_te_{CLIP}.lora_up.weight"] = random(6, 3)
    with pytest.raises(FormatError, match="(?s)3 faults.*rank 4 in one.*alpha is 0") as error:
        read_any(write(tmp_path / "a.safetensors", tensors))
    assert "'nonsense' belongs to nothing known" in str(error.value)


def test_the_model_is_left_as_it_was(tmp_path: Path) -> None:
    model = nn.ModuleDict({"unet": Odd()})
    before = [type(module) for module in model.modules()]
    file = write(tmp_path / "a.safetensors", pair("lora_unet_my_conv", inside=(7, 1, 1)))
    with pytest.raises(FormatError, match=r"expected \(4, 5, 1, 1\)"):
        load_any(model, file)
    assert [type(module) for module in model.modules()] == before


@pytest.mark.parametrize("path", ["gone.safetensors", "empty"])
def test_what_is_not_there(path: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(FormatError, match="there is no adapter|is not an adapter"):
        describe_adapter(tmp_path / path)


STEMS = st.sampled_from([STEM, f"lora_te_{CLIP}", ATTENTION_PATH, "lora_unet_double_blocks_0_img_attn_qkv", "x.y"])
ENDS = st.sampled_from([*ROLES, "nonsense", "to_q_lora.down.weight"])
SHAPES = st.lists(st.integers(0, 4), max_size=4)
VALUES = st.sampled_from([0.0, 1.0, -2.0, float("nan"), float("inf"), 1e30])


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.tuples(STEMS, ENDS), st.tuples(SHAPES, VALUES), min_size=1, max_size=6), st.booleans())
def test_any_tensors_give_an_error_or_an_adapter(tmp_path: Path, made: Any, with_model: bool) -> None:
    tensors = {f"{stem}.{end}": torch.full(shape, value) for (stem, end), (shape, value) in made.items()}
    file = write(tmp_path / "fuzz.safetensors", tensors)
    model = nn.ModuleDict({"x": nn.ModuleDict({"y": nn.Linear(3, 4)})}) if with_model else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for look in (describe_adapter, lambda path: read_any(path, model=model, alpha=1)):
            try:
                look(file)
            except FormatError:
                continue


def test_keys_without_end_do_not_take_for_ever(tmp_path: Path) -> None:
    """Comparing names is slow: only the first few of many unknown ones are compared."""

    def refused(count: int) -> Callable[[], None]:
        names = [f"lora_unet_{chr(97 + i % 26)}{chr(97 + i // 26 % 26)}_x" for i in range(count)]
        file = write(tmp_path / f"{count}.safetensors", {**GOOD, **{name: torch.ones(1) for name in names}})

        def read() -> None:
            with pytest.raises(FormatError, match=f"{count} faults.*\n(.*\n)*.*and {count - 20} more"):
                read_any(file)

        return read

    assert grows_about_linearly(refused(60), refused(600), 10)
