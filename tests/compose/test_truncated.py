"""The leading singular triplets against the whole decomposition, over spectra of every shape."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from loraloom.adapters.product import Svd
from loraloom.compose import truncated
from loraloom.compose.truncated import truncated_svd
from loraloom.errors import ConfigError

LARGE = (900, 640)


def spectrum(name: str, count: int) -> Tensor:
    index = torch.arange(1, count + 1, dtype=torch.float64)
    return {
        "low rank and noise": torch.where(index <= 12, 5.0 - index / 4, 0.02 + 0.05 * (1 - index / count)),
        "slow": index**-0.5,
        "fast": torch.exp(-index / 15),
        "steps": torch.where(index <= 20, 2.0, torch.where(index <= 50, 1.0, 0.1)),
        "flat": torch.linspace(1.0, 0.9, count, dtype=torch.float64),
        "equal": torch.ones(count, dtype=torch.float64),
        "tiny rest": torch.where(index <= 8, 1.0, 1e-4 / index),
    }[name]


def matrix(name: str, shape: tuple[int, int], seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    count = min(shape)
    u, v = (torch.linalg.qr(torch.randn(size, count, generator=generator, dtype=torch.float64)).Q for size in shape)
    return ((u * spectrum(name, count)) @ v.t()).to(dtype)


def remainder(whole: Tensor, svd: Svd) -> float:
    return float(torch.linalg.matrix_norm(whole.double() - (svd.u * svd.s) @ svd.v))


def excess(whole: Tensor, svd: Svd) -> float:
    """How much longer the remainder is than the best possible one, as a share of it."""
    best = float(torch.linalg.svdvals(whole.double())[len(svd.s) :].norm())
    return remainder(whole, svd) / best - 1


@pytest.mark.parametrize("name", ["low rank and noise", "slow", "fast", "steps", "flat", "equal", "tiny rest"])
@pytest.mark.parametrize("shape", [LARGE, LARGE[::-1], (200, 90)])
@pytest.mark.parametrize("rank", [5, 24])
def test_best_approximation(name: str, shape: tuple[int, int], rank: int) -> None:
    whole = matrix(name, shape)
    svd = truncated_svd(whole, rank=rank)
    assert svd.u.shape == (shape[0], rank) and svd.s.shape == (rank,) and svd.v.shape == (rank, shape[1])
    assert excess(whole, svd) <= truncated.EXCESS
    identity = torch.eye(rank, dtype=torch.float64)
    assert torch.allclose(svd.u.t() @ svd.u, identity, atol=1e-10)
    assert torch.allclose(svd.v @ svd.v.t(), identity, atol=1e-10)
    assert bool((svd.s.diff() <= 0).all())


@pytest.mark.parametrize("name", ["low rank and noise", "fast", "tiny rest"])
def test_large_matrices_are_not_decomposed_whole(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(truncated, "_whole", lambda *_: pytest.fail("the whole matrix was decomposed"))
    whole = matrix(name, LARGE)
    assert excess(whole, truncated_svd(whole, rank=12)) <= truncated.EXCESS
    if name == "fast":
        wide = matrix(name, (1200, 1100))
        squares = torch.linalg.svdvals(wide).double().square().cumsum(0)
        assert len(truncated_svd(wide, energy=0.9).s) == int((squares < 0.9 * squares[-1]).sum()) + 1


def test_a_flat_spectrum_that_does_not_settle_is_decomposed_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(truncated._Progress, "stands_still", lambda *_: False)
    whole = matrix("flat", LARGE)
    assert excess(whole, truncated_svd(whole, rank=16)) <= truncated.EXCESS


@pytest.mark.parametrize("name", ["low rank and noise", "slow", "fast", "flat", "steps"])
@pytest.mark.parametrize("energy", [0.5, 0.9, 0.99])
def test_energy_takes_the_smallest_rank(name: str, energy: float) -> None:
    whole = matrix(name, LARGE)
    squares = torch.linalg.svdvals(whole.double()).square()
    expected = int((squares.cumsum(0) < energy * squares.sum()).sum()) + 1
    svd = truncated_svd(whole, energy=energy)
    assert len(svd.s) == expected
    assert remainder(whole, svd) ** 2 <= (1 - energy) * float(squares.sum()) * (1 + 1e-6)
    assert len(truncated_svd(whole, energy=energy, rank=7).s) == min(expected, 7)


def test_exact_low_rank_comes_out_to_rounding() -> None:
    generator = torch.Generator().manual_seed(1)
    whole = torch.randn(700, 3, generator=generator) @ torch.randn(3, 1000, generator=generator)
    for rank in (3, 40):
        svd = truncated_svd(whole, rank=rank)
        assert remainder(whole, svd) <= 1e-7 * float(whole.norm())
    double = whole.double()
    exact = torch.linalg.svd(double, full_matrices=False)
    low = (exact.U[:, :3] * exact.S[:3]) @ exact.Vh[:3]
    assert remainder(low, truncated_svd(low, rank=3)) <= 1e-13 * float(low.norm())


def test_float64_is_worked_out_in_float64() -> None:
    whole = matrix("fast", LARGE, dtype=torch.float64)
    svd = truncated_svd(whole, rank=60)
    assert torch.allclose(svd.s, torch.linalg.svdvals(whole)[:60], rtol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_read_as_it_is(dtype: torch.dtype) -> None:
    whole = matrix("fast", LARGE, dtype=dtype)
    assert excess(whole.float(), truncated_svd(whole, rank=16)) <= truncated.EXCESS


def test_same_seed_same_bits() -> None:
    whole = matrix("slow", LARGE)
    one, two = truncated_svd(whole, rank=9, seed=3), truncated_svd(whole, rank=9, seed=3)
    assert torch.equal(one.u, two.u) and torch.equal(one.s, two.s) and torch.equal(one.v, two.v)


def test_the_callers_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    truncated_svd(matrix("slow", LARGE), rank=9)
    assert torch.equal(before, torch.get_rng_state())


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 40),
    st.integers(1, 40),
    st.integers(1, 50),
    st.one_of(st.none(), st.floats(0.01, 1.0)),
    st.integers(0, 10**6),
)
def test_small_matrices_of_any_shape(rows: int, columns: int, rank: int, energy: float | None, seed: int) -> None:
    whole = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    svd = truncated_svd(whole, rank=rank, energy=energy)
    values = torch.linalg.svdvals(whole.double())
    assert len(svd.s) <= min(rank, rows, columns)
    assert torch.allclose(svd.s, values[: len(svd.s)], rtol=1e-6, atol=1e-7 * float(values[0]))
    best = float(values[len(svd.s) :].norm())
    assert remainder(whole, svd) <= best * (1 + 1e-6) + 1e-8 * float(values.norm())


def test_zeros_and_ones() -> None:
    assert remainder(torch.zeros(5, 4), truncated_svd(torch.zeros(5, 4), rank=2)) == 0
    assert len(truncated_svd(torch.zeros(5, 4), energy=0.9).s) == 0
    assert len(truncated_svd(torch.zeros(600, 500), energy=0.9).s) == 0
    assert truncated_svd(torch.ones(300, 400), rank=1).s.item() == pytest.approx(120000**0.5)


def test_bad_settings() -> None:
    whole = torch.ones(3, 4)
    with pytest.raises(ConfigError, match="say a rank"):
        truncated_svd(whole)
    with pytest.raises(ConfigError, match="rank is 0"):
        truncated_svd(whole, rank=0)
    for energy in (0.0, -1.0, 1.5, float("nan")):
        with pytest.raises(ConfigError, match="energy is"):
            truncated_svd(whole, energy=energy)
    whole[1, 2] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        truncated_svd(whole, rank=1)
    with pytest.raises(ValueError, match="expected a matrix"):
        truncated_svd(torch.ones(3), rank=1)
