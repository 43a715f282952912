"""SD 3 and Flux: diffusers' own encoding, and plain words on what has no effect."""

from __future__ import annotations

import pytest
import torch

from loraloom.imaging.conditioning import Conditioner, EmbeddingFolder
from loraloom.imaging.prompt import parse_prompt


def schedule(conditioner, text, steps=20, **more):
    return conditioner.conditionings(parse_prompt(text, steps=steps), steps, **more)


def by_diffusers(base, text):
    if base.kind == "flux":
        hidden, pooled, _ = base.pipeline.encode_prompt(text)
    else:
        hidden, _, pooled, _ = base.pipeline.encode_prompt(text, None, None, do_classifier_free_guidance=False)
    return hidden[0], pooled[0]


@pytest.mark.parametrize("kind", ["flux", "sd3"])
def test_a_prompt_is_encoded_by_diffusers(base, kind):
    found = schedule(Conditioner(base(kind)), "a cat in snow")
    hidden, pooled = by_diffusers(base(kind), "a cat in snow")
    (one,) = found.at(1)
    assert torch.equal(one.hidden, hidden) and torch.equal(one.pooled, pooled)
    assert one.chunks == 1 and not found.warnings


@pytest.mark.parametrize("kind", ["flux", "sd3"])
def test_weights_and_breaks_are_said_to_have_no_effect(base, kind):
    found = schedule(Conditioner(base(kind)), "a (cat:1.3) BREAK snow")
    hidden, _ = by_diffusers(base(kind), "a cat snow")
    assert torch.equal(found.at(1)[0].hidden, hidden)
    weights, breaks = found.warnings
    assert "weights in a prompt have no effect" in weights and "BREAK has no effect" in breaks


def test_schedules_work_and_are_remembered(base):
    conditioner = Conditioner(base("flux"))
    found = schedule(conditioner, "a [cat:dog:5]")
    assert torch.equal(found.at(5)[0].hidden, by_diffusers(base("flux"), "a cat")[0])
    assert torch.equal(found.at(6)[0].hidden, by_diffusers(base("flux"), "a dog")[0])
    schedule(conditioner, "a dog")
    assert conditioner.encoded == 2
    schedule(conditioner, "a dog", version=1)
    assert conditioner.encoded == 3


def test_what_is_cut_off_is_said(base):
    conditioner = Conditioner(base("sd3"))
    assert not schedule(conditioner, "cat").warnings
    (warning,) = schedule(conditioner, "cat " * 100).warnings
    assert "after the first 255 was not used" in warning
    count, chunks = conditioner.token_count("cat")
    assert 1 <= count <= 4 and chunks == 1


def test_an_embedding_that_is_named_is_said_to_be_unused(base, embed, folder):
    embed("badhandv4", 3, 16)
    conditioner = Conditioner(base("flux"), EmbeddingFolder(folder))
    (warning,) = schedule(conditioner, "cat, BadHandV4").warnings
    assert "'badhandv4' is not used: Flux bases take no textual-inversion embeddings" in warning
    assert not schedule(conditioner, "cat").warnings
