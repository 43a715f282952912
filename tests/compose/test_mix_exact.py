"""The exact sum of weighted adapters: held to dense float64, to what an AdapterSet does, and to PEFT."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tests.compose.mix_models import KINDS, TOKENS, adapter, dense, model, outputs
from torch import Tensor, nn

from loraloom.compose.mix import MixJob, mix
from loraloom.compose.mix.combine import Method, combine
from loraloom.compose.weights import Weighted, parse_weighted
from loraloom.formats.updates import Update

WEIGHTS = (0.7, 0.4, -0.2)
SPECS = (
    {"rank": 4, "alpha": 3.0},
    {"rank": 2, "scaling": "rslora", "alpha": 5.0, "rank_pattern": {"linear": 3}},
    {
        "rank": 3,
        "alpha_pattern": {"conv2": 7.0},
        "rank_pattern": {"grouped": 2},
        "targets": ["linear", "conv2", "grouped", "lookup"],
    },
)


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Adapters of different ranks, alphas, scalings and layers."""
    place = tmp_path_factory.mktemp("three")
    return [adapter(place / name, seed, **spec) for seed, (name, spec) in enumerate(zip("ABC", SPECS, strict=True))]


def weighted(folders: list[Path], weights: tuple[float, ...] = WEIGHTS) -> list[Weighted]:
    return [Weighted(folder, weight) for folder, weight in zip(folders, weights, strict=False)]


def dense_sum(folders: list[Path], weights: tuple[float, ...] = WEIGHTS) -> dict[str, np.ndarray]:
    total: dict[str, np.ndarray] = {}
    for folder, weight in zip(folders, weights, strict=False):
        for path, matrix in dense(folder).items():
            total[path] = total.get(path, 0.0) + weight * matrix
    return total


def difference(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> float:
    assert set(found) == set(wanted)
    return max(float(np.linalg.norm(found[path] - wanted[path]) / np.linalg.norm(wanted[path])) for path in wanted)


def test_every_kind_of_layer_is_the_dense_sum(three: list[Path], tmp_path: Path) -> None:
    report = mix(MixJob(weighted(three), tmp_path / "out"))
    wanted = dense_sum(three)
    assert set(wanted) == set(KINDS)
    assert difference(dense(tmp_path / "out"), wanted) < 1e-6
    ranks = {site.path: site.rank for site in report.sites}
    assert ranks == {"linear": 10, "transposed": 6, "lookup": 9, "conv1": 6, "conv2": 9, "grouped": 8}
    assert report.error < 1e-6 and report.left_out == 0.0
    for site in report.sites:
        assert site.exact == pytest.approx(np.linalg.norm(wanted[site.path]), rel=1e-9)
        assert site.size == pytest.approx(site.exact, rel=1e-5)


def test_the_mix_does_what_the_set_of_adapters_does(three: list[Path], tmp_path: Path) -> None:
    mix(MixJob(weighted(three), tmp_path / "out"))
    wanted = outputs({name: (folder, w) for name, folder, w in zip("ABC", three, WEIGHTS, strict=True)})
    found = outputs(tmp_path / "out")
    assert torch.allclose(found, wanted, atol=1e-5)
    assert not torch.allclose(model()(TOKENS), wanted, atol=1e-2)


def test_peft_loads_the_mix_and_agrees_where_it_is_right(tmp_path: Path) -> None:
    """PEFT's "cat", of adapters that it can: no convolution, no rsLoRA in a pattern."""
    folders = [adapter(tmp_path / name, seed, targets=["linear", "lookup"], rank=3) for seed, name in enumerate("AB")]
    mix(MixJob(weighted(folders), tmp_path / "out"))
    wanted = peft.PeftModel.from_pretrained(model(), folders[0], adapter_name="A")
    wanted.load_adapter(folders[1], "B")
    wanted.add_weighted_adapter(["A", "B"], list(WEIGHTS[:2]), "cat", combination_type="cat")
    wanted.set_adapter("cat")
    ours = peft.PeftModel.from_pretrained(model(), tmp_path / "out")
    with torch.no_grad():
        assert torch.allclose(ours(TOKENS), wanted(TOKENS), atol=1e-5)


def test_peft_runs_a_mix_of_every_layer_it_knows(three: list[Path], tmp_path: Path) -> None:
    mix(MixJob(weighted(three), tmp_path / "out"))
    with torch.no_grad():
        assert torch.allclose(
            peft.PeftModel.from_pretrained(model(), tmp_path / "out")(TOKENS), outputs(tmp_path / "out"), atol=1e-5
        )


def test_the_order_of_the_adapters_does_not_matter(three: list[Path], tmp_path: Path) -> None:
    mix(MixJob(weighted(three), tmp_path / "one"))
    mix(MixJob(weighted(three[::-1], WEIGHTS[::-1]), tmp_path / "two"))
    assert difference(dense(tmp_path / "one"), dense(tmp_path / "two")) < 1e-6


def test_the_same_file_twice_adds_up(three: list[Path], tmp_path: Path) -> None:
    again = three[0].parent / "." / "A"
    report = mix(MixJob([*weighted(three[:1], (0.5,)), Weighted(again, 0.25)], tmp_path / "out"))
    assert [one.ingredient.weight for one in report.sources] == [0.75]
    assert report.sites[0].rank == 4, "one copy of its factors is enough"
    assert difference(dense(tmp_path / "out"), dense_sum(three[:1], (0.75,))) < 1e-6
    assert any("named 2 times" in note for note in report.plan.notes)


def test_a_weight_of_zero_is_told_and_does_nothing(three: list[Path], tmp_path: Path) -> None:
    report = mix(MixJob(weighted(three, (0.7, 0.0, -0.2)), tmp_path / "out"))
    assert report.plan.notes[0] == "'B' has weight 0 and does nothing"
    assert difference(dense(tmp_path / "out"), dense_sum([three[0], three[2]], (0.7, -0.2))) < 1e-6


def test_patterns_weigh_single_layers(three: list[Path], tmp_path: Path) -> None:
    factors = {"linear": 1.5, "transposed": 0.5, "lookup": -0.5, "conv1": 0.0, "conv2": 0.0, "grouped": 0.5}
    one = parse_weighted(f"{three[0]}:0.5:blocks=conv?*0,re:l.*r*3,lookup*-1")
    report = mix(MixJob([one], tmp_path / "out"))
    own = dense(three[0])
    found = dense(tmp_path / "out")
    assert set(found) == {path for path, factor in factors.items() if factor}
    for path, matrix in found.items():
        assert np.allclose(matrix, factors[path] * own[path], atol=1e-6)
    assert len(report.sites) == 4


# -- to the bit ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["exact", "svd"])
@pytest.mark.parametrize("doses", [(1.0,), (0.5, 0.5), (2.0, -1.0)])
def test_one_adapter_comes_out_the_same_to_the_bit(
    three: list[Path], tmp_path: Path, how: str, doses: tuple[float, ...]
) -> None:
    for folder in three:
        out = tmp_path / folder.name
        report = mix(MixJob([Weighted(folder, dose) for dose in doses], out, how=how))
        assert report.plan.untouched is not None and report.error == 0.0
        assert "the same to the bit" in report.verdict
        for name in ("adapter_model.safetensors", "adapter_config.json"):
            before, after = (folder / name).read_bytes(), (out / name).read_bytes()
            assert before == after if name.endswith("tensors") else json.loads(before) == json.loads(after)


def test_an_svd_of_a_smaller_rank_is_not_the_same(three: list[Path], tmp_path: Path) -> None:
    report = mix(MixJob(weighted(three[:1], (1.0,)), tmp_path / "out", how="svd", rank=3))
    assert report.plan.untouched is None and report.error > 0.01


# -- dtypes -------------------------------------------------------------------------------------------


def test_what_dtype_comes_out(tmp_path: Path) -> None:
    half = [adapter(tmp_path / f"h{seed}", seed, written=torch.bfloat16) for seed in (0, 1)]
    other = adapter(tmp_path / "f", 2)
    same = mix(MixJob(weighted(half), tmp_path / "half"))
    tensors = load_file(tmp_path / "half" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    assert "the rounding to bfloat16" in same.verdict and 1e-4 < same.error < 4e-3
    wanted = dense_sum(half)
    measured = difference(dense(tmp_path / "half"), wanted)
    assert max(site.error for site in same.sites) == pytest.approx(measured, rel=1e-6)
    mixed = mix(MixJob(weighted([half[0], other]), tmp_path / "mixed"))
    assert {t.dtype for t in load_file(tmp_path / "mixed" / "adapter_model.safetensors").values()} == {torch.float32}
    assert mixed.error < 1e-6
    asked = mix(MixJob(weighted(half), tmp_path / "asked", dtype="fp32"))
    assert asked.error < 1e-6


def test_a_value_beyond_the_dtype_is_refused(tmp_path: Path) -> None:
    folder = adapter(tmp_path / "a", 0, written=torch.float16)
    with pytest.raises(ValueError, match="beyond the range of float16"):
        mix(MixJob([Weighted(folder, 1e7)], tmp_path / "out"))
    assert not (tmp_path / "out").exists()


# -- lora_bias ----------------------------------------------------------------------------------------


def peft_folder(folder: Path, seed: int, **config: object) -> Path:
    torch.manual_seed(seed)
    made = peft.get_peft_model(model(), peft.LoraConfig(r=2, lora_alpha=3, target_modules=["linear"], **config))
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "lora_" in name:
                parameter += torch.randn(parameter.shape) * 0.4
    made.save_pretrained(folder)
    return folder


def test_the_biases_behind_b_add_up(tmp_path: Path) -> None:
    folders = [peft_folder(tmp_path / "A", 1, lora_bias=True), peft_folder(tmp_path / "B", 2)]
    mix(MixJob(weighted(folders), tmp_path / "out"))
    base = model().linear

    def added(folder: Path, x: Tensor) -> Tensor:
        made = peft.PeftModel.from_pretrained(model(), folder)
        return made.base_model.model.linear(x) - base(x)

    x = torch.randn(4, 6)
    with torch.no_grad():
        wanted = sum(w * added(folder, x) for w, folder in zip(WEIGHTS, folders, strict=False))
        assert torch.allclose(added(tmp_path / "out", x), wanted, atol=1e-5)


# -- attention ----------------------------------------------------------------------------------------


class Attentive(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.attention(x, x, x)[0]
        return found


def test_an_attention_and_its_output_mix(tmp_path: Path) -> None:
    def attentive() -> Attentive:
        torch.manual_seed(0)
        return Attentive().eval()

    x = torch.randn(2, 5, 8)
    folders = []
    for seed, rank in ((1, 2), (2, 3)):
        made = peft.get_peft_model(attentive(), peft.LoraConfig(r=rank, lora_alpha=3, target_modules=["attention"]))
        torch.manual_seed(seed)
        with torch.no_grad():
            for name, parameter in made.named_parameters():
                if "lora_" in name:
                    parameter += torch.randn(parameter.shape) * 0.3
        made.save_pretrained(tmp_path / str(seed))
        folders.append(tmp_path / str(seed))
    mix(MixJob(weighted(folders), tmp_path / "out"))
    wanted = peft.PeftModel.from_pretrained(attentive(), folders[0], adapter_name="A")
    wanted.load_adapter(folders[1], "B")
    states = [load_file(folder / "adapter_model.safetensors") for folder in (*folders, tmp_path / "out")]
    for stem in ("attention", "attention.base_layer.out_proj"):
        a, b = (f"base_model.model.{stem}.lora_{role}.weight" for role in "AB")
        deltas = [s[b].double() @ s[a].double() for s in states]
        scaled = WEIGHTS[0] * 3 / 2 * deltas[0] + WEIGHTS[1] * 3 / 3 * deltas[1]
        assert torch.allclose(deltas[2], scaled, atol=1e-6)
    with torch.no_grad():
        assert peft.PeftModel.from_pretrained(attentive(), tmp_path / "out")(x).isfinite().all()


# -- any shapes ---------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(
    st.tuples(st.integers(1, 7), st.integers(1, 7)),
    st.lists(st.tuples(st.integers(1, 5), st.floats(-3, 3).filter(lambda w: abs(w) > 1e-3)), min_size=1, max_size=4),
    st.sampled_from(["exact", "svd"]),
    st.integers(1, 8),
)
def test_any_layer(shape: tuple[int, int], parts: list[tuple[int, float]], how: str, rank: int) -> None:
    generator = torch.Generator().manual_seed(7)
    updates = [
        Update("x", torch.randn(r, shape[1], generator=generator), torch.randn(shape[0], r, generator=generator), 1.5)
        for r, _ in parts
    ]
    total = sum(w * update.delta() for (_, w), update in zip(parts, updates, strict=True))
    assert isinstance(total, Tensor)
    method = Method(how, None if how == "exact" else rank)
    made = combine([(w, u) for (_, w), u in zip(parts, updates, strict=True)], method, torch.float64)
    values = torch.linalg.svdvals(total)
    best = 0.0 if how == "exact" else float(values[rank:].norm())
    assert float((made.update.delta() - total).norm()) == pytest.approx(best, abs=1e-9)
    assert made.distance == pytest.approx(best, abs=1e-9)
    assert made.exact == pytest.approx(float(total.norm()), abs=1e-9)
    if how == "svd":
        assert made.update.rank <= max(rank, 1)


def test_factors_of_a_1x1_convolution_meet_those_of_a_linear_layer(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(1)
    stem = "lora_unet_mid_block_attentions_0_proj_in"
    files = []
    for name, ones in (("linear", ()), ("conv", (1, 1))):
        tensors = {
            f"{stem}.lora_down.weight": torch.randn(2, 5, *ones, generator=generator),
            f"{stem}.lora_up.weight": torch.randn(6, 2, *ones, generator=generator),
            f"{stem}.alpha": torch.tensor(3.0),
        }
        files.append(tmp_path / f"{name}.safetensors")
        save_file(tensors, files[-1])
    mix(MixJob(weighted(files), tmp_path / "out.safetensors", kind="sd1"))
    tensors = [load_file(file) for file in (*files, tmp_path / "out.safetensors")]
    deltas = [t[f"{stem}.lora_up.weight"].flatten(1) @ t[f"{stem}.lora_down.weight"].flatten(1) for t in tensors]
    assert tensors[2][f"{stem}.lora_down.weight"].shape == (4, 5, 1, 1)
    assert torch.allclose(deltas[2], 1.5 * (0.7 * deltas[0] + 0.4 * deltas[1]), atol=1e-5)
