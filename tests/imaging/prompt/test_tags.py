"""Tags: what is one, what it asks for, weights per block and step, and what is said of those that are wrong."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.imaging.prompt import oracle

from loraloom.imaging.prompt import LoraTag, ParsedPrompt, Tag, block_names, parse_prompt
from loraloom.imaging.prompt.tags import find_tags, without


def read(text: str, steps: int = 20) -> ParsedPrompt:
    return parse_prompt(text, steps=steps)


def lora(arguments: str, steps: int = 20) -> LoraTag:
    """The one adapter of a tag that is right."""
    prompt = read(f"<lora:{arguments}>", steps)
    assert prompt.warnings == ()
    return prompt.loras[0]


@pytest.mark.parametrize(
    ("arguments", "te", "unet"),
    [
        ("ink", 1.0, 1.0),
        ("ink:0.8", 0.8, 0.8),
        ("ink:0.5:0.9", 0.5, 0.9),
        ("ink:te=0.5", 0.5, 0.5),
        ("ink:unet=0.5", 1.0, 0.5),
        ("ink:0.3:unet=0.5", 0.3, 0.5),
        ("ink:te=0:unet=-1", 0.0, -1.0),
        ("ink:0.3:0.4:te=1:unet=2", 1.0, 2.0),
        ("ink: 1e-1 ", 0.1, 0.1),
        ("ink::0.5", 1.0, 0.5),
    ],
)
def test_weights_by_place_and_by_name(arguments: str, te: float, unet: float) -> None:
    assert lora(arguments) == LoraTag("ink", te, unet)


def test_tags_go_and_the_blanks_around_them_stay() -> None:
    prompt = read("a <lora:my ink (v2)-é.1:0.5> b<hypernet:foo:1:x=y=z:k=v>,<lyco:old>")
    assert prompt.text == "a  b,"
    assert prompt.loras == (LoraTag("my ink (v2)-é.1", 0.5, 0.5), LoraTag("old", 1.0, 1.0))
    assert prompt.networks == (Tag("hypernet", ("foo", "1", "x=y=z"), {"k": "v"}),)
    assert prompt.to_json()["networks"] == [{"name": "hypernet", "args": ["foo", "1", "x=y=z"], "named": {"k": "v"}}]


def test_tags_go_before_anything_else_is_read() -> None:
    assert read("[a:b:<lora:x:1>3]").parts[0].schedule[0].end_step == 3
    assert read("a <lora:x AND y:1> b").loras[0].name == "x AND y"


@pytest.mark.parametrize("text", ["<lora>", "<:a>", "< lora:a>", "<lora:>", "<lora:a", "a < b: c", "<lo ra:a>"])
def test_what_is_no_tag_stays(text: str) -> None:
    prompt = read(text)
    assert (prompt.text, prompt.loras, prompt.networks) == (text, (), ())


def test_a_negative_prompt_keeps_its_tags_as_text() -> None:
    prompt = parse_prompt("bad <lora:ink:1> AND worse :0.5", steps=20, negative=True)
    assert (prompt.loras, prompt.networks, len(prompt.parts)) == ((), (), 1)
    assert prompt.text == prompt.parts[0].schedule[0].text == "bad <lora:ink:1> AND worse :0.5"
    assert prompt.warnings == (
        "character 5: the tag <lora:…> of 'ink' is left as text, since a negative prompt has no tags",
        "character 18: AND is left as text, since a negative prompt has one part",
    )


@settings(max_examples=500, deadline=None)
@given(
    st.lists(st.sampled_from(["<lora:", "<a:", "<", ">", ":", "x", "=", "1", "<b:c>", " "]), max_size=16).map("".join)
)
def test_the_oracle_finds_the_same_tags(text: str) -> None:
    rest, expected = oracle.tags(text)
    found = find_tags(text)
    assert without(text, found) == rest
    assert [one.tag.name for one in found] == [name for name, _ in expected]
    for one, (_, items) in zip(found, expected, strict=True):
        assert one.tag.args == tuple(item for item in items if item.count("=") != 1)
        assert one.tag.named == dict(item.split("=") for item in items if item.count("=") == 1)


# -- blocks and steps -------------------------------------------------------------------------------


def test_blocks_by_the_narrowest_name() -> None:
    tag = lora("ink:0.8:blocks=down*0, mid*0.5,up.2*1.5,te2*-1")
    assert tag.blocks == {"down": 0.0, "mid": 0.5, "up.2": 1.5, "te2": -1.0}
    paths = {
        "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q": 0.0,
        "unet.mid_block.attentions.0.proj_in": 0.5,
        "unet.up_blocks.2.attentions.0.proj_in": 1.5,
        "unet.up_blocks.1.attentions.0.proj_in": 1.0,
        "unet.conv_in": 1.0,
        "text_encoder.text_model.encoder.layers.0.mlp.fc1": 1.0,
        "text_encoder_2.text_model.encoder.layers.0.mlp.fc1": -1.0,
    }
    assert {path: tag.block_factor(path) for path in paths} == paths


def test_block_names_of_transformers() -> None:
    assert block_names("transformer.single_transformer_blocks.3.attn.to_q") == ("single.3", "single")
    assert block_names("transformer.transformer_blocks.12.attn.to_q") == ("double.12", "double")
    assert block_names("vae.decoder") == ()


@pytest.mark.parametrize(
    ("notation", "pieces"),
    [
        ("0.5*0", ((10, 0.0), (20, 1.0))),
        ("0.5*0,0.7", ((10, 0.0), (20, 0.7))),
        ("5*0, 8*0.5, 1", ((5, 0.0), (8, 0.5), (20, 1.0))),
        ("1.0*0.3", ((20, 0.3),)),
        ("0.3", ((20, 0.3),)),
        ("30*0.5", ((20, 0.5),)),
        ("0.01*0,2", ((20, 2.0),)),
        ("4*0..1.5,16*1.5,0", ((1, 0.0), (2, 0.5), (3, 1.0), (16, 1.5), (20, 0.0))),
        ("1*0..1,0", ((1, 1.0), (20, 0.0))),
    ],
)
def test_steps(notation: str, pieces: tuple[tuple[int, float], ...]) -> None:
    assert lora(f"ink:0.8:steps={notation}").steps == pieces


def test_weight_at_holds_up_to_the_end_of_a_piece() -> None:
    tag = lora("ink:steps=5*0,0.5")
    assert [tag.weight_at(step) for step in (1, 5, 6, 20, 21)] == [0.0, 0.0, 0.5, 0.5, 0.5]
    assert lora("ink").weight_at(3) == 1.0


def test_json_has_blocks_and_steps_only_where_the_tag_has() -> None:
    assert lora("ink:0.8").to_json() == {"name": "ink", "te": 0.8, "unet": 0.8}
    data = lora("ink:0.8:blocks=up*0:steps=5*0").to_json()
    assert data == {"name": "ink", "te": 0.8, "unet": 0.8, "blocks": {"up": 0.0}, "steps": [[5, 0.0], [20, 1.0]]}


def test_a_plain_web_ui_reads_name_and_weight_of_our_notation() -> None:
    """It takes what has one "=" as named, and asks for te and unet alone by name."""
    _, [(name, items)] = oracle.tags("<lora:ink:0.8:blocks=down*0,up.2*1.5:steps=0.3*0,0.6*0..1>")
    assert (name, [item for item in items if item.count("=") != 1]) == ("lora", ["ink", "0.8"])


# -- warnings ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tag", "said"),
    [
        ("<lora:ink:high>", "character 3: adapter 'ink': te 'high' is no number, so that 1 is taken"),
        ("<lora:ink:nan>", "te 'nan' is no number"),
        ("<lora:ink:0.5:unet=x>", "unet 'x' is no number, so that 0.5 is taken"),
        (
            "<lora:ink:1:step=0.5*0>",
            "unknown argument 'step' has no effect; there are te, unet, blocks, steps; did you",
        ),
        ("<lora:ink:1:1:8>", "argument '8' has no effect"),
        ("<lora:ink:1:dyn=8>", "'dyn', a part of the rank, is not supported"),
        ("<lora:te=1>", "<lora:…> names no adapter and is left out"),
        (
            "<lora:ink:blocks=dwon*0>",
            "'dwon' is no block, and has no effect; there are down, mid, up, te, te1, te2, te3",
        ),
        ("<lora:ink:blocks=down>", "'down' has no effect, as no number follows: write down*0.5"),
        ("<lora:ink:blocks=mid.1*1>", "'mid.1' is no block"),
        ("<lora:ink:steps=half*0>", "steps: 'half*0' has no effect; write END*FACTOR, e.g. 0.5*0 or 10*0..1"),
        ("<lora:ink:steps=5*x>", "steps: '5*x' has no effect"),
        ("<lora:ink:steps=-5*1>", "steps: '-5*1' has no effect"),
        ("<lora:ink:steps=9*1,5*0>", "'5*0' has no effect, as it ends before the piece before it"),
        ("<lora:ink> <lora:ink>", "character 14: adapter 'ink' is named before"),
    ],
)
def test_what_is_wrong_is_said_and_left_out(tag: str, said: str) -> None:
    prompt = read(f"a {tag}")
    assert said in prompt.warnings[0]
    assert len(prompt.warnings) == 1


def test_a_wrong_entry_leaves_the_right_ones() -> None:
    assert read("<lora:ink:blocks=dwon*0,mid*0.5,up>").loras[0].blocks == {"mid": 0.5}
    assert read("<lora:ink:steps=5*0,x*1,9*0.5>").loras[0].steps == ((5, 0.0), (9, 0.5), (20, 1.0))
