"""The alignment search against every path there is."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch
from torch.distributions import Normal

from loraloom.tasks.speech.alignment import align, monotonic_path


def best_of_all(scores: np.ndarray) -> float:
    """The greatest sum over all ways to share the frames out among the tokens in order, none left out."""
    tokens, frames = scores.shape
    sums = []
    for bounds in combinations(range(1, frames), tokens - 1):
        owners = np.searchsorted(bounds, np.arange(frames), side="right")
        sums.append(scores[owners, np.arange(frames)].sum())
    return float(max(sums))


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (3, 3), (2, 7), (4, 9), (5, 6)])
@pytest.mark.parametrize("seed", range(4))
def test_the_path_is_the_best_of_all(shape: tuple[int, int], seed: int) -> None:
    scores = np.random.default_rng(seed).normal(size=shape)
    path = monotonic_path(scores)
    steps = np.diff(path)
    assert path[0] == 0 and path[-1] == shape[0] - 1
    assert set(steps) <= {0, 1}
    assert scores[path, np.arange(shape[1])].sum() == pytest.approx(best_of_all(scores))


def test_equal_scores_give_every_token_a_frame() -> None:
    path = monotonic_path(np.zeros((4, 10)))
    assert sorted(set(path)) == [0, 1, 2, 3]


def test_too_few_frames_are_refused() -> None:
    with pytest.raises(ValueError, match="4 tokens cannot each have one of 3 frames"):
        monotonic_path(np.zeros((4, 3)))


def test_alignment_goes_by_the_likelihood_of_normal_distributions() -> None:
    torch.manual_seed(0)
    means, log_deviations, latents = torch.randn(3, 4), 0.3 * torch.randn(3, 4), torch.randn(3, 9)
    chances = Normal(means[:, :, None], log_deviations.exp()[:, :, None]).log_prob(latents[:, None]).sum(0)
    path = align(latents, means, log_deviations).numpy()
    assert chances.numpy()[path, np.arange(9)].sum() == pytest.approx(best_of_all(chances.numpy()), rel=1e-5)
