"""Comparing adapters, held to dense float64 matrices, to scipy's principal angles and to what chance gives."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import subspace_angles
from tests.compose.made import SITES, dense, folder, noise, updates
from torch import Tensor

from loraloom.adapters.product import Product
from loraloom.compose.blocks import blocks_of
from loraloom.compose.compare import Comparison, compare, overlap
from loraloom.compose.compare.advice import findings, is_balanced, mix_command, shared_inputs, verdict
from loraloom.compose.compare.overlap import Sums, Turned, pair_up, pooled, sign_sums
from loraloom.compose.weights import Weighted, parse_weighted
from loraloom.errors import ConfigError, FormatError
from loraloom.formats.updates import Update

CLOSE = pytest.approx


@pytest.fixture
def two(tmp_path: Path) -> list[Path]:
    return [folder(tmp_path / "ink", updates(1)), folder(tmp_path / "glass", updates(2, rank=3))]


def flat(found: dict[str, Tensor]) -> Tensor:
    return torch.cat([found[path].flatten() for path in sorted(found)])


def cosine(x: Tensor, y: Tensor) -> float:
    return float((x * y).sum() / (x.norm() * y.norm()))


# -- against dense matrices ---------------------------------------------------------------------------


def test_cosines_and_norms_are_those_of_the_matrices(two: list[Path]) -> None:
    found, (x, y) = compare(two), [dense(path) for path in two]
    pair = found.pairs[0]
    assert pair.sums.cosine == CLOSE(cosine(flat(x), flat(y)), abs=1e-12)
    for site in pair.sites:
        assert site.sums.cosine == CLOSE(cosine(x[site.path], y[site.path]), abs=1e-12)
    assert [adapter.norm for adapter in found.adapters] == CLOSE([float(flat(x).norm()), float(flat(y).norm())])
    both = flat(x) + flat(y)
    assert found.norm_together() == CLOSE(float(both.norm()))
    assert found.gain() == CLOSE(float(both.norm()) / math.hypot(float(flat(x).norm()), float(flat(y).norm())))
    assert found.cancellation() == CLOSE(1 - found.gain())


def test_signs_are_those_of_the_entries(two: list[Path]) -> None:
    sums, (x, y) = compare(two).pairs[0].sums, [flat(dense(path)) for path in two]
    agree = torch.sign(x) == torch.sign(y)
    weight = (x * y).abs()
    assert sums.signs == CLOSE(float(agree.double().mean()))
    assert sums.weighted_signs == CLOSE(float(weight[agree].sum() / weight.sum()))


def test_angles_are_those_of_scipy(two: list[Path]) -> None:
    pair, (x, y) = compare(two).pairs[0], [dense(path) for path in two]
    for site in pair.sites:
        for found, sides in (
            (site.row_cosines, (x[site.path].t(), y[site.path].t())),
            (site.column_cosines, (x[site.path], y[site.path])),
        ):
            bases = [np.linalg.svd(side.numpy())[0][:, :rank] for side, rank in zip(sides, (4, 3), strict=True)]
            expected = np.sort(np.cos(subspace_angles(*bases)))[::-1]
            assert np.allclose(found, expected, atol=1e-10)
        assert site.sums.reading.mean == CLOSE(sum(value**2 for value in site.row_cosines) / 3)


def test_shares_are_those_of_the_projected_matrices(two: list[Path]) -> None:
    (x, y), pair = [dense(path) for path in two], compare(two).pairs[0]
    rows = {path: torch.linalg.pinv(y[path]) @ y[path] for path in y}  # projector on what y reads
    columns = {path: x[path] @ torch.linalg.pinv(x[path]) for path in x}  # and on what x writes
    inside = flat({path: x[path] @ rows[path] for path in x})
    assert pair.sums.reading.first == CLOSE(float(inside.norm() / flat(x).norm()) ** 2)
    inside = flat({path: columns[path] @ y[path] for path in y})
    assert pair.sums.writing.second == CLOSE(float(inside.norm() / flat(y).norm()) ** 2)


def test_convolutions_and_embeddings_are_matrices_too(tmp_path: Path) -> None:
    sites = {"unet.down_blocks.0.resnets.0.conv1": (6, 4, 3, 3), "unet.mid_block.resnets.0.conv1": (6, 4, 3, 3)}
    paths = [folder(tmp_path / name, updates(seed, rank=2, sites=sites)) for seed, name in ((1, "a"), (2, "b"))]
    found, (x, y) = compare(paths), [dense(path) for path in paths]
    assert list(found.blocks) == ["down.0", "mid"]
    for block, one in zip(("down.0", "mid"), sorted(x), strict=True):
        assert found.pairs[0].blocks[block].cosine == CLOSE(cosine(x[one], y[one]))
        assert found.adapters[0].block_norm(found.blocks[block]) == CLOSE(float(x[one].norm()))


def test_a_layer_that_one_alone_changes_counts_in_the_norms(tmp_path: Path) -> None:
    whole, part = updates(1), updates(2)[:3]
    paths = [folder(tmp_path / "whole", whole), folder(tmp_path / "part", part)]
    found, (x, y) = compare(paths), [dense(path) for path in paths]
    pair = found.pairs[0]
    last = list(SITES)[-1]
    assert (pair.only_first, pair.only_second) == ((last,), ())
    inner = sum(float((x[path] * y[path]).sum()) for path in y)
    assert pair.sums.cosine == CLOSE(inner / float(flat(x).norm() * flat(y).norm()))
    assert compare(paths[::-1]).pairs[0].only_second == (last,)


def test_weights_act_per_block(two: list[Path]) -> None:
    x, y = (dense(path) for path in two)
    weighted = parse_weighted(f"{two[0]}:0.5:blocks=*.layers.1.**-2", Path)
    found = compare([weighted, Weighted(two[1], 3.0)])
    scaled = {path: value * (0.5 if ".0." in path else -1.0) for path, value in x.items()}
    assert found.pairs[0].sums.cosine == CLOSE(cosine(flat(scaled), flat(y)))
    assert found.adapters[1].norm == CLOSE(3 * float(flat(y).norm()))
    with pytest.raises(ConfigError, match="layers.7"):
        compare([parse_weighted(f"{two[0]}:0.5:blocks=*.layers.7.**2", Path), two[1]])


# -- itself, its opposite, nothing --------------------------------------------------------------------


def test_an_adapter_beside_itself(two: list[Path]) -> None:
    found = compare([two[0], two[0]])
    sums = found.pairs[0].sums
    assert (sums.cosine, sums.signs, sums.weighted_signs) == CLOSE((1.0, 1.0, 1.0))
    assert (sums.reading.mean, sums.writing.mean, sums.reading.first) == CLOSE((1.0, 1.0, 1.0))
    assert found.gain() == CLOSE(math.sqrt(2))
    assert "are one update but for its size" in verdict(found) and is_balanced(found)


def test_an_adapter_beside_its_opposite(two: list[Path]) -> None:
    found = compare([two[0], Weighted(two[0], -1.0)])
    sums = found.pairs[0].sums
    assert sums.cosine == CLOSE(-1.0) and sums.signs == 0 and sums.reading.mean == CLOSE(1.0)
    assert found.gain() == CLOSE(0.0, abs=1e-6) and found.cancellation() == CLOSE(1.0, abs=1e-6)
    assert "undo each other" in verdict(found)


def test_an_adapter_that_changes_nothing(two: list[Path], tmp_path: Path) -> None:
    idle = [replace(one, b=torch.zeros_like(one.b)) for one in updates(3)]
    found = compare([two[0], folder(tmp_path / "idle", idle)])
    sums = found.pairs[0].sums
    assert (sums.cosine, sums.reading.mean, sums.signs, found.gain()) == (0.0, 0.0, 0.5, 1.0)
    assert verdict(found) == "idle changes nothing (ΔW = 0): there is no mix"
    assert [one.weight for one in found.balanced()] == CLOSE([1.0, 1.0])
    assert json.dumps(found.to_json(), allow_nan=False)


# -- properties ---------------------------------------------------------------------------------------


@st.composite
def products(draw: st.DrawFn) -> tuple[Product, Product]:
    height, width = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    ranks, seed = draw(st.tuples(st.integers(1, 5), st.integers(1, 5))), draw(st.integers(0, 10_000))
    one, two = (
        Product.of(noise(height, rank, seed=seed + at), noise(rank, width, seed=seed + 10 + at))
        for at, rank in enumerate(ranks)
    )
    return one, two


def measured(x: Product, y: Product) -> Sums:
    sums = pair_up("layer", Turned.of(x), Turned.of(y)).sums
    return replace(sums, **sign_sums(x.dense(), y.dense()))


@settings(max_examples=60, deadline=None)
@given(products(), st.floats(0.01, 100))
def test_symmetry_scale_and_range(pair: tuple[Product, Product], scale: float) -> None:
    one, other = measured(*pair), measured(*reversed(pair))
    assert -1 <= one.cosine <= 1 and 0 <= one.gain <= math.sqrt(2) + 1e-9
    shares = (one.reading.mean, one.reading.first, one.writing.mean, one.writing.second, one.signs, one.weighted_signs)
    assert all(0 <= share <= 1 for share in shares)
    assert (one.cosine, one.signs, one.weighted_signs) == CLOSE((other.cosine, other.signs, other.weighted_signs))
    assert (one.reading.mean, one.reading.first) == CLOSE((other.reading.mean, other.reading.second))
    larger, turned = measured(pair[0].scaled(scale), pair[1]), measured(pair[0].scaled(-scale), pair[1])
    assert (larger.cosine, larger.signs, larger.reading.mean) == CLOSE((one.cosine, one.signs, one.reading.mean))
    assert larger.weighted_signs == CLOSE(one.weighted_signs) and turned.cosine == CLOSE(-one.cosine)
    assert turned.signs == CLOSE(1 - one.signs)


def test_chance_is_what_random_updates_give() -> None:
    height, width, ranks, count = 10, 14, (2, 4), 800
    drawn = []
    for seed in range(count):
        x, y = (
            Product.of(noise(height, rank, seed=4 * seed + at), noise(rank, width, seed=4 * seed + 2 + at))
            for at, rank in enumerate(ranks)
        )
        drawn.append(pair_up("layer", Turned.of(x), Turned.of(y)).sums)
    mean = pooled(drawn)
    assert mean.reading.mean == CLOSE(mean.reading.mean_chance, rel=0.05)
    assert mean.writing.mean == CLOSE(mean.writing.mean_chance, rel=0.05)
    assert mean.reading.first == CLOSE(mean.reading.first_chance, rel=0.08)
    squares = [one.cosine**2 for one in drawn]
    expected = [one.cosine_chance**2 for one in drawn]
    assert sum(squares) == CLOSE(sum(expected), rel=0.15)


def test_large_layers_are_sampled_by_rows_and_say_so(two: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    exact = compare(two).pairs[0]
    monkeypatch.setattr(overlap, "LARGEST", 150)
    once, again = compare(two).pairs[0], compare(two).pairs[0]
    assert (exact.sampled, once.sampled) == (0, 2) and once.to_json()["signs"] == "rows sampled in 2 layers"
    assert once.sums == again.sums and once.sums.entries < exact.sums.entries
    assert once.sums.cosine == exact.sums.cosine and abs(once.sums.signs - exact.sums.signs) < 0.15
    assert compare(two, seed=1).pairs[0].sums != once.sums


# -- advice -------------------------------------------------------------------------------------------


def turned(made: list[Update], share: float, sign: float, seed: int, block: str) -> list[Update]:
    """Updates that follow others in one block, and are their own elsewhere."""
    own = updates(seed)
    return [
        one if block not in one.path else replace(one, a=base.a, b=sign * base.b + share * one.b)
        for one, base in zip(own, made, strict=True)
    ]


def test_where_two_pull_apart_is_said(tmp_path: Path) -> None:
    first = updates(1)
    second = turned(first, 0.5, -1.0, 5, "layers.1")
    found = compare([folder(tmp_path / "a", first), folder(tmp_path / "b", second)])
    worst = findings(found)[0]
    assert worst.block == "layers.1" and worst.cosine < -0.4
    assert worst.sentence == f"a and b pull apart in layers.1: cosine −{abs(worst.cosine):.2f}"
    assert verdict(found).startswith("a and b pull apart: cosine −") and "most in layers.1" in verdict(found)
    assert "smaller than of independent updates" in verdict(found)
    parts = [pair.sums.inner for pair in found.pairs[0].sites]
    assert sum(parts) == CLOSE(found.pairs[0].sums.inner)


def test_independent_ones_may_be_mixed_freely(tmp_path: Path) -> None:
    sites = {f"model.layers.{at}.q": (200, 150) for at in range(3)}
    paths = [folder(tmp_path / str(seed), updates(seed, sites=sites)) for seed in (1, 2)]
    found = compare(paths)
    assert verdict(found).endswith("mix freely") and findings(found) == [] and shared_inputs(found) == ""


def test_adapters_from_one_seed_read_the_same_inputs(tmp_path: Path) -> None:
    sites = {f"model.layers.{at}.q": (60, 100) for at in range(3)}
    first = updates(1, sites=sites)
    second = [replace(one, b=other.b) for one, other in zip(first, updates(9, sites=sites), strict=True)]
    found = compare([folder(tmp_path / "a", first), folder(tmp_path / "b", second)])
    assert "read the same inputs far beyond chance (100 %, chance 4 %)" in shared_inputs(found)


def test_balanced_weights_make_the_norms_equal(two: list[Path]) -> None:
    third = Weighted(two[1], -0.25)
    before = compare([Weighted(two[0], 2.0), two[1], third])
    after = compare(before.balanced())
    norms = [adapter.norm for adapter in after.adapters]
    assert norms == CLOSE([norms[0]] * 3)
    assert sum(norms) == CLOSE(sum(adapter.norm for adapter in before.adapters))
    assert before.balanced()[2].weight < 0 and not is_balanced(before) and is_balanced(after)


def test_the_command_is_ready_for_the_shell(tmp_path: Path) -> None:
    weights = [Weighted(tmp_path / "a b", 0.8321), Weighted(Path("x"), -1.2, {"up.1": 0.5})]
    text = mix_command(weights, {Path("x"): "ink"})
    assert text == f"loraloom mix '{tmp_path}/a b:0.832' 'ink:-1.2:blocks=up.1*0.5' --how exact --out mixed"


def test_three_adapters_have_three_pairs(two: list[Path], tmp_path: Path) -> None:
    found: Comparison = compare([*two, folder(tmp_path / "third", updates(3))])
    assert [(pair.first, pair.second) for pair in found.pairs] == [
        ("ink", "glass"),
        ("ink", "third"),
        ("glass", "third"),
    ]
    total = sum(flat(dense(adapter.path)) for adapter in found.adapters)
    assert found.norm_together() == CLOSE(float(total.norm()))
    blocks = [found.norm_together(block) for block in found.blocks]
    assert math.hypot(*blocks) == CLOSE(found.norm_together())


def test_blocks_follow_each_other() -> None:
    paths = [f"base.model.layers.{at}.{name}" for at in (10, 2, 0) for name in ("q", "k")] + ["base.model.head"]
    assert list(dict.fromkeys(blocks_of(paths).values())) == ["head", "layers.0", "layers.2", "layers.10"]
    assert blocks_of(["up_blocks.1.resnets.0.conv1", "text_encoder.encoder.layers.0.mlp.fc1"]) == {
        "text_encoder.encoder.layers.0.mlp.fc1": "te1",
        "up_blocks.1.resnets.0.conv1": "up.1",
    }
    assert blocks_of(["encoder.layers.0.q", "decoder.layers.0.q"]) == {
        "decoder.layers.0.q": "decoder.layers.0",
        "encoder.layers.0.q": "encoder.layers.0",
    }


# -- what cannot be compared --------------------------------------------------------------------------


def test_one_is_not_enough(two: list[Path]) -> None:
    with pytest.raises(ConfigError, match="two adapters are needed to compare, only '.*ink' is given"):
        compare(two[:1])


def test_adapters_of_different_bases_are_refused_by_name(two: list[Path], tmp_path: Path) -> None:
    other = folder(tmp_path / "wide", updates(3, sites={"model.layers.0.attn.q": (12, 11)}))
    with pytest.raises(FormatError, match="different bases.*'model.layers.0.attn.q'.*'ink'.*'wide'"):
        compare([two[0], other])
