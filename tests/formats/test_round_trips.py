"""Every pair of formats that can hold an adapter, for every family: ΔW comes back, factors where that is promised."""

from __future__ import annotations

import itertools
import warnings
from pathlib import Path

import pytest
import torch
from tests.formats.files import random
from torch import Tensor

from loraloom.errors import FormatError
from loraloom.formats import describe_adapter, read_any
from loraloom.formats.certificate import compare_updates
from loraloom.formats.convert import Conversion, convert
from loraloom.formats.updates import Update, as_peft, updates_of
from loraloom.formats.writing import Target, write_adapter

Shapes = dict[str, tuple[int, ...]]
WIDTH = 6
_UNET: Shapes = {
    "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q": (WIDTH, WIDTH),
    "unet.up_blocks.1.attentions.2.transformer_blocks.0.attn2.to_k": (WIDTH, 8),
    "unet.mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj": (12, WIDTH),
    "unet.down_blocks.0.resnets.1.conv1": (4, 5, 3, 3),
    "unet.up_blocks.0.upsamplers.0.conv": (5, 5, 3, 3),
    "unet.time_embedding.linear_1": (9, 4),
}
_CLIP: Shapes = {
    "text_encoder.text_model.encoder.layers.1.mlp.fc1": (12, WIDTH),
    "text_encoder.text_model.encoder.layers.0.self_attn.q_proj": (WIDTH, WIDTH),
}
_SECOND: Shapes = {"text_encoder_2.text_model.encoder.layers.0.self_attn.out_proj": (WIDTH, WIDTH)}
_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
_DOUBLE: Shapes = {
    **{f"transformer.transformer_blocks.2.attn.{name}": (WIDTH, WIDTH) for name in _ATTENTION},
    "transformer.transformer_blocks.2.ff.net.0.proj": (24, WIDTH),
    "transformer.transformer_blocks.2.ff.net.2": (WIDTH, 24),
    "transformer.transformer_blocks.2.ff_context.net.2": (WIDTH, 24),
    "transformer.transformer_blocks.2.norm1.linear": (36, WIDTH),
}
_T5 = "encoder.block.1.layer.0.SelfAttention.q"
FAMILIES: dict[str, Shapes] = {
    "sd1": {**_UNET, **_CLIP, "unet.mid_block.attentions.0.proj_in": (WIDTH, WIDTH, 1, 1)},
    "sd2": {**_UNET, **_CLIP, "unet.mid_block.attentions.0.proj_in": (WIDTH, WIDTH)},
    "sdxl": {**_UNET, **_CLIP, **_SECOND, "unet.add_embedding.linear_2": (4, 4)},
    "sd3": {
        **_DOUBLE,
        **_CLIP,
        **_SECOND,
        f"text_encoder_3.{_T5}": (WIDTH, WIDTH),
        "transformer.transformer_blocks.2.attn2.to_v": (WIDTH, WIDTH),
        "transformer.context_embedder": (WIDTH, 10),
    },
    "flux": {
        **_DOUBLE,
        **_CLIP,
        f"text_encoder_2.{_T5}": (WIDTH, WIDTH),
        **{f"transformer.single_transformer_blocks.0.attn.{name}": (WIDTH, WIDTH) for name in _ATTENTION[:3]},
        "transformer.single_transformer_blocks.0.proj_mlp": (24, WIDTH),
        "transformer.single_transformer_blocks.0.proj_out": (WIDTH, 30),
        "transformer.x_embedder": (WIDTH, 10),
        "transformer.time_text_embed.guidance_embedder.linear_1": (WIDTH, 10),
    },
    "plain": {
        "bert.encoder.layer.0.attention.self.query": (WIDTH, WIDTH),
        "bert.encoder.layer.1.output.dense": (WIDTH, 24),
        "transformer.h.0.attn.c_attn": (24, WIDTH),  # GPT-2's trunk has the name of diffusers' denoiser
    },
}
"""Family → layer → shape of its weight."""
HOLDERS: dict[str, tuple[str, ...]] = {
    **{family: ("kohya", "diffusers", "peft") for family in FAMILIES},
    "plain": ("peft", "loralib"),
}
LINEAR_HOLDERS = {**HOLDERS, **{family: (*HOLDERS[family], "loralib") for family in ("sd3", "flux")}}
"""The families without convolutions, which loralib has no word for."""
ALPHAS = {"one alpha": (2.0,), "alphas that differ": (2.0, 0.7, 3.0)}
PAIRS = [
    (family, first, second)
    for family, holders in LINEAR_HOLDERS.items()
    for first, second in itertools.product(holders, repeat=2)
]


def updates(family: str, alphas: tuple[float, ...] = (2.0,), dora: bool = False) -> list[Update]:
    """Random factors of rank 2 and 3 for every layer of a family."""
    made = []
    for at, (path, shape) in enumerate(FAMILIES[family].items()):
        rank, ones = 2 + at % 2, (1,) * (len(shape) - 2)
        a = random(rank, *shape[1:], seed=at)
        b = random(shape[0], rank, *ones, seed=100 + at)
        size = random(shape[0], seed=at).abs() + 0.5 if dora else None
        made.append(Update(path, a, b, alphas[at % len(alphas)], magnitude=size))
    return made


def place(folder: Path, form: str, number: int) -> Path:
    return folder / (f"{number}-{form}" if form == "peft" else f"{number}-{form}.safetensors")


def written(made: list[Update], folder: Path, form: str, family: str) -> Path:
    """The adapter as a file of one format."""
    target = place(folder, form, 0)
    kind = None if family == "plain" else family
    write_adapter(as_peft(made, folder / "memory", {}), Target(target, form, kind=kind))
    return target


def steps(source: Path, folder: Path, forms: tuple[str, ...], family: str) -> Path:
    """Convert from one format into the next; the last file."""
    for number, form in enumerate(forms, 1):
        target = place(folder, form, number)
        certificate = convert(Conversion(source, target, form, kind=None if family == "plain" else family))
        assert certificate.holds and certificate.largest <= 1e-6
        assert describe_adapter(target).format == form
        source = target
    return source


@pytest.mark.parametrize("alphas", ALPHAS)
@pytest.mark.parametrize(("family", "first", "second"), PAIRS)
def test_every_pair(family: str, first: str, second: str, alphas: str, tmp_path: Path) -> None:
    made = updates(family, ALPHAS[alphas])
    last = steps(written(made, tmp_path, first, family), tmp_path, (second, first), family)
    found = updates_of(read_any(last))[0]
    checks = compare_updates({update.path: update for update in made}, found)
    assert {check.path for check in checks} >= set(FAMILIES[family])
    assert max(check.difference for check in checks) <= 1e-6


@pytest.mark.parametrize("form", ["kohya", "peft"])
@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_factors_are_kept_to_the_bit(family: str, form: str, tmp_path: Path) -> None:
    """Between kohya and PEFT nothing is multiplied where all layers have one alpha."""
    made = updates(family)
    last = steps(written(made, tmp_path, "kohya", family), tmp_path, (form, "kohya"), family)
    found = updates_of(read_any(last))[0]
    for update in made:
        again = found[update.path]
        assert again.alpha == update.alpha
        assert torch.equal(again.a.flatten(1), update.a.flatten(1))
        assert torch.equal(again.b.flatten(1), update.b.flatten(1))


@pytest.mark.parametrize("family", ["sd3", "flux"])
def test_a_fused_layer_comes_back_to_the_bit(family: str, tmp_path: Path) -> None:
    """One A for query, key and value is what a file of the original model has."""
    paths = [f"transformer.transformer_blocks.2.attn.{name}" for name in ("to_q", "to_k", "to_v")]
    made = [Update(path, random(2, WIDTH), random(WIDTH, 2, seed=at), 2.0) for at, path in enumerate(paths)]
    source = written(made, tmp_path, "kohya", family)
    last = steps(source, tmp_path, ("diffusers", "peft", "kohya"), family)
    assert last.read_bytes()[8:] and tensors(last).keys() == tensors(source).keys()
    assert all(torch.equal(tensor, tensors(source)[key]) for key, tensor in tensors(last).items())


def tensors(file: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return dict(load_file(file))


@pytest.mark.parametrize(
    ("family", "form", "told"),
    [
        ("plain", "kohya", "belongs to 'no part'"),
        ("plain", "diffusers", "does not name a part of a pipeline"),
        ("sd1", "loralib", "is a convolution, whose factors loralib packs otherwise"),
    ],
)
def test_what_a_format_cannot_hold_is_refused_by_name(family: str, form: str, told: str, tmp_path: Path) -> None:
    source = written(updates(family), tmp_path, "peft", family)
    with pytest.raises(FormatError, match=told):
        convert(Conversion(source, place(tmp_path, form, 1), form, kind="sd1"))
    assert not place(tmp_path, form, 1).exists()


@pytest.mark.parametrize("form", ["kohya", "diffusers", "loralib"])
def test_a_bias_behind_the_factors_stays_with_peft(form: str, tmp_path: Path) -> None:
    made = [Update("unet.mid_block.attentions.0.proj_in", random(2, 4), random(4, 2), 2.0, bias=random(4))]
    source = written(made, tmp_path, "peft", "sd1")
    kept = steps(source, tmp_path, ("peft",), "sd1")
    (again,) = updates_of(read_any(kept))[0].values()
    assert again.bias is not None and torch.equal(again.bias, random(4))
    with pytest.raises(FormatError, match="has a bias behind its factors"):
        convert(Conversion(source, place(tmp_path, form, 2), form, kind="sd1"))


# -- DoRA ---------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*divide")
@pytest.mark.parametrize(
    ("family", "first", "second"),
    [pair for pair in PAIRS if "loralib" not in pair and (pair[0] != "flux" or "kohya" not in pair)],
)
def test_dora_over_every_pair(family: str, first: str, second: str, tmp_path: Path) -> None:
    made = updates(family, dora=True)
    if family == "sd3":  # its fused layers need all their parts
        made = [update for update in made if "attn2" not in update.path]
    if family == "plain":
        second = first = "peft"
    last = steps(written(made, tmp_path, first, family), tmp_path, (second, first), family)
    found, rest = updates_of(read_any(last), magnitudes=True)
    assert not rest
    for update in made:
        again = found[update.path].magnitude
        assert again is not None and update.magnitude is not None and torch.equal(again, update.magnitude)


def test_dora_is_refused_by_who_does_not_ask_for_it(tmp_path: Path) -> None:
    for form in ("kohya", "diffusers", "peft"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            file = read_any(written(updates("sd1", dora=True), tmp_path, form, "sd1"))
        with pytest.raises(FormatError, match="is an adapter of DoRA, .* not attached, mixed or changed"):
            updates_of(file)


def test_dora_of_some_layers_stays_with_kohya(tmp_path: Path) -> None:
    some = [*updates("sd1", dora=True)[:2], *updates("sd1")[2:]]
    source = written(some, tmp_path, "kohya", "sd1")
    steps(source, tmp_path, ("kohya",), "sd1")
    for form in ("peft", "diffusers"):
        with pytest.raises(FormatError, match="is plain LoRA and other layers are DoRA"):
            convert(Conversion(source, place(tmp_path, form, 2), form))


def test_dora_has_no_word_in_loralib(tmp_path: Path) -> None:
    source = written(updates("plain", dora=True), tmp_path, "peft", "plain")
    with pytest.raises(FormatError, match="is DoRA, for which loralib has no layer"):
        convert(Conversion(source, tmp_path / "x.safetensors", "loralib"))


def test_a_language_models_trunk_is_no_part_of_a_pipeline(tmp_path: Path) -> None:
    """GPT-2's is called transformer, as diffusers' denoiser is: its adapter is one folder, not one per part."""
    made = [Update("transformer.h.0.attn.c_attn", random(2, 8), random(24, 2), 2.0)]
    write_adapter(as_peft(made, tmp_path / "made", {}), Target(tmp_path / "gpt2.safetensors", "loralib"))
    assert convert(Conversion(tmp_path / "gpt2.safetensors", tmp_path / "out", "peft")).holds
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["adapter_config.json", "adapter_model.safetensors"]
