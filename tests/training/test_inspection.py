"""The spectrum of an update against a dense one, the evidence of a run, and the pictures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_task import TinyTask, tiny_config
from torch import nn

from loraloom.adapters import AdapterSet, attach
from loraloom.adapters.spectrum import Spectrum, singular_values, site_values
from loraloom.errors import TrainingError
from loraloom.training.curves import draw_curves, smoothed
from loraloom.training.evidence import (
    base_norm,
    gather_evidence,
    output_change,
    pattern_table,
    site_changes,
    unmoved_sites,
    weight_changes,
)
from loraloom.training.inspection import SiteReport, draw_inspection, inspect_run, rank_verdict
from loraloom.training.restore import open_run
from loraloom.training.run import train

PNG = b"\x89PNG\r\n\x1a\n"


def filled(model: nn.Module, **spec: Any) -> AdapterSet:
    """An adapter whose factors are all random."""
    adapters = attach(model, **spec)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in adapters.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return adapters


@settings(max_examples=30, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 12), st.integers(1, 12), st.integers(1, 14)),
    scale=st.floats(0.01, 10),
    seed=st.integers(0, 99),
)
def test_singular_values_are_those_of_the_dense_update(shape: tuple[int, int, int], scale: float, seed: int) -> None:
    out_features, in_features, rank = shape
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.randn(rank, in_features, generator=generator), torch.randn(out_features, rank, generator=generator)
    found = singular_values(a, b, scale)
    dense = torch.linalg.svdvals(b.double() @ a.double() * scale).tolist()
    length = min(len(found), len(dense))
    assert found[:length] == pytest.approx(dense[:length], rel=1e-9, abs=1e-9)
    assert found[length:] == pytest.approx([0.0] * (len(found) - length), abs=1e-9)


CASES: dict[str, tuple[nn.Module, dict[str, Any]]] = {
    "linear": (nn.Sequential(nn.Linear(9, 7)), {}),
    "conv": (nn.Sequential(nn.Conv2d(4, 6, 3)), {"targets": "0"}),
    "grouped conv": (nn.Sequential(nn.Conv2d(4, 6, 3, groups=2)), {"targets": "0"}),
    "embedding": (nn.Sequential(nn.Embedding(11, 6)), {"targets": "0"}),
    "attention": (nn.ModuleDict({"attn": nn.MultiheadAttention(8, 2)}), {"targets": "attn"}),
}


@pytest.mark.parametrize("case", CASES)
def test_every_kind_of_layer_has_the_norm_of_its_dense_update(case: str) -> None:
    model, spec = CASES[case]
    adapters = filled(model, rank=2, **spec)
    tensors = adapters.tensors("default")
    rows = site_changes(model, adapters, "default")
    for site, row in zip(adapters.plan("default").sites, rows, strict=True):
        delta = adapters.delta("default", site.path).double()
        values = site_values(adapters, "default", site, tensors)
        assert len(values) == 2
        norm = torch.linalg.vector_norm(delta).item()
        assert row["change"] == pytest.approx(norm, rel=1e-4 if "grouped" not in case else 0.2)
        assert row["relative"] == pytest.approx(row["change"] / base_norm(model, site.module, site.parameter))


def test_effective_rank_and_energy() -> None:
    even = Spectrum((2.0, 2.0, 2.0, 2.0))
    assert even.norm == 4
    assert even.effective_rank == pytest.approx(4)
    assert (even.rank_for(0.9), even.rank_for(0.5), even.rank_for(1.0)) == (4, 2, 4)
    one = Spectrum((3.0, 0.0, 0.0))
    assert (one.effective_rank, one.rank_for(0.99), one.rank_for(1.0)) == (pytest.approx(1), 1, 1)
    steep = Spectrum((10.0, 1.0, 0.1))
    assert (steep.rank_for(0.9), steep.rank_for(0.995), steep.rank_for(0.99999)) == (1, 2, 3)
    nothing = Spectrum((0.0, 0.0))
    assert (nothing.norm, nothing.effective_rank, nothing.rank_for(0.9)) == (0, 0, 0)


def report(rank: int, used: int, change: float = 1.0) -> SiteReport:
    return SiteReport("layer", 0.1, change, rank, used, used, used, (1.0,) * rank)


@pytest.mark.parametrize(
    ("sites", "told"),
    [
        ([report(8, 8)] * 5, "8 of 8 directions (median of 5 layers): the rank is used up"),
        ([report(8, 2)] * 9 + [report(8, 3)], "rank 3 would hold as much in every layer"),
        ([report(8, 6)] * 4, "the rank fits"),
        ([report(8, 2)], "rank 2 would hold"),
        ([report(8, 0, change=0.0)], "the adapter does nothing"),
        ([], "no layer has a low-rank update"),
    ],
)
def test_the_verdict(sites: Sequence[SiteReport], told: str) -> None:
    assert told in rank_verdict(sites)


# --- evidence


def test_the_table_of_patterns_tells_what_each_matched() -> None:
    model = nn.ModuleDict({"q": nn.Linear(4, 4), "v": nn.Linear(4, 6), "k": nn.Linear(4, 4)})
    adapters = attach(model, rank=2, targets=["q", "re:[vk]"])
    assert pattern_table(adapters, "default") == [
        {"pattern": "q", "sites": 1, "parameters": 16},
        {"pattern": "re:[vk]", "sites": 2, "parameters": 16 + 20},
    ]


def test_output_change_is_relative_to_the_base() -> None:
    base = [torch.tensor([[3.0, 4.0]]), torch.zeros(1, 2, 2)]
    moved = [torch.tensor([[3.0, 4.0]]), torch.full((1, 2, 2), 0.25)]
    assert output_change(base, base) == 0
    assert output_change(base, moved) == pytest.approx(0.5 / 5)
    assert output_change([torch.zeros(2)], [torch.ones(2)]) == 1.0


def test_weights_of_a_whole_model_are_compared_one_by_one() -> None:
    before, after = nn.Linear(2, 2), nn.Linear(2, 2)
    after.load_state_dict(before.state_dict())
    assert [row["change"] for row in weight_changes(before, after)] == [0.0]
    with torch.no_grad():
        after.weight[0, 0] += 2.0
    (row,) = weight_changes(before, after)
    assert (row["path"], row["change"]) == ("weight", pytest.approx(2.0))
    assert row["relative"] == pytest.approx(2.0 / before.weight.detach().norm().item())


def row(path: str, change: float) -> dict[str, Any]:
    return {"path": path, "rank": 4, "change": change, "relative": change / 2}


def test_evidence_fails_where_nothing_moved() -> None:
    with pytest.raises(TrainingError, match="every update ΔW is zero"):
        gather_evidence([], [row("a", 0.0), row("b", 0.0)], 0.5, 8)
    with pytest.raises(TrainingError, match="the outputs for 8 held-out examples"):
        gather_evidence([], [row("a", 1.0)], 0.0, 8)
    evidence = gather_evidence([], [row("a", 1.0), row("b", 0.0)], 0.5, 8)
    assert unmoved_sites(evidence) == ["b"]
    assert evidence["relative_change_max"] == 0.5
    # Only a head was trained: that is no layer with a zero update.
    assert gather_evidence([], [], 0.5, 8)["relative_change_median"] is None


# --- whole results and pictures


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_result_is_inspected(tmp_path: Path, method: str) -> None:
    rate = 0.02 if method == "lora" else 3e-3
    result = train(tiny_config(tmp_path, method=method, learning_rate=rate), TinyTask())
    found = inspect_run(open_run(result.out, lambda name: TinyTask()))
    assert found.method == method
    evidence = {row["path"]: row["relative"] for row in result.record["evidence"]["sites"]}
    assert {site.path: pytest.approx(site.relative_change, rel=1e-6) for site in found.sites} == evidence
    data = found.to_dict()
    assert data["metrics"] == result.record["metrics"]
    if method == "lora":
        for site in found.sites:
            assert 1 <= site.rank_90 <= site.rank_99 <= site.rank == len(site.singular_values) == 8
            assert math.hypot(*site.singular_values) == pytest.approx(site.change)
        assert found.patterns[0]["sites"] == 4
        assert "directions" in found.verdict
    picture = tmp_path / "spectrum.png"
    draw_inspection(picture, found)
    assert picture.read_bytes().startswith(PNG)


def test_curves_are_drawn_of_short_and_of_unusual_logs(tmp_path: Path) -> None:
    steps = [{"kind": "step", "step": n, "loss": 1 / n, "learning_rate": 1e-3} for n in range(1, 50)]
    evaluations = [{"kind": "evaluation", "step": 20, "f1": 0.5, "f1_low": 0.4, "f1_high": 0.6}]
    for entries in ([], steps[:1], steps, [*steps, *evaluations], evaluations):
        draw_curves(tmp_path / "curves.png", entries, metric="f1", base_score=0.2, best_step=20)
        assert (tmp_path / "curves.png").read_bytes().startswith(PNG)
    draw_curves(tmp_path / "curves.png", steps, metric="f1", base_score=None, best_step=None)


def test_smoothing_is_the_mean_of_what_came_before() -> None:
    assert smoothed([1.0, 3.0, 5.0, 7.0], 2) == [1.0, 2.0, 4.0, 6.0]
    assert smoothed([], 3) == []
