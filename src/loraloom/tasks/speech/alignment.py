"""Which frame of a recording belongs to which token of its text: the best monotonic path between them."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def monotonic_path(scores: NDArray[np.floating]) -> NDArray[np.int64]:
    """The token of each frame (F,) on the path of the greatest sum through `scores` (N tokens, F frames).

    Monotonic alignment search (Kim et al. 2020, algorithm 1): frame 0 belongs to token 0, the last frame to
    the last token, and from frame to frame the token stays or is the next. Exact, in F steps over all tokens
    at once. Of equal paths, the one that stays longer in late tokens. Raises ValueError where there are fewer
    frames than tokens, so that some token would be left out.
    """
    tokens, frames = scores.shape
    if not 0 < tokens <= frames:
        raise ValueError(f"{tokens} tokens cannot each have one of {frames} frames")
    best = np.full(tokens, -np.inf)
    best[0] = scores[0, 0]
    stays = np.zeros((frames, tokens), dtype=bool)
    moved = np.full(tokens, -np.inf)
    for frame in range(1, frames):
        moved[1:] = best[:-1]
        stays[frame] = best >= moved
        best = np.maximum(best, moved) + scores[:, frame]
    path = np.empty(frames, dtype=np.int64)
    token = tokens - 1
    for frame in range(frames - 1, -1, -1):
        path[frame] = token
        # Tokens that no path reaches so early hold -inf on both sides: only a move leads out of them.
        if frame and (token == frame or not stays[frame, token]):
            token -= 1
    return path


@torch.no_grad()
def align(latents: Tensor, means: Tensor, log_deviations: Tensor) -> Tensor:
    """The most probable token of each frame (F,), for one sentence.

    `latents` (C, F) are the recording's, carried through the flow; `means` and `log_deviations` (C, N) are of
    the normal distribution that the text predicts for each token. The log-likelihood of every pair is
    Σ_c log N(z; μ, σ²) (Kim et al. 2021, eq. 5).
    """
    latents, means, log_deviations = latents.double(), means.double(), log_deviations.double()
    precision = torch.exp(-2.0 * log_deviations)
    scores = (
        -log_deviations.sum(0)[:, None]
        - 0.5 * precision.T @ latents.square()
        + (means * precision).T @ latents
        - 0.5 * (means.square() * precision).sum(0)[:, None]
    )
    return torch.from_numpy(monotonic_path(scores.cpu().numpy())).to(latents.device)
