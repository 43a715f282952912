"""Embeddings in prompts: against diffusers' own loader, in float64, and in the two prompts people really write."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file
from tests.imaging.conditioning import tiny
from tests.imaging.conditioning.plain import plain_conditioning

from loraloom.imaging.conditioning import Conditioner, EmbeddingFolder
from loraloom.imaging.prompt import parse_prompt

POSITIVE = (
    "//quality, (masterpiece:1.3), (detailed), ((,best quality,)),//,cute,1girl,//,brown cat ears,"
    "animal ear fluff,(light_brown hair:1.3),(red hair: 1.1),(red inner hair: 1.4), (straight bangs: 1.4),(,"
    "long_hair,single braid :1.4),(Ahoge),(detailed eyes,blue_eyes:1.4),medium chest,//, (yellow hairpin,"
    "crescent-shaped hairpin:1.4),off_shoulders,large red ribbon,(idol costume:1.4),thigh strap,"
    "frilled skirt,gloves,//,blush,smiling,upper_teeth,looking_down,//,hand_up,(holding microphone:1.3),"
    "(standing on stage),//,indoors,crowd of audience,Glow stick,scenery,colorful light particles,"
    "(colorful lights:1.3),(laser light:1.4),glow_in_the_dark,cowboy_shot,dynamic angle"
)
NEGATIVE = (
    "NSFW,text,(worst quality:1.331), (low quality:1.331), (normal quality:1.331), large head, extra digits,"
    " bad eye, extra fingers, fewer fingers, strange fingers, ((bad hands)), Strange eyes, Many hands,"
    " (Many arms), EasyNegativeV2, ng_deepnegative_v1_75t, pregnancy, badhandv4, six fingers, fused fingers,"
    " unclear eyes,poorly drawn,cloned face,bad face,"
)
SIZES = {"EasyNegativeV2": 16, "ng_deepnegative_v1_75t": 75, "badhandv4": 6}
NEW_TOKEN = "<zorg>"


def schedule(conditioner, text, steps=20, **more):
    return conditioner.conditionings(parse_prompt(text, steps=steps), steps, **more)


def spread(text, count):
    """The prompt as diffusers wants it: a token per vector is put there by its own `maybe_convert_prompt`."""
    return text.replace("zorgname", NEW_TOKEN) if count else text


@pytest.mark.parametrize("count", [1, 8])
def test_sd1_is_what_diffusers_loads(embed, folder, count):
    base = tiny.make_sd()
    tensors = embed("zorgname", count, 16)
    text = "a photo of zorgname, in snow"
    found = schedule(Conditioner(base, EmbeddingFolder(folder)), text)
    pipeline = base.pipeline
    pipeline.load_textual_inversion(tensors, token=NEW_TOKEN)
    expected, _ = pipeline.encode_prompt(spread(text, count), "cpu", 1, False)
    torch.testing.assert_close(found.at(1)[0].hidden, expected[0], rtol=0, atol=1e-6)
    assert found.embeddings == ("zorgname",) and not found.warnings


def test_sdxl_is_what_diffusers_loads(embed, folder):
    base = tiny.make_sdxl()
    tensors = embed("zorgname", 8, 16, 24)
    text = "a photo of zorgname, in snow"
    (found,) = schedule(Conditioner(base, EmbeddingFolder(folder)), text).at(1)
    pipeline = base.pipeline
    for key, number in (("clip_l", ""), ("clip_g", "_2")):
        own = {name: getattr(pipeline, name + number) for name in ("text_encoder", "tokenizer")}
        pipeline.load_textual_inversion(tensors[key], token=NEW_TOKEN, **own)
    hidden, _, pooled, _ = pipeline.encode_prompt(spread(text, 8), do_classifier_free_guidance=False)
    torch.testing.assert_close(found.hidden, hidden[0], rtol=0, atol=1e-6)
    torch.testing.assert_close(found.pooled, pooled[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["sd1", "sd2"])
def test_both_real_prompts_run_with_their_three_embeddings(base, embed, folder, kind):
    width = 16 if kind == "sd1" else 24
    vectors = {name: embed(name, count, width)["emb_params"] for name, count in SIZES.items()}
    conditioner = Conditioner(base(kind), EmbeddingFolder(folder))
    found = schedule(conditioner, NEGATIVE, negative=True)
    assert found.embeddings == tuple(SIZES) and not found.warnings
    pipeline = base(kind).pipeline
    for text, one in ((POSITIVE, schedule(conditioner, POSITIVE)), (NEGATIVE, found)):
        (part,) = parse_prompt(text, steps=1).parts
        segments = [(segment.text, segment.weight) for segment in part.schedule[0].segments]
        expected = plain_conditioning(segments, pipeline.text_encoder, pipeline.tokenizer, vectors)
        assert one.at(1)[0].hidden.shape == expected.shape
        assert (one.at(1)[0].hidden.double() - expected).abs().max() < 5e-5
    without = schedule(Conditioner(base(kind)), NEGATIVE)
    assert without.at(1)[0].chunks < found.at(1)[0].chunks, "75 vectors take a chunk of their own"


def test_each_of_the_three_changes_what_comes_out(base, embed, folder):
    results = []
    for name, count in SIZES.items():
        embed(name, count, 16)
        results.append(schedule(Conditioner(base("sd1"), EmbeddingFolder(folder)), NEGATIVE).at(1)[0].hidden)
    assert len({(result.shape, result.sum().item()) for result in results}) == 3


def test_sdxl_runs_both_prompts(base, embed, folder):
    for name, count in SIZES.items():
        embed(name, count, 16, 24)
    conditioner = Conditioner(base("sdxl"), EmbeddingFolder(folder))
    found = schedule(conditioner, NEGATIVE)
    assert found.embeddings == tuple(SIZES)
    assert found.at(1)[0].hidden.shape[1] == 40 and torch.isfinite(found.at(1)[0].hidden).all()
    assert not schedule(conditioner, POSITIVE).embeddings


def test_the_weight_falls_on_every_vector(base, embed, folder):
    embed("badhandv4", 3, 16)
    conditioner = Conditioner(base("sd1"), EmbeddingFolder(folder), rescale_mean=False)
    plain = schedule(conditioner, "cat badhandv4").at(1)[0].hidden
    weighted = schedule(conditioner, "cat (badhandv4:1.5)").at(1)[0].hidden
    factors = torch.ones(77, 1)
    factors[2:5] = 1.5
    torch.testing.assert_close(weighted, plain * factors)


def test_a_wrong_width_is_said_and_the_words_stay_words(base, embed, folder):
    embed("badhandv4", 3, 1024)
    conditioner = Conditioner(base("sd1"), EmbeddingFolder(folder))
    found = schedule(conditioner, "cat (badhandv4:1.1), badhandv4")
    assert not found.embeddings
    (warning,) = found.warnings
    assert str(folder / "badhandv4.safetensors") in warning
    assert "1024 wide (SD 2.x)" in warning and "takes 16 wide" in warning
    plain = schedule(Conditioner(base("sd1")), "cat (badhandv4:1.1), badhandv4")
    assert torch.equal(found.at(1)[0].hidden, plain.at(1)[0].hidden)
    assert not schedule(conditioner, "cat").warnings, "said where it is named, not everywhere"


@pytest.mark.parametrize(("kind", "widths"), [("sd1", (16, 24)), ("sdxl", (16,)), ("sdxl", (24, 16)), ("sd2", (16,))])
def test_an_embedding_of_another_family_is_said(base, embed, folder, kind, widths):
    embed("badhandv4", 3, *widths)
    (warning,) = schedule(Conditioner(base(kind), EmbeddingFolder(folder)), "badhandv4").warnings
    assert "is not used" in warning and f"base 'tiny {kind}' takes" in warning


def test_a_pickle_that_is_named_is_said(base, folder, embed):
    torch.save({"string_to_param": {"*": torch.randn(2, 16)}}, folder / "badhandv4.pt")
    (warning,) = schedule(Conditioner(base("sd1"), EmbeddingFolder(folder)), "badhandv4").warnings
    assert "is a pickle, which can run code when it is read; convert it once with" in warning


def test_a_shorter_name_stands_in_for_one_that_cannot_be_used(base, embed, folder):
    embed("badhandv4", 3, 99)
    embed("badhandv", 2, 16)
    found = schedule(Conditioner(base("sd1"), EmbeddingFolder(folder)), "badhandv4")
    assert found.embeddings == ("badhandv",) and len(found.warnings) == 1


def test_more_vectors_than_a_chunk_holds_are_refused(base, embed, folder):
    embed("badhandv4", 76, 16)
    (warning,) = schedule(Conditioner(base("sd1"), EmbeddingFolder(folder)), "badhandv4").warnings
    assert warning.endswith("holds 76 vectors, a chunk has room for 75")


def test_a_file_that_changes_is_read_and_encoded_again(base, embed, folder):
    embed("badhandv4", 3, 16)
    conditioner = Conditioner(base("sd1"), EmbeddingFolder(folder))
    first = schedule(conditioner, "badhandv4").at(1)[0].hidden
    made = conditioner.encoded
    assert torch.equal(schedule(conditioner, "badhandv4").at(1)[0].hidden, first)
    assert conditioner.encoded == made
    embed("badhandv4", 4, 16)
    assert not torch.equal(schedule(conditioner, "badhandv4").at(1)[0].hidden, first)


def test_embeddings_count_as_their_vectors(base, embed, folder):
    embed("badhandv4", 70, 16)
    conditioner = Conditioner(base("sd1"), EmbeddingFolder(folder))
    assert conditioner.token_count("cat, badhandv4") == (72, 1)
    assert conditioner.token_count("a photo of the cat, badhandv4") == (75 + 70, 2)


def test_half_precision_vectors_serve_a_float32_base(base, embed, folder):
    tensors = embed("badhandv4", 3, 16)
    expected = schedule(Conditioner(base("sd1"), EmbeddingFolder(folder)), "badhandv4").at(1)[0].hidden
    save_file({"emb_params": tensors["emb_params"].bfloat16()}, folder / "badhandv4.safetensors")
    found = schedule(Conditioner(base("sd1"), EmbeddingFolder(folder)), "badhandv4").at(1)[0].hidden
    torch.testing.assert_close(found, expected, rtol=0.2, atol=0.2)
    assert not torch.equal(found, expected)
