"""Resizing, held to dense singular value decompositions, to PEFT's own reading, and to what must not change."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tests.compose.made import dense, folder, noise, updates
from tests.formats.files import sd1_file
from torch import Tensor, nn

from loraloom.adapters.spectrum import Spectrum
from loraloom.compose.resize import ResizeJob, ResizeReport, resize
from loraloom.compose.resize.ranks import Choice, resized
from loraloom.errors import ConfigError, FormatError, OutputError
from loraloom.formats import describe_adapter, read_any
from loraloom.formats.updates import Update, updates_of

CLOSE = pytest.approx


@pytest.fixture
def ink(tmp_path: Path) -> Path:
    return folder(tmp_path / "ink", updates(1, rank=6))


def relative(before: Tensor, after: Tensor) -> float:
    return float((before - after).norm() / before.norm())


# -- against dense matrices ---------------------------------------------------------------------------


@pytest.mark.parametrize("energy", [0.5, 0.9, 0.99, 0.999])
def test_the_smallest_rank_that_keeps_the_share(energy: float, ink: Path, tmp_path: Path) -> None:
    report = resize(ResizeJob(ink, energy=energy, out=tmp_path / "small"))
    before, after = dense(ink), dense(tmp_path / "small")
    for site in report.sites:
        squares = np.linalg.svd(before[site.path].numpy(), compute_uv=False)[:6] ** 2
        shares = np.cumsum(squares) / squares.sum()
        assert site.after == int(np.argmax(shares >= energy)) + 1
        assert np.linalg.matrix_rank(after[site.path].numpy(), tol=1e-5) == site.after
        assert site.kept == CLOSE(shares[site.after - 1], abs=1e-6) and site.kept >= energy - 1e-6
        assert site.error == CLOSE(relative(before[site.path], after[site.path]), abs=1e-9)
    whole = [torch.cat([found[path].flatten() for path in sorted(found)]) for found in (before, after)]
    assert report.error == CLOSE(relative(*whole), abs=1e-9)
    assert report.kept == CLOSE(1 - report.error**2, abs=1e-6)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 12), st.integers(1, 12), st.integers(1, 6), st.integers(1, 8), st.floats(0.1, 9), st.integers(0, 999)
)
def test_one_rank_is_the_best_of_that_rank(
    out: int, into: int, rank: int, wanted: int, alpha: float, seed: int
) -> None:
    update = Update("layer", noise(rank, into, seed=seed).double(), noise(out, rank, seed=seed + 1).double(), alpha)
    site, after = resized(update, "", Choice(rank=wanted))
    values = np.linalg.svd(update.delta().numpy(), compute_uv=False)
    assert site.after == after.rank == (rank if wanted >= rank else min(wanted, out, into))
    lost = math.sqrt(float((values[site.after :] ** 2).sum()))
    assert float((update.delta() - after.delta()).norm()) == CLOSE(lost, abs=1e-9 * update.norm())
    assert after.scale == CLOSE(update.scale), "the scale is what it was"
    assert site.error == CLOSE(update.difference(after), abs=1e-7)


def test_a_layer_that_has_the_rank_keeps_its_bits(ink: Path, tmp_path: Path) -> None:
    report = resize(ResizeJob(ink, rank=64, out=tmp_path / "same"))
    assert not report.changed and report.error == 0 and report.kept == 1
    assert all(site.why_whole == "its rank is 6" for site in report.sites)
    one, two = (load_file(path / "adapter_model.safetensors") for path in (ink, tmp_path / "same"))
    assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


def test_ranks_differ_by_layer_and_the_config_says_so(tmp_path: Path) -> None:
    made = updates(1, rank=6)
    flat = replace(made[2], b=noise(12, 6, seed=3), a=torch.linalg.qr(noise(10, 6, seed=4)).Q.t())
    source = folder(tmp_path / "ink", [*made[:2], flat, made[3]])
    report = resize(ResizeJob(source, energy=0.9, out=tmp_path / "small"))
    ranks = {site.path: site.after for site in report.sites}
    assert len(set(ranks.values())) > 1
    config = read_any(tmp_path / "small").peft
    assert {path: config.rank(path) for path in ranks} == ranks
    assert all(config.scale(path) == CLOSE(8 / 6) for path in ranks)
    assert report.numbers[1] == sum(tensor.numel() for tensor in load_file(weights(tmp_path / "small")).values())


def weights(path: Path) -> Path:
    return path / "adapter_model.safetensors"


def test_a_layer_without_an_update_keeps_rank_one(tmp_path: Path) -> None:
    made = updates(1)
    source = folder(tmp_path / "ink", [replace(made[0], b=torch.zeros_like(made[0].b)), *made[1:]])
    report = resize(ResizeJob(source, energy=0.99, out=tmp_path / "small"))
    idle = report.sites[0]
    assert (idle.after, idle.kept, idle.error, idle.norm) == (1, 1.0, 0.0, 0.0)
    assert not dense(tmp_path / "small")[idle.path].any()


def test_without_a_choice_nothing_is_written(ink: Path, tmp_path: Path) -> None:
    report = resize(ResizeJob(ink))
    assert report.target is None and [path.name for path in tmp_path.iterdir()] == ["ink"]
    numbers = [preview.numbers for preview in report.previews]
    assert numbers == sorted(numbers)
    for preview in report.previews:
        asked = resize(ResizeJob(ink, energy=preview.energy))
        assert tuple(site.after for site in asked.sites) == preview.ranks
        assert (asked.numbers[1], asked.error) == (preview.numbers, CLOSE(preview.error))
    assert json.dumps(report.to_json(), allow_nan=False)


def test_a_dry_run_tells_what_a_run_does(ink: Path, tmp_path: Path) -> None:
    job = ResizeJob(ink, rank=2, out=tmp_path / "small", dry_run=True)
    told = resize(job)
    assert told.target is None and not (tmp_path / "small").exists()
    done = resize(replace(job, dry_run=False))
    assert [site.after for site in told.sites] == [site.after for site in done.sites]
    assert told.error == CLOSE(done.error, rel=1e-5) and done.size_after == sum(
        (tmp_path / "small" / name).stat().st_size for name in ("adapter_config.json", "adapter_model.safetensors")
    )


# -- every kind of layer ------------------------------------------------------------------------------


class Net(nn.Module):
    """A linear layer, an embedding, a convolution, a grouped one, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(30, 12)
        self.fc = nn.Linear(12, 16)
        self.conv = nn.Conv2d(16, 8, 3, padding=1)
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.head = nn.Linear(8, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.fc(self.embed(tokens)).transpose(1, 2)[:, :, :, None]
        found: Tensor = self.head(self.grouped(self.conv(hidden)).mean((2, 3)))
        return found


def net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture
def saved(tmp_path: Path) -> Callable[..., Path]:
    """A folder that PEFT wrote, of an adapter that acts everywhere."""

    def save(**settings: object) -> Path:
        config = LoraConfig(r=6, lora_alpha=9, target_modules=["embed", "fc", "conv"], **settings)
        model = get_peft_model(net(), config)
        torch.manual_seed(1)
        for name, parameter in model.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                parameter.data.normal_(std=0.4)
        model.save_pretrained(tmp_path / "peft")
        return tmp_path / "peft"

    return save


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_rslora": True},
        {"rank_pattern": {"fc": 4}, "alpha_pattern": {"conv": 3}},
        {"modules_to_save": ["head"], "bias": "lora_only"},
    ],
)
def test_peft_loads_it_and_computes_what_is_told(
    settings: dict[str, object], saved: Callable[..., Path], tmp_path: Path
) -> None:
    source = saved(**settings)
    report = resize(ResizeJob(source, energy=0.9, out=tmp_path / "small"))
    before, after = (PeftModel.from_pretrained(net(), path) for path in (source, tmp_path / "small"))
    for site in report.sites:
        one, two = (model.get_submodule(f"base_model.model.{site.path}") for model in (before, after))
        deltas = [layer.get_delta_weight("default").double() for layer in (one, two)]
        assert relative(*deltas) == CLOSE(site.error, abs=2e-6)
        assert two.scaling["default"] == CLOSE(one.scaling["default"])
    tokens = torch.arange(20).reshape(4, 5)
    exact = resize(ResizeJob(source, energy=1.0, out=tmp_path / "whole"))
    whole = PeftModel.from_pretrained(net(), tmp_path / "whole")
    assert exact.error < 1e-6 and torch.allclose(before(tokens), whole(tokens), atol=1e-4)
    assert not torch.allclose(before(tokens), after(tokens), atol=1e-3)
    kept = [load_file(weights(path)) for path in (source, tmp_path / "small")]
    rest = [key for key in kept[0] if "lora_" not in key]
    assert report.whole == len(rest) and all(torch.equal(kept[0][key], kept[1][key]) for key in rest)
    untouched = [json.loads((path / "adapter_config.json").read_text()) for path in (source, tmp_path / "small")]
    for key in ("modules_to_save", "use_rslora", "bias", "task_type"):
        assert untouched[0].get(key) == untouched[1].get(key)


def test_a_grouped_convolution_is_left_as_it_is_and_told(tmp_path: Path) -> None:
    model = get_peft_model(net(), LoraConfig(r=4, target_modules=["grouped", "fc"], init_lora_weights=False))
    model.save_pretrained(tmp_path / "peft")
    report = resize(ResizeJob(tmp_path / "peft", rank=2, out=tmp_path / "small"))
    found = {site.path: (site.after, site.why_whole) for site in report.sites}
    assert found == {"fc": (2, ""), "grouped": (4, "a grouped convolution")}
    PeftModel.from_pretrained(net(), tmp_path / "small")


def test_a_bias_of_the_adapter_is_carried_over(tmp_path: Path) -> None:
    model = get_peft_model(net(), LoraConfig(r=6, target_modules=["fc"], lora_bias=True, init_lora_weights=False))
    model.save_pretrained(tmp_path / "peft")
    resize(ResizeJob(tmp_path / "peft", rank=2, out=tmp_path / "small"))
    one, two = (load_file(weights(tmp_path / name)) for name in ("peft", "small"))
    key = "base_model.model.fc.lora_B.bias"
    assert torch.equal(one[key], two[key])
    before, after = (
        PeftModel.from_pretrained(net(), tmp_path / name).base_model.model.fc for name in ("peft", "small")
    )
    zero = torch.zeros(1, 12)
    assert torch.allclose(before(zero), after(zero), atol=1e-6), "bias times scale"


def test_an_attention_has_one_rank_for_both_of_its_maps(tmp_path: Path) -> None:
    model = nn.ModuleDict({"attn": nn.MultiheadAttention(8, 2), "fc": nn.Linear(8, 8)})
    lora = get_peft_model(model, LoraConfig(r=6, target_modules=["attn", "fc"], init_lora_weights=False))
    lora.base_model.model.attn.lora_A["default"].weight.data[1:] *= 1e-3  # one map needs less than the other
    lora.save_pretrained(tmp_path / "peft")
    report = resize(ResizeJob(tmp_path / "peft", energy=0.7, out=tmp_path / "small"))
    ranks = {site.path: site.after for site in report.sites}
    each = [
        Spectrum(site.values).rank_for(0.7)
        for site in report.sites
        if site.path in ("attn", "attn.base_layer.out_proj")
    ]
    assert each[0] != each[1] and ranks["attn"] == ranks["attn.base_layer.out_proj"] == max(each) < 6
    torch.manual_seed(0)
    again = PeftModel.from_pretrained(
        nn.ModuleDict({"attn": nn.MultiheadAttention(8, 2), "fc": nn.Linear(8, 8)}), tmp_path / "small"
    )
    assert again.base_model.model.attn.lora_A["default"].weight.shape[0] == ranks["attn"]


def test_raw_parameters_are_refused_by_name(ink: Path, tmp_path: Path) -> None:
    tensors = load_file(weights(ink))
    tensors["base_model.model.model.layers.0.experts.base_layer.lora_A.weight"] = noise(4, 5, seed=1)
    tensors["base_model.model.model.layers.0.experts.base_layer.lora_B.weight"] = noise(5, 4, seed=2)
    save_file(tensors, weights(ink))
    with pytest.raises(FormatError, match="experts.base_layer.lora_A.weight"):
        resize(ResizeJob(ink, rank=2, out=tmp_path / "small"))
    assert [path.name for path in tmp_path.iterdir()] == ["ink"]


# -- other programs' files ----------------------------------------------------------------------------


@pytest.mark.parametrize(("to", "name"), [(None, "small.safetensors"), ("diffusers", "small"), ("peft", "small")])
def test_kohya_in_and_every_format_out(to: str | None, name: str, tmp_path: Path) -> None:
    source = sd1_file(tmp_path / "source.safetensors")
    report = resize(ResizeJob(source, rank=2, out=tmp_path / name, to=to))
    assert describe_adapter(tmp_path / name).format == (to or "kohya") == report.written
    before, after = (updates_of(read_any(path))[0] for path in (source, tmp_path / name))
    assert {path: update.rank for path, update in after.items()} == dict.fromkeys(before, 2)
    for site in report.sites:
        assert site.error == CLOSE(before[site.path].difference(after[site.path]), abs=1e-9)
    assert (tmp_path / name).is_file() or (tmp_path / name / "README.md").is_file()


def test_precisions_are_measured_and_checked(ink: Path, tmp_path: Path) -> None:
    errors = [
        resize(ResizeJob(ink, rank=5, out=tmp_path / dtype, dtype=dtype)).error for dtype in ("fp32", "fp16", "bf16")
    ]
    assert errors == sorted(errors) and errors[0] < errors[2]
    tiny = folder(tmp_path / "tiny", [replace(one, b=one.b * 1e-12) for one in updates(1)])
    with pytest.raises(FormatError, match="was not written: .* write fp32 or bf16 instead"):
        resize(ResizeJob(tiny, rank=2, out=tmp_path / "lost", dtype="fp16"))
    assert not (tmp_path / "lost").exists()


# -- what cannot be asked for -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"rank": 0}, "--rank 0"),
        ({"rank": -3}, "--rank -3"),
        ({"energy": 0.0}, "--energy 0"),
        ({"energy": 1.2}, "--energy 1.2"),
        ({"energy": math.nan}, "--energy nan"),
        ({"rank": 2, "energy": 0.9}, "both given"),
        ({"out": Path("small")}, "say which --rank"),
        ({"rank": 2, "out": Path("small"), "to": "koyha"}, "did you mean 'kohya'"),
    ],
)
def test_what_means_nothing_is_refused(asked: dict[str, object], told: str, ink: Path) -> None:
    with pytest.raises(ConfigError, match=told):
        resize(ResizeJob(ink, **asked))  # type: ignore[arg-type]


def test_what_is_there_is_left_alone(ink: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "run.json").write_text("{}")
    job = ResizeJob(ink, rank=2, out=tmp_path / "taken")
    with pytest.raises(OutputError, match="is there already"):
        resize(job)
    with pytest.raises(OutputError, match="is the adapter that is read"):
        resize(replace(job, out=ink, overwrite=True))
    assert isinstance(resize(replace(job, overwrite=True)), ResizeReport)
    assert not (tmp_path / "taken" / "run.json").exists(), "it told of something else"
