"""What an adapter's weight may be, and what it is at a layer."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loraloom.compose.weights import Weighted, parse_weighted
from loraloom.errors import ConfigError
from loraloom.imaging.prompt import LoraTag

UP = "unet.up_blocks.2.attentions.0.transformer_blocks.0.attn1.to_q"
DOWN = "unet.down_blocks.1.resnets.0.conv1"
LLAMA = "model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("text", "path", "weight", "blocks"),
    [
        ("ink", "ink", 1.0, {}),
        ("ink:0.7", "ink", 0.7, {}),
        ("a/b.safetensors:-.2", "a/b.safetensors", -0.2, {}),
        ("C:\\lora\\ink:0.5", "C:\\lora\\ink", 0.5, {}),
        ("ink:0.7:blocks=down*0,up.2*1.5", "ink", 0.7, {"down": 0.0, "up.2": 1.5}),
        ("ink:blocks=te*0", "ink", 1.0, {"te": 0.0}),
        ("ink:0.5:blocks=*.layers.0.**0.3", "ink", 0.5, {"*.layers.0.*": 0.3}),
        ("ink:2:blocks=re:.*x{1,2}.*:q*-3,down*0", "ink", 2.0, {"re:.*x{1,2}.*:q": -3.0, "down": 0.0}),
    ],
)
def test_what_can_be_written(text: str, path: str, weight: float, blocks: dict[str, float]) -> None:
    assert parse_weighted(text) == Weighted(Path(path), weight, blocks)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (":0.7", "names no adapter"),
        ("ink:strong", "the weight 'strong' is not a number"),
        ("ink:nan", "the weight is nan"),
        ("ink:inf", "the weight is inf"),
        ("ink:0.7:block=down*0", "did you mean 'blocks'"),
        ("ink:0.7:blocks=down", "'down' is not NAME*FACTOR"),
        ("ink:0.7:blocks=down*much", "'down*much' is not NAME*FACTOR"),
        ("ink:0.7:blocks=down*nan", "is not NAME*FACTOR"),
        ("ink:0.7:blocks=", "is not NAME*FACTOR"),
        ("ink:0.7:blocks=up*1,up*2", "'up' is given twice"),
    ],
)
def test_what_cannot(text: str, told: str) -> None:
    with pytest.raises(ConfigError, match="(?s)" + told.replace("*", r"\*")):
        parse_weighted(text)


def test_a_name_with_a_colon_that_exists(tmp_path: Path) -> None:
    place = tmp_path / "take:2"
    place.mkdir()
    assert parse_weighted(str(place)) == Weighted(place)
    assert parse_weighted(f"{place}:0.5") == Weighted(place, 0.5)


def test_the_narrower_block_and_the_pattern_go_first() -> None:
    one = Weighted(Path("a"), 2.0, {"up": 0.5, "up.2": 3.0, "*.attn1.*": 0.0})
    assert one.at("unet.up_blocks.2.resnets.0.conv1") == 6.0
    assert one.at("unet.up_blocks.1.resnets.0.conv1") == 1.0
    assert one.at(UP) == 0.0
    assert one.at(DOWN) == 2.0
    assert Weighted(Path("a"), 0.5, {"*.layers.0.*": 0.3, "q_proj": 9.0}).at(LLAMA) == 0.15
    assert Weighted(Path("a"), 1.0, {"down": 0.0}).at("down_blocks.1.resnets.0.conv1") == 0.0, "a U-Net's own folder"


@given(st.dictionaries(st.sampled_from(["down", "up", "up.2", "mid", "te", "te2", "down.1"]), st.floats(-2, 2)))
def test_blocks_mean_what_they_mean_in_prompts(blocks: dict[str, float]) -> None:
    tag = LoraTag("a", 1.0, 1.0, blocks)
    for path in (UP, DOWN, "unet.mid_block.resnets.0.conv1", "text_encoder_2.text_model.encoder.layers.0.mlp.fc1"):
        assert Weighted(Path("a"), 1.0, blocks).at(path) == tag.block_factor(path)


@pytest.mark.parametrize(
    ("name", "sites", "told"),
    [
        ("up.3", [UP, DOWN], "'up.3' has no layer of it; it changes down, down.1, up, up.2"),
        ("to_r", [UP, DOWN], "to_r"),
        ("k_proj", [LLAMA], "did you mean 'q_proj'"),
        ("down", [LLAMA], "'down' matches no layer"),
    ],
)
def test_a_pattern_that_means_no_layer(name: str, sites: list[str], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        Weighted(Path("a"), 1.0, {name: 1.0}).check(sites)


def test_weights_that_are_not_finite() -> None:
    with pytest.raises(ConfigError, match="finite"):
        Weighted(Path("a"), float("nan"))
