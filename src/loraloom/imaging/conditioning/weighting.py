"""Emphasis on the encoder's output: each token's vector times its weight, then the old mean restored."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def weigh(hidden: Tensor, weights: Tensor, counts: Sequence[int], *, rescale_mean: bool = True) -> Tensor:
    """`hidden` (B, T, D) times `weights` (B, T), as the Stable-Diffusion web UI does it.

    With `rescale_mean` the product is scaled, all of it by one factor, so that the mean over B, T and D is what
    it was. B runs over the texts that take turns in one prompt's schedule, `counts[b]` times each: the web UI
    encodes them as one batch, so that they share the factor. Without, the product itself ("No norm" there).
    """
    product = hidden * weights.to(hidden.dtype).unsqueeze(-1)
    if not rescale_mean:
        return product
    turns = torch.tensor(counts, dtype=torch.float32, device=hidden.device)
    before, after = (_mean(each, turns) for each in (hidden, product))
    # A mean of exactly 0 cannot be scaled to anything else.
    return product if after == 0 else product * (before / after).to(hidden.dtype)


def _mean(hidden: Tensor, turns: Tensor) -> Tensor:
    """The mean over all of `hidden` (B, T, D), row b counted `turns[b]` times; in float32 at least."""
    each = hidden.to(torch.promote_types(hidden.dtype, torch.float32)).mean(dim=(1, 2))
    return (each * turns).sum() / turns.sum()
