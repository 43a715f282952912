"""From prompts to hidden states: against diffusers, and against a second writing in float64."""

from __future__ import annotations

import pytest
import torch
from tests.imaging.conditioning import tiny
from tests.imaging.conditioning.plain import plain_conditioning
from torch import nn

from loraloom.errors import ConfigError
from loraloom.imaging.conditioning import Conditioner
from loraloom.imaging.conditioning.chunks import cut
from loraloom.imaging.conditioning.vocabulary import Vocabulary
from loraloom.imaging.prompt import Segment, parse_prompt

TEXTS = ["", "a photo of the cat, masterpiece", "a cat " * 37 + "dog", "CAT  in\n snow: 3 dogs"]
LONG = (
    "a photo of the (cat:1.4) and (dog in snow), hill house tree, [boat rocket] flower, "
    + "meadow sea night desert, red blue green ((masterpiece)), " * 9
    + "(best quality:0.6) BREAK cute 1girl hair (extra:1.2)"
)


def schedule(conditioner, text, steps=20, **more):
    return conditioner.conditionings(parse_prompt(text, steps=steps), steps, **more)


def encode(conditioner, text, **more):
    (one,) = schedule(conditioner, text, **more).at(1)
    return one


def apart(found, expected):
    """The largest difference, as a share of the largest number: float32 against float64."""
    return ((found.double() - expected).abs().max() / expected.abs().max()).item()


def segments(text):
    """The emphasis parse, which has tests of its own."""
    (part,) = parse_prompt(text, steps=1).parts
    return [(segment.text, segment.weight) for segment in part.schedule[0].segments]


@pytest.mark.parametrize("kind", ["sd1", "sd2"])
@pytest.mark.parametrize("text", TEXTS)
def test_a_short_prompt_is_encoded_as_diffusers_does(base, kind, text):
    expected, _ = base(kind).pipeline.encode_prompt(text, "cpu", 1, False)
    found = encode(Conditioner(base(kind)), text)
    torch.testing.assert_close(found.hidden, expected[0], rtol=0, atol=1e-6)
    assert found.pooled is None


@pytest.mark.parametrize("text", TEXTS)
def test_a_short_prompt_of_sdxl_is_encoded_as_diffusers_does(base, text):
    hidden, _, pooled, _ = base("sdxl").pipeline.encode_prompt(text, do_classifier_free_guidance=False)
    found = encode(Conditioner(base("sdxl")), text)
    torch.testing.assert_close(found.hidden, hidden[0], rtol=0, atol=1e-6)
    torch.testing.assert_close(found.pooled, pooled[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("rescale", [True, False])
@pytest.mark.parametrize("kind", ["sd1", "sd2"])
def test_a_long_weighted_prompt_is_the_second_writing(base, kind, rescale):
    pipeline = base(kind).pipeline
    found = encode(Conditioner(base(kind), rescale_mean=rescale), LONG)
    expected = plain_conditioning(segments(LONG), pipeline.text_encoder, pipeline.tokenizer, rescale=rescale)
    assert found.hidden.shape == expected.shape == (3 * 77, 16 if kind == "sd1" else 24)
    assert apart(found.hidden, expected) < 5e-6


def test_a_long_weighted_prompt_of_sdxl_is_the_second_writing(base):
    pipeline = base("sdxl").pipeline
    found = encode(Conditioner(base("sdxl")), LONG)
    both = [
        plain_conditioning(segments(LONG), encoder, tokenizer, back=2, normed=False)
        for encoder, tokenizer in (
            (pipeline.text_encoder, pipeline.tokenizer),
            (pipeline.text_encoder_2, pipeline.tokenizer_2),
        )
    ]
    assert apart(found.hidden, torch.cat(both, dim=-1)) < 5e-6
    # Pooled: of the first chunk, as it is without its weights.
    cuts = cut([Segment(*each) for each in segments(LONG)], Vocabulary.of(pipeline.tokenizer_2))
    first = torch.tensor([cuts.chunks[0].tokens])
    torch.testing.assert_close(found.pooled, pipeline.text_encoder_2(first).text_embeds[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize(("skip", "back"), [(1, 1), (2, 2), (3, 3)])
def test_clip_skip_counts_as_in_the_web_ui(base, skip, back):
    pipeline = base("sd1").pipeline
    found = encode(Conditioner(base("sd1"), clip_skip=skip), LONG)
    expected = plain_conditioning(segments(LONG), pipeline.text_encoder, pipeline.tokenizer, back=back)
    assert apart(found.hidden, expected) < 5e-6


@pytest.mark.parametrize("skip", [0, 4, -1])
def test_a_layer_that_is_not_there_is_refused(base, skip):
    with pytest.raises(ConfigError, match="3 layers, 1 to 3 can be given"):
        encode(Conditioner(base("sd1"), clip_skip=skip), "cat")


@pytest.mark.parametrize("kind", ["sd2", "sdxl"])
def test_bases_with_a_layer_of_their_own_keep_it_and_say_so(base, kind):
    conditioner = Conditioner(base(kind))
    plain = encode(conditioner, "cat").hidden
    conditioner.clip_skip = 3
    found = schedule(conditioner, "cat")
    assert torch.equal(found.at(1)[0].hidden, plain)
    assert "clip skip 3 has no effect" in found.warnings[0]
    assert conditioner.warnings == list(found.warnings)
    conditioner.clip_skip_everywhere = True
    told = schedule(conditioner, "cat")
    assert not torch.equal(told.at(1)[0].hidden, plain) and not told.warnings
    if kind == "sdxl":  # the second encoder's layer stays, as in the web UI
        assert torch.equal(told.at(1)[0].hidden[:, 16:], plain[:, 16:])


def test_a_schedule_says_what_holds_at_which_step(base):
    conditioner = Conditioner(base("sd1"))
    found = schedule(conditioner, "a photo of [cat:dog:0.25] in snow")
    cat, dog = (encode(conditioner, f"a photo of {word} in snow").hidden for word in ("cat", "dog"))
    for step in range(1, 21):
        (now,) = found.at(step)
        torch.testing.assert_close(now.hidden, cat if step <= 5 else dog, rtol=1e-5, atol=1e-6)
    assert found.at(1)[0] is found.at(5)[0] is not found.at(6)[0]
    assert found.at(99)[0] is found.at(20)[0]


def test_texts_that_take_turns_share_one_factor(base):
    """The web UI encodes a schedule as one batch, and its mean is that of the batch, stage by stage."""
    pipeline = base("sd1").pipeline
    found = schedule(Conditioner(base("sd1")), "(cat:1.5) [snow:dog (red blue:0.3):5]", steps=10)
    texts = ["(cat:1.5) snow", "(cat:1.5) dog (red blue:0.3)"]
    raw, weighted = (
        torch.stack(
            [
                plain_conditioning(
                    [(words, weight if each else 1.0) for words, weight in segments(text)],
                    pipeline.text_encoder,
                    pipeline.tokenizer,
                    rescale=False,
                )
                for text in texts
            ]
        )
        for each in (False, True)
    )
    expected = weighted * (raw.mean() / weighted.mean())
    for step, row in ((1, 0), (5, 0), (6, 1)):
        assert apart(found.at(step)[0].hidden, expected[row]) < 5e-6


def test_a_shorter_stage_gets_empty_chunks(base):
    conditioner = Conditioner(base("sd1"))
    found = schedule(conditioner, "[" + "cat " * 80 + ":dog:5]", steps=10)
    long, short = found.at(1)[0], found.at(6)[0]
    assert long.hidden.shape == short.hidden.shape == (154, 16) and short.chunks == 2
    torch.testing.assert_close(short.hidden[77:], encode(conditioner, "").hidden)


def test_parts_have_weights(base):
    conditioner = Conditioner(base("sd1"))
    found = schedule(conditioner, "a cat :1.2 AND a dog AND snow :-0.5")
    assert found.weights.tolist() == pytest.approx([1.2, 1.0, -0.5])
    for part, text in zip(found.at(3), ["a cat", " a dog", " snow"], strict=True):
        torch.testing.assert_close(part.hidden, encode(conditioner, text).hidden)


def test_what_was_encoded_is_remembered(base):
    conditioner = Conditioner(base("sdxl"))
    first = encode(conditioner, "a cat in (snow:1.2)")
    made = conditioner.encoded
    assert made == 4  # the text and the empty chunk, each by both encoders
    again = encode(conditioner, "a cat in (snow:1.3)")
    assert conditioner.encoded == made, "a weight is applied after the encoder"
    assert not torch.equal(first.hidden, again.hidden)
    schedule(conditioner, "a cat in (snow:1.2)", version="with an adapter on the text encoder")
    assert conditioner.encoded == 2 * made
    assert torch.equal(encode(conditioner, "a cat in (snow:1.2)").hidden, first.hidden)
    assert conditioner.encoded == 2 * made


def test_alternation_encodes_each_text_once(base):
    conditioner = Conditioner(base("sd1"))
    found = schedule(conditioner, "a [cat:dog:7] AND a dog")
    assert conditioner.encoded == 3  # "a cat", "a dog", and the empty chunk
    assert len({id(found.at(step)[0]) for step in range(1, 21)}) == 2


def test_an_encoder_that_changed_is_asked_again_under_a_new_version():
    base = tiny.make_sd()
    conditioner = Conditioner(base)
    before = encode(conditioner, "cat", version=0).hidden
    with torch.no_grad():
        base.pipeline.text_encoder.final_layer_norm.bias += 1
    assert torch.equal(encode(conditioner, "cat", version=0).hidden, before)
    torch.testing.assert_close(encode(conditioner, "cat", version=1).hidden, before + 1)


def test_an_empty_negative_prompt_of_sdxl_is_all_zeros(base):
    conditioner = Conditioner(base("sdxl"))
    found = encode(conditioner, "", negative=True)
    assert not found.hidden.any() and not found.pooled.any()
    assert found.hidden.shape == (77, 40) and found.empty.any()
    assert encode(conditioner, "").hidden.any()
    assert encode(conditioner, "cat", negative=True).hidden.any()
    assert encode(Conditioner(base("sd1")), "", negative=True).hidden.any()


def test_time_ids_are_those_of_diffusers(base):
    found = encode(Conditioner(base("sdxl")), "cat", size=(48, 64))
    expected = base("sdxl").pipeline._get_add_time_ids((64, 48), (0, 0), (64, 48), torch.float32, 24)
    assert torch.equal(found.time_ids, expected[0])
    assert encode(Conditioner(base("sdxl")), "cat").time_ids is None
    assert encode(Conditioner(base("sd1")), "cat", size=(48, 64)).time_ids is None


def test_a_prompt_parsed_for_other_steps_is_refused(base):
    with pytest.raises(ConfigError, match="parsed for 20 steps and is to be used for 30"):
        Conditioner(base("sd1")).conditionings(parse_prompt("cat", steps=20), 30)


def test_tokens_and_chunks_are_counted(base):
    conditioner = Conditioner(base("sd1"))
    assert conditioner.token_count("") == (0, 1)
    assert conditioner.token_count("a (cat:1.2) in snow") == (4, 1)
    assert conditioner.token_count("<lora:style:0.8>a cat") == (2, 1)
    assert conditioner.token_count("cat BREAK dog") == (76, 2)
    assert conditioner.token_count("[a cat:cat:5] AND dog") == (2, 1)
    assert conditioner.token_count("cat " * 200) == (200, 3)
    assert conditioner.encoded == 0


def test_any_text_is_encoded(base):
    conditioner = Conditioner(base("sd1"))
    for text in ("\x00", "猫" * 300, "((((", "cat" * 5000, "<|endoftext|>", "\ud7ff 😀"):
        assert torch.isfinite(encode(conditioner, text).hidden).all()


def test_encoding_leaves_the_encoder_as_it_was(base):
    encoder: nn.Module = base("sd1").pipeline.text_encoder
    state = {name: weight.clone() for name, weight in encoder.state_dict().items()}
    encode(Conditioner(base("sd1")), LONG)
    assert all(torch.equal(weight, state[name]) for name, weight in encoder.state_dict().items())
    assert not encoder.get_input_embeddings()._forward_hooks
