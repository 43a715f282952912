"""The parts of the script that makes the small base: vocabulary, whitened latents, schedule, packing."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from examples.text_to_image.base.autoencoder import encode_all, new_autoencoder, train_autoencoder, whiten
from examples.text_to_image.base.denoiser import Schedule, averaged, new_scheduler, new_state, train_denoiser
from examples.text_to_image.base.packing import pack, size
from examples.text_to_image.base.pool import draw_pool, open_pool
from examples.text_to_image.base.vocabulary import learn_merges, make_tokenizer
from examples.text_to_image.scenes import is_held_out
from examples.text_to_image.scenes.captions import all_wordings
from transformers import CLIPTokenizer

from loraloom.tasks.diffusion.base import load_diffusion


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> CLIPTokenizer:
    return make_tokenizer(all_wordings(), tmp_path_factory.mktemp("words"))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    folder = tmp_path_factory.mktemp("pool")
    draw_pool(folder, 24, seed=3)
    return open_pool(folder).pictures


def test_every_word_of_the_captions_is_one_token(tokenizer: CLIPTokenizer) -> None:
    assert len(tokenizer) <= 1500
    assert len(tokenizer("a red house on a meadow at night").input_ids) == 10
    assert tokenizer("Red House").input_ids == tokenizer("red house").input_ids


@pytest.mark.parametrize("text", ["Xylophone", "ñ 漢字 😀", "(a:1.3), [b|c]\n\t\x00", "Smörgås ½ ﬁ"])
def test_any_text_is_tokenised_without_loss(tokenizer: CLIPTokenizer, text: str) -> None:
    tokens = tokenizer(text).input_ids
    assert tokens[0] == tokenizer.bos_token_id
    assert tokens[-1] == tokenizer.eos_token_id
    assert tokenizer.eos_token_id not in tokens[:-1]
    kept, given = ("".join(words.lower().split()) for words in (tokenizer.decode(tokens[1:-1]), text))
    assert kept == given


def test_padding_and_marks_are_clips(tokenizer: CLIPTokenizer) -> None:
    tokens = tokenizer("a cat", padding="max_length", truncation=True, max_length=77).input_ids
    assert len(tokens) == tokenizer.model_max_length == 77
    assert set(tokens[4:]) == {tokenizer.eos_token_id} == {tokenizer.pad_token_id}
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (len(tokenizer) - 2, len(tokenizer) - 1)


def test_merges_come_by_frequency() -> None:
    assert learn_merges(["ab ab", "ab", "cb"])[0] == ("a", "b</w>")
    assert learn_merges(["x"]) == []


def test_the_pool_holds_nothing_that_is_held_out(tmp_path: Path) -> None:
    draw_pool(tmp_path, 12, seed=1)
    pool = open_pool(tmp_path)
    assert pool.pictures.shape == (12, 64, 64, 3)
    assert not any(is_held_out(scene.colour, scene.subject, scene.place) for scene in pool.scenes)
    before = (tmp_path / "pictures.npy").stat().st_mtime_ns
    draw_pool(tmp_path, 99)
    assert (tmp_path / "pictures.npy").stat().st_mtime_ns == before


def test_whitened_latents_are_white_and_decode_as_before(pictures: np.ndarray) -> None:
    torch.manual_seed(0)
    model = new_autoencoder().eval()
    before = encode_all(model, pictures)
    with torch.no_grad():
        shown = model.decode(before[:2]).sample
        whiten(model, pictures)
        after = encode_all(model, pictures)
        again = model.decode(after[:2]).sample
    flat = after.permute(1, 0, 2, 3).flatten(1)
    assert torch.allclose(torch.cov(flat), torch.eye(4), atol=1e-2)
    assert flat.mean(dim=1).abs().max() < 1e-2
    assert torch.allclose(shown, again, atol=1e-3)


def test_the_autoencoder_learns_and_its_decoder_alone_too(pictures: np.ndarray) -> None:
    said: list[str] = []
    model = train_autoencoder(pictures, minutes=0.02, batch=4, say=said.append)
    assert said[-1].startswith("autoencoder: ")
    encoder = [weight.clone() for weight in model.encoder.parameters()]
    decoder = [weight.clone() for weight in model.decoder.parameters()]
    train_autoencoder(pictures, minutes=0.02, batch=4, start=model, decoder_only=True, say=said.append)
    assert all(torch.equal(a, b) for a, b in zip(encoder, model.encoder.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(decoder, model.decoder.parameters(), strict=True))


def test_the_schedule_ends_in_noise() -> None:
    scheduler = new_scheduler()
    assert scheduler.alphas_cumprod[-1].sqrt() < 0.01
    assert scheduler.config.prediction_type == "v_prediction"


def test_training_lowers_the_loss_goes_on_and_packs(tokenizer: CLIPTokenizer, tmp_path: Path) -> None:
    latents = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0)).repeat(8, 1, 1, 1)
    state = new_state(tokenizer, 1e-3)

    def captions(chosen: object, rng: random.Random) -> list[str]:
        return ["a red house"] * 8

    schedule = Schedule(minutes=60, batch=8, steps=4)
    assert schedule.rate_at(state) < schedule.rate
    train_denoiser(state, tokenizer, latents, captions, schedule)
    state.save(tmp_path / "state.pt")
    again = new_state(tokenizer, 1e-3, seed=1)
    again.load(tmp_path / "state.pt")
    assert again.step == 4
    assert all(torch.equal(a, b) for a, b in zip(state.trained(), again.trained(), strict=True))
    unet, encoder = averaged(again, tokenizer)
    (tmp_path / "base" / "styles").mkdir(parents=True)
    pack(tmp_path / "base", new_autoencoder(), unet, encoder, tokenizer)
    pack(tmp_path / "base", new_autoencoder(), unet, encoder, tokenizer)
    assert (tmp_path / "base" / "styles").is_dir()
    assert size(tmp_path / "base") < 12_000_000
    assert not (tmp_path / "base.part").exists()
    diffusion = load_diffusion(str(tmp_path / "base"))
    assert (diffusion.kind, diffusion.default_size, diffusion.prediction_type) == ("sd1", (64, 64), "v_prediction")
