"""Weights on the encoder's output."""

from __future__ import annotations

import pytest
import torch

from loraloom.imaging.conditioning.weighting import weigh


@pytest.fixture
def hidden():
    return torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0)) + 0.5


def test_the_mean_over_the_whole_tensor_is_restored(hidden):
    weights = torch.tensor([[1.0, 1.3, 1.0, 0.5, 1.0], [1.0] * 5])
    found = weigh(hidden, weights, [1, 1])
    product = hidden.double() * weights.double()[..., None]
    torch.testing.assert_close(found.double(), product * (hidden.double().mean() / product.mean()))
    # One factor for both rows, though only the first has weights.
    assert not torch.allclose(found[1], hidden[1])


def test_a_text_that_holds_at_three_stages_counts_three_times(hidden):
    weights = torch.rand(2, 5)
    found = weigh(hidden, weights, [3, 1])
    written_out = weigh(hidden[[0, 0, 0, 1]], weights[[0, 0, 0, 1]], [1] * 4)
    torch.testing.assert_close(found, written_out[2:])


def test_weights_of_one_change_no_bit(hidden):
    assert torch.equal(weigh(hidden, torch.ones(2, 5), [1, 2]), hidden)


def test_without_rescaling_the_product_itself(hidden):
    weights = torch.rand(2, 5)
    assert torch.equal(weigh(hidden, weights, [1, 1], rescale_mean=False), hidden * weights[..., None])


def test_a_product_of_mean_zero_is_left_alone(hidden):
    assert torch.equal(weigh(hidden, torch.zeros(2, 5), [1, 1]), torch.zeros_like(hidden))


def test_half_precision_stays_half(hidden):
    found = weigh(hidden.half(), torch.rand(2, 5), [1, 1])
    assert found.dtype == torch.float16 and torch.isfinite(found).all()
