"""Tiny SD 1.x, SD 2.x and SDXL bases: what trains, what is computed, what other programs make of the files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.imaging import tiny
from torch.nn import functional

from loraloom.adapters import AdapterSet, attach
from loraloom.data.config import DataConfig
from loraloom.errors import BaseModelError, ConfigError, TargetError
from loraloom.formats import load_any
from loraloom.formats.tensorfile import read_tensors
from loraloom.tasks.base import BaseModel, DrawsSamples, LeavesFiles, WritesExports
from loraloom.tasks.diffusion.base import Diffusion
from loraloom.tasks.diffusion.latents import LatentShelf
from loraloom.tasks.diffusion.texts import Texts
from loraloom.tasks.text_to_image import TextToImage
from loraloom.training.config import TrainConfig
from loraloom.training.optim import parameter_groups, scaled_rates

from .painters import NARROW, draw_folder, make_task, ready, save_base

KINDS = ("sd1", "sd2", "sdxl")


@dataclass(frozen=True)
class Studio:
    """Saved bases, pictures and a folder for tensors, shared by the tests of this file."""

    root: Path

    def base(self, kind: str) -> Path:
        """The folder of a base, made when it is first asked for."""
        found = self.root / f"tiny-{kind}"
        return found if found.exists() else save_base(kind, self.root)

    @property
    def pictures(self) -> Path:
        """Four pictures of two shapes."""
        return self.root / "pictures"

    def task(self, **options: Any) -> TextToImage:
        """A task that shares its tensors with the others."""
        return make_task(self.root / "cache", **options)

    def ready(self, kind: str, **options: Any) -> tuple[TextToImage, BaseModel, Any]:
        """A task, a base and one training batch."""
        task = self.task(**options)
        base, batch = ready(task, self.base(kind), self.pictures)
        return task, base, batch


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Studio:
    root = tmp_path_factory.mktemp("studio")
    draw_folder(root / "pictures", 4, sizes=((64, 64), (100, 64)))
    return Studio(root)


def adapt(base: BaseModel, **settings: Any) -> AdapterSet:
    return attach(base.model, rank=4, targets=base.targets, heads=base.heads, **settings)


def learn(task: TextToImage, base: BaseModel, adapters: AdapterSet, batch: Any, steps: int = 12) -> list[float]:
    optimizer = torch.optim.Adam([p for p in adapters.parameters() if p.requires_grad], 2e-3)
    losses = []
    for _ in range(steps):
        loss, count = task.loss(base.model, batch)
        optimizer.zero_grad()
        (loss / count).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(float(loss.detach()) / count)
    return losses


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_of_one_batch_falls_and_nothing_else_moves(studio: Studio, kind: str) -> None:
    task, base, batch = studio.ready(kind)
    assert isinstance(task, DrawsSamples) and isinstance(task, LeavesFiles) and isinstance(task, WritesExports)
    before = {name: tensor.clone() for name, tensor in base.model.state_dict().items()}
    adapters = adapt(base)
    losses = learn(task, base, adapters, batch)
    assert losses[-1] < 0.99 * losses[0]
    assert all(
        torch.equal(base.model.get_parameter(name), tensor) for name, tensor in before.items() if "num_b" not in name
    )
    assert {path.split(".")[0] for path, _ in adapters.named_parameters("default")} == {"unet"}
    leaves = {site.path.rpartition(".")[2] for site in adapters.plan("default").sites}
    assert leaves == {"to_q", "to_k", "to_v", "0", "proj", "2"}


def test_groups_are_of_one_size_and_count_every_picture(studio: Studio) -> None:
    task, base, batch = studio.ready("sd1")
    shapes = [tuple(group["latents"].shape) for group in batch["groups"]]
    assert shapes == [(2, 4, 8, 8), (2, 4, 6, 10)]
    assert batch["count"] == 4
    rows = torch.cat([group["rows"] for group in batch["groups"]]).tolist()
    assert sorted(rows) == [0, 1, 2, 3]
    assert task.outputs(base.model, batch).shape == (4, 256)


@pytest.mark.parametrize("prediction", ["epsilon", "v", "flow"])
def test_the_loss_is_the_formula(studio: Studio, prediction: str) -> None:
    task, base, batch = studio.ready("sd1", prediction=prediction, min_snr=5.0, buckets=False)
    loss, count = task.loss(base.model, batch)
    [group] = batch["groups"]
    unet, bench = base.model["unet"], base.processor
    total = 0.0
    for row in range(4):
        x, e = group["latents"][row].double(), group["noise"][0, row].double()
        time = group["times"][0, row]
        if prediction == "flow":
            share = float(time) / 1000
            seen, wanted, weight = (1 - share) * x + share * e, e - x, 1.0
        else:
            level = float(bench.diffusion.pipeline.scheduler.alphas_cumprod[int(time)])
            seen = level**0.5 * x + (1 - level) ** 0.5 * e
            ratio = level / (1 - level)
            weight = min(ratio, 5.0) / ratio if prediction == "epsilon" else min(ratio, 5.0) / (ratio + 1)
            wanted = e if prediction == "epsilon" else level**0.5 * e - (1 - level) ** 0.5 * x
        hidden = group["conditions"]["hidden"][row : row + 1]
        said = unet(seen.float()[None], time[None], encoder_hidden_states=hidden).sample[0]
        total += weight * float(functional.mse_loss(said.double(), wanted))
    assert count == 4
    assert float(loss) == pytest.approx(total, rel=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_texts_are_encoded_as_by_the_pipeline(studio: Studio, kind: str) -> None:
    diffusion = tiny.diffusion(kind)
    for text in ("a red house", "", "the sea " * 60):
        found = Texts(diffusion).conditions(text)
        told = diffusion.pipeline.encode_prompt(
            text, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        torch.testing.assert_close(found["hidden"], told[0], rtol=0, atol=1e-6)
        if kind == "sdxl":
            torch.testing.assert_close(found["pooled"], told[2], rtol=0, atol=1e-6)
    assert Texts(diffusion).tokens("the sea " * 60)[1] and not Texts(diffusion).tokens("the sea")[1]


def test_latents_are_what_the_autoencoder_makes_and_come_back_as_the_picture(studio: Studio) -> None:
    _, base, batch = studio.ready("sdxl", sample_latents=False, buckets=False)
    bench = base.processor
    vae = bench.diffusion.vae
    from diffusers.image_processor import VaeImageProcessor
    from PIL import Image

    picture = Image.open(studio.pictures / "0.png")
    pixels = VaeImageProcessor().preprocess(picture)
    wanted = vae.encode(pixels).latent_dist.mean * vae.config.scaling_factor
    torch.testing.assert_close(batch["groups"][0]["latents"][:1], wanted, rtol=0, atol=1e-5)


def test_convolutions_and_text_encoders_train_on_request(studio: Studio) -> None:
    task, base, batch = studio.ready("sdxl", convolutions=True, train_text_encoder=True, text_encoder_rate=0.1)
    assert base.rates == {"text_encoder": 0.1, "text_encoder_2": 0.1}
    adapters = adapt(base)
    paths = {site.path for site in adapters.plan("default").sites}
    assert "unet.down_blocks.0.resnets.0.conv1" in paths
    assert any(path.startswith("text_encoder_2.") and path.endswith("q_proj") for path in paths)
    loss, _ = task.loss(base.model, batch)
    loss.backward()  # type: ignore[no-untyped-call]
    named = dict(adapters.named_parameters("default"))
    still = [
        path
        for path, parameter in named.items()
        if path.endswith("B") and (parameter.grad is None or not parameter.grad.any())
    ]
    # The last layer of SDXL's first encoder is not looked at, and only the second's pooled output sees its own.
    assert all(path.startswith("text_encoder.") and "encoder.layers.2." in path for path in still)
    ours = {id(parameter) for parameter in named.values()}
    assert not [name for name, p in base.model.named_parameters() if id(p) not in ours and p.grad is not None]


def test_text_encoders_have_a_rate_of_their_own(studio: Studio) -> None:
    _, base, _ = studio.ready("sd1", train_text_encoder=True, text_encoder_rate=0.1)
    adapters = adapt(base)
    config = TrainConfig.model_validate({"base": "x", "data": {"train": "x"}, "out": "x", "learning_rate": 0.01})
    named = dict(adapters.named_parameters("default"))
    groups = scaled_rates(parameter_groups(adapters.parameters_by_role("default"), config), named, base.rates)
    rates = {id(parameter): group["peak"] for group in groups for parameter in group["params"]}
    assert len(rates) == len(named)
    for path, parameter in named.items():
        assert rates[id(parameter)] == pytest.approx(0.001 if path.startswith("text_encoder") else 0.01)


def test_less_memory_for_more_time_gives_the_same(studio: Studio) -> None:
    gradients = []
    for thrifty in (False, True):
        task, base, batch = studio.ready("sd1", gradient_checkpointing=thrifty, buckets=False)
        adapters = adapt(base)
        task.loss(base.model, batch)[0].backward()  # type: ignore[no-untyped-call]
        gradients.append([parameter.grad for parameter in adapters.parameters()])
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)


def test_ids_give_the_same_as_embeddings_kept(studio: Studio) -> None:
    for kind in ("sd1", "sdxl"):
        _, frozen, batch = studio.ready(kind, buckets=False)
        task, trained, by_ids = studio.ready(kind, buckets=False, train_text_encoder=True)
        assert "hidden" not in by_ids["groups"][0]["conditions"]
        ours, theirs = task.loss(trained.model, by_ids)[0], task.loss(frozen.model, batch)[0]
        assert float(ours) == pytest.approx(float(theirs), rel=1e-5)


# --- chance


def test_draws_come_from_the_global_generator_alone_and_scores_from_none(studio: Studio) -> None:
    options = {"flip": True, "caption_dropout": 0.3, "caption_orders": 3, "noise_offset": 0.1}
    task, base, _ = studio.ready("sd1", **options)
    features = task.encode(task.read(data_of(studio), seed=0).train, base).features

    def batch(seed: int, training: bool) -> Any:
        torch.manual_seed(seed)
        return task.collate(features, base, training=training)

    assert same(batch(1, True), batch(1, True))
    assert not same(batch(1, True), batch(2, True))
    assert same(batch(1, False), batch(2, False))
    first = task.predict(base.model, batch(1, False), base)
    assert first == task.predict(base.model, batch(2, False), base)
    assert all(len(one.by_time) == 4 for one in first)
    alone = task.predict(base.model, task.collate(features[2:3], base), base)
    assert alone[0].loss == pytest.approx(first[2].loss, rel=1e-4)


def data_of(studio: Studio) -> DataConfig:
    return DataConfig(train=str(studio.pictures), eval=str(studio.pictures))


def same(one: Any, other: Any) -> bool:
    """Whether two batches hold the same, bit for bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return all(map(same, one, other))
    return bool(one == other)


def test_mirrored_pictures_and_empty_captions_turn_up(studio: Studio) -> None:
    task, base, _ = studio.ready("sd1", flip=True, caption_dropout=0.5, sample_latents=False, buckets=False)
    features = task.encode(task.read(data_of(studio), seed=0).train, base).features
    torch.manual_seed(0)
    batches = [task.collate(features, base, training=True)["groups"][0] for _ in range(12)]
    latents = torch.stack([batch["latents"][0] for batch in batches]).unique(dim=0)
    hidden = torch.stack([batch["conditions"]["hidden"][0] for batch in batches]).unique(dim=0)
    assert len(latents) == len(hidden) == 2
    assert any(torch.equal(row, base.processor.conditions.rows([""])["hidden"][0]) for row in hidden)


def test_noise_offset_moves_whole_channels(studio: Studio) -> None:
    _, _, plain = studio.ready("sd1", buckets=False)
    _, _, moved = studio.ready("sd1", buckets=False, noise_offset=0.5)
    change = moved["groups"][0]["noise"] - plain["groups"][0]["noise"]
    torch.testing.assert_close(change, change.mean(dim=(3, 4), keepdim=True).expand_as(change), rtol=0, atol=1e-6)
    assert change.abs().mean() > 0.1


# --- tensors kept


def test_a_second_run_asks_neither_autoencoder_nor_encoder(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, first = studio.ready("sd2")

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("computed again")

    monkeypatch.setattr(LatentShelf, "_encode", refuse)
    monkeypatch.setattr(Texts, "conditions", refuse)
    task, base, second = studio.ready("sd2")
    assert same(first, second)
    assert not [note for note in task.encode([], base).notes if "computed" in note]


def test_another_size_or_base_is_another_entry(studio: Studio) -> None:
    _, base, _ = studio.ready("sd1")
    bench = base.processor
    values = {"file": str(studio.pictures / "0.png"), "sha256": "0" * 64, "width": 64, "height": 64}
    shelves = [
        LatentShelf(bench.diffusion, fingerprint, bench.latents.cache, size, buckets=False)
        for fingerprint, size in (("a", (64, 64)), ("b", (64, 64)), ("a", (32, 32)))
    ]
    keys = {shelf.place(values, mirrored=True).key for shelf in shelves}
    assert len(keys) == 3


# --- DreamBooth


def test_pictures_of_the_class_are_made_once_and_train_beside_the_subject(studio: Studio, tmp_path: Path) -> None:
    options = {
        "instance_prompt": "a photo of sks cat",
        "class_prompt": "a photo of a cat",
        "class_pictures": 3,
        "prior_weight": 0.5,
        "sample_steps": 2,
        "buckets": False,
    }
    task = make_task(tmp_path, **options)
    base, batch = ready(task, studio.base("sd1"), studio.pictures)
    [group] = batch["groups"]
    assert (len(group["rows"]), batch["count"]) == (8, 4)
    assert group["weights"][0].tolist() == [1.0] * 4 + [0.5] * 4
    made = sorted(tmp_path.glob("class-pictures/*/*.png"))
    times = [path.stat().st_mtime_ns for path in made]
    assert len(made) == 3 and len({path.read_bytes() for path in made}) == 3
    own, _ = task.loss(base.model, batch)
    halves = [{**group, **{k: v[:, :4] for k, v in group.items() if k in PER_TIME}}, dict(group)]
    halves[1] |= {k: v[:, 4:] for k, v in group.items() if k in PER_TIME}
    for half, part in zip(halves, (slice(0, 4), slice(4, 8)), strict=True):
        half |= {"latents": group["latents"][part], "conditions": {"hidden": group["conditions"]["hidden"][part]}}
    parts = [float(task.loss(base.model, {"groups": [half], "count": 4})[0]) for half in halves]
    assert float(own) == pytest.approx(sum(parts), rel=1e-4)
    again = make_task(tmp_path, **options)
    ready(again, studio.base("sd1"), studio.pictures)
    assert [path.stat().st_mtime_ns for path in made] == times
    # the same pictures as the user's own
    folder = make_task(tmp_path / "other", **{**options, "class_folder": str(made[0].parent)})
    loaded, given = ready(folder, studio.base("sd1"), studio.pictures)
    assert len(loaded.processor.class_pictures) == 3
    assert same(given["groups"], batch["groups"])


PER_TIME = ("noise", "times", "signal", "spread", "weights")


# --- a new word


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_a_word_is_learnt_and_diffusers_reads_it(studio: Studio, kind: str, tmp_path: Path) -> None:
    options = {"train_embedding": "<mine>", "embedding_init": "cat", "embedding_vectors": 2}
    task, base, batch = studio.ready(kind, instance_prompt="a photo of <mine> house", **options)
    assert base.targets == () and base.heads == ("new_word",)
    adapters = adapt(base)
    losses = learn(task, base, adapters, batch, steps=20)
    assert losses[-1] < losses[0]
    trained = dict(adapters.named_parameters("default"))
    assert {name.split("|")[0] for name in trained} == {
        f"new_word.{name}" for name in base.processor.diffusion.text_encoders
    }
    assert task.write_exports(base, adapters, "default", tmp_path, "run") == []
    assert [path.name for path in tmp_path.iterdir()] == ["mine.safetensors"]
    tensors, _ = read_tensors(tmp_path / "mine.safetensors")
    keys = {"text_encoder": "emb_params" if kind == "sd1" else "clip_l", "text_encoder_2": "clip_g"}
    assert set(tensors) == ({"emb_params"} if kind == "sd1" else {"clip_l", "clip_g"})
    first = base.processor.diffusion.text_encoders["text_encoder"].get_input_embeddings().weight
    ids = base.processor.diffusion.tokenizers["text_encoder"]("cat", add_special_tokens=False).input_ids
    assert not torch.allclose(tensors[keys["text_encoder"]][0], first[ids[0]])

    theirs = tiny.MAKERS[kind](**({} if kind == "sdxl" else NARROW))
    for name in base.processor.diffusion.text_encoders:
        own = {
            "text_encoder": getattr(theirs, name),
            "tokenizer": getattr(theirs, name.replace("text_encoder", "tokenizer")),
        }
        theirs.load_textual_inversion({"emb_params": tensors[keys[name]]}, token="<mine>", **own)
    told = theirs.encode_prompt(
        "a <mine> tree", device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False
    )
    found = base.processor.texts.conditions("a <mine> tree")
    torch.testing.assert_close(found["hidden"], told[0], rtol=0, atol=1e-5)


def test_a_word_may_be_learnt_with_an_adapter(studio: Studio, tmp_path: Path) -> None:
    options = {"train_embedding": "<mine>", "embedding_only": False, "instance_prompt": "<mine> house"}
    task, base, batch = studio.ready("sd1", **options, also=["kohya"])
    adapters = adapt(base)
    learn(task, base, adapters, batch, steps=2)
    assert task.write_exports(base, adapters, "default", tmp_path, "run") == []
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"mine.safetensors", "run.safetensors", "pytorch_lora_weights.safetensors"}


# --- other programs


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_diffusers_computes_what_was_trained_from_every_file(studio: Studio, kind: str, tmp_path: Path) -> None:
    task, base, batch = studio.ready(kind, convolutions=True, train_text_encoder=True, also=["kohya"], buckets=False)
    adapters = adapt(base, alpha=6.0)
    learn(task, base, adapters, batch, steps=3)
    assert task.write_exports(base, adapters, "default", tmp_path, "mine") == []
    [group] = task.collate(features_of(task, base, studio), base)["groups"]
    ours = said(base.processor.diffusion.denoiser, base.processor.texts.conditions("a red house"), group)
    for name in ("pytorch_lora_weights.safetensors", "mine.safetensors"):
        pipeline = tiny.MAKERS[kind](**({} if kind == "sdxl" else NARROW))
        pipeline.load_lora_weights(str(tmp_path), weight_name=name)
        theirs = said(pipeline.unet, Texts(Diffusion.of(pipeline)).conditions("a red house"), group)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
        assert load_any(tiny.diffusion(kind, **({} if kind == "sdxl" else NARROW)).parts, tmp_path / name).names
    with adapters.disable():
        plain = said(base.processor.diffusion.denoiser, base.processor.texts.conditions("a red house"), group)
    assert (ours - plain).abs().max() > 1e-3


def features_of(task: TextToImage, base: BaseModel, studio: Studio) -> Any:
    return task.encode(task.read(data_of(studio), seed=0).train[:1], base).features


@torch.no_grad()
def said(unet: Any, conditions: dict[str, torch.Tensor], group: dict[str, Any]) -> torch.Tensor:
    more: dict[str, Any] = {}
    if "pooled" in conditions:
        more["added_cond_kwargs"] = {"text_embeds": conditions["pooled"], "time_ids": group["conditions"]["time_ids"]}
    found: torch.Tensor = unet(group["latents"], 500, encoder_hidden_states=conditions["hidden"], **more).sample
    return found


# --- bases


def test_what_cannot_be_a_base_is_refused(studio: Studio, tmp_path: Path) -> None:
    task = studio.task()
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    for name, told in ((str(tmp_path), "no text-to-image pipeline"), (str(tmp_path / "absent"), "there is no folder")):
        with pytest.raises(BaseModelError, match=told):
            task.load(name)
    with pytest.raises(ConfigError, match="quantize"):
        task.load(str(studio.base("sd1")), quantize="int8")
    with pytest.raises(BaseModelError, match="base_config: .* is no folder"):
        task.load(str(tmp_path / "absent"), from_config=True)
    base = task.load(str(studio.base("sd1")))
    with pytest.raises(TargetError, match="q_proj"):
        attach(base.model, rank=2, targets=["to_q", "q_proj"])


def test_bf16_changes_the_denoiser_and_spares_the_autoencoder(studio: Studio) -> None:
    task = studio.task(train_text_encoder=True)
    base, batch = ready(task, studio.base("sdxl"), studio.pictures, dtype=torch.bfloat16)
    bench = base.processor
    assert bench.diffusion.dtype == torch.bfloat16 and bench.diffusion.vae.dtype == torch.float32
    exact = studio.ready("sdxl", train_text_encoder=True)
    rounded, whole = (float(t.loss(b.model, x)[0]) for t, b, x in ((task, base, batch), exact))
    assert rounded == pytest.approx(whole, rel=0.05) and rounded != whole
