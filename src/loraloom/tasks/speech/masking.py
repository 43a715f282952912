"""Masks over time and features for training on speech (SpecAugment, Park et al. 2019).

Drawn from torch's global generator, so that a resumed run draws the same; transformers' own masks come from
numpy's and rest while a frozen base runs as in evaluation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


def span_mask(lengths: Sequence[int], width: int, share: float, span: int) -> Tensor:
    """A bool mask (B, width), true where masked: spans over about `share` of each row's first `lengths`.

    A span is `span` long, or a quarter of the row where that is less; spans may overlap, so that the share
    is an upper bound. A fraction of a span is drawn by chance. What lies beyond a row's length stays clear.
    """
    mask = torch.zeros(len(lengths), width, dtype=torch.bool)
    if share <= 0:
        return mask
    for row, length in enumerate(lengths):
        size = max(1, min(span, length // 4))
        number = int(share * length / size + float(torch.rand(())))
        for start in torch.randint(0, max(1, length - size + 1), (number,)).tolist():
            mask[row, start : min(start + size, length)] = True
    return mask


@contextmanager
def masked_features(model: Any, time: Tensor | None, feature: Tensor | None) -> Iterator[None]:
    """Within, a speech encoder sees masks: `time` (B, T frames) and `feature` (B, C), bool, true where masked.

    Masked frames become the encoder's own `masked_spec_embed`, which its pre-training knows, else zeros;
    masked features become zeros. This acts in evaluation mode too, where transformers' own masks do not.
    """
    if time is None and feature is None and not torch.is_grad_enabled():
        yield
        return
    backbone: Any = model.get_submodule(model.base_model_prefix)
    fill = getattr(backbone, "masked_spec_embed", None)

    def mask(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        hidden = output[0] if isinstance(output, tuple) else output  # Wav2Vec2 also gives its input, normalised
        if time is not None:
            new = torch.zeros_like(hidden[0, 0]) if fill is None else fill.to(hidden.dtype)
            hidden = torch.where(time[:, : hidden.shape[1], None], new, hidden)
        if feature is not None:
            hidden = hidden.masked_fill(feature[:, None, :], 0)
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    handle = backbone.feature_projection.register_forward_hook(mask)
    try:
        yield
    finally:
        handle.remove()
