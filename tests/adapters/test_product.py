"""A product of factors held to the dense matrix in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from loraloom.adapters.product import Product

SIZES = st.tuples(st.integers(1, 9), st.integers(1, 6), st.integers(1, 9), st.integers(0, 2**31))


def product(sizes: tuple[int, int, int, int], shift: int = 0) -> Product:
    rows, rank, columns, seed = sizes
    generator = torch.Generator().manual_seed(seed + shift)
    b = torch.randn(rows, rank, generator=generator, dtype=torch.float64)
    return Product(b, torch.randn(rank, columns, generator=generator, dtype=torch.float64))


@given(SIZES)
def test_norm_and_singular_values_are_those_of_the_dense_matrix(sizes: tuple[int, int, int, int]) -> None:
    one = product(sizes)
    dense = one.dense()
    assert one.norm() == pytest.approx(float(dense.norm()))
    values = torch.linalg.svdvals(dense)
    found = one.singular_values()
    assert torch.allclose(found, values[: len(found)])
    assert float(values[len(found) :].sum()) == pytest.approx(0, abs=1e-9)


@given(SIZES, st.floats(-3, 3))
def test_inner_product_and_sum(sizes: tuple[int, int, int, int], weight: float) -> None:
    one, two = product(sizes), product(sizes, shift=1)
    assert one.inner(two) == pytest.approx(float((one.dense() * two.dense()).sum()))
    total = Product.total([one, two.scaled(weight)])
    assert total.rank == 2 * one.rank
    assert torch.allclose(total.dense(), one.dense() + weight * two.dense())


@given(SIZES, st.integers(1, 7))
def test_a_cut_is_the_best_approximation(sizes: tuple[int, int, int, int], rank: int) -> None:
    one = product(sizes)
    dense = one.dense()
    svd = one.svd()
    cut = svd.product(rank).dense()
    u, s, v = torch.linalg.svd(dense, full_matrices=False)
    assert torch.allclose(cut, (u[:, :rank] * s[:rank]) @ v[:rank], atol=1e-9)
    assert svd.left_out(rank) == pytest.approx(float((dense - cut).norm() / dense.norm()), abs=1e-9)
    assert torch.linalg.matrix_rank(cut) <= rank


def test_factors_of_any_dtype_and_shape_count_as_matrices() -> None:
    a, b = torch.randn(3, 4, 2, 2, dtype=torch.float16), torch.randn(5, 3, 1, 1, dtype=torch.float16)
    one = Product.of(b, a, 0.5)
    assert one.shape == (5, 16)
    assert one.b.dtype == one.a.dtype == torch.float64
    assert torch.equal(one.dense(), 0.5 * b.double().flatten(1) @ a.double().flatten(1))


def test_a_matrix_of_zeros() -> None:
    one = Product(torch.zeros(4, 2, dtype=torch.float64), torch.zeros(2, 3, dtype=torch.float64))
    assert one.norm() == 0
    assert one.svd().left_out(1) == 0
