"""Several short passages in one row of tokens, none of which sees another; and rows as batches."""

from __future__ import annotations

import bisect
import inspect
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from loraloom.tasks.base import Batch, Feature
from loraloom.tasks.language.completions import Passage

NOT_LEARNT = -100
"""In `labels`: a token that is neither learnt nor scored."""


def packed(lengths: Sequence[int], limit: int) -> list[list[int]]:
    """Indices of passages in rows of `limit` tokens at most, rows in the order of their first passage.

    Best fit, longest first: each passage goes into the fullest row that still holds it (Johnson et al. 1974,
    at most 11/9 of the fewest rows possible). Lengths above the limit stand alone.
    """
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (free tokens, row), sorted
    for index in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        at = bisect.bisect_left(room, (lengths[index], -1))
        if at < len(room):
            free, row = room.pop(at)
        else:
            free, row = limit, len(rows)
            rows.append([])
        rows[row].append(index)
        bisect.insort(room, (free - lengths[index], row))
    return sorted((sorted(row) for row in rows), key=lambda row: row[0])


def make_row(passages: Sequence[Passage]) -> Feature:
    """Passages one after the other as one feature; its reference is (document, bytes) of each of them."""
    lengths = [len(passage.ids) for passage in passages]
    return Feature(
        inputs={
            "input_ids": np.concatenate([passage.ids for passage in passages]),
            "targets": np.concatenate([passage.targets for passage in passages]),
            "starts": [0, *accumulate(lengths)][:-1],
        },
        length=sum(lengths),
        reference=tuple((passage.document, passage.size) for passage in passages),
    )


def make_batch(features: Sequence[Feature]) -> Batch:
    """Rows as input_ids and labels (B, T), int64, padded on the right; labels are ids, or NOT_LEARNT.

    position_ids (B, T) are there when some row is packed: they begin anew with every passage, by which
    transformers' models keep passages apart (and padding from them all). Otherwise nothing is needed: what
    is on the right of a token does not reach it.
    """
    shape = (len(features), max(feature.length for feature in features))
    ids, labels = np.zeros(shape, np.int64), np.full(shape, NOT_LEARNT, np.int64)
    for row, feature in enumerate(features):
        own, targets = feature.inputs["input_ids"], feature.inputs["targets"]
        ids[row, : feature.length] = own
        labels[row, : feature.length] = np.where(targets, own, NOT_LEARNT)
    batch: Batch = {"input_ids": torch.from_numpy(ids), "labels": torch.from_numpy(labels)}
    if any(len(feature.inputs["starts"]) > 1 for feature in features):
        positions = [_positions([*feature.inputs["starts"], feature.length], shape[1]) for feature in features]
        batch["position_ids"] = torch.from_numpy(np.stack(positions))
    return batch


def _positions(starts: Sequence[int], width: int) -> NDArray[np.int64]:
    """0, 1, 2, … from every start on, up to `width`."""
    begun = np.zeros(width, np.int64)
    for start in starts:
        begun[start:] = start
    return np.arange(width) - begun


def passage_numbers(batch: Batch) -> Tensor:
    """Which passage of its row each token is of, from 0, (B, T)."""
    positions: Tensor | None = batch.get("position_ids")
    return torch.zeros_like(batch["input_ids"]) if positions is None else (positions == 0).cumsum(1) - 1


def accepts(model: nn.Module, name: str) -> bool:
    """Whether the model's forward takes an argument of this name, also where the model is compiled."""
    inner: Any = getattr(model, "_orig_mod", model)
    return name in inspect.signature(inner.forward).parameters


@torch.no_grad()
def keeps_passages_apart(model: nn.Module, vocabulary: int) -> bool:
    """Whether a packed row gives each passage the logits that it has alone: tried, not looked up.

    Models without positions (a bias by distance) or with a running state do not.
    """
    if not accepts(model, "position_ids"):
        return False
    training = model.training
    model.eval()
    device = next(model.parameters()).device
    tokens = (torch.arange(24, device=device) * 7919 + 11) % vocabulary
    alone = [model(input_ids=part[None], use_cache=False).logits[0] for part in (tokens[:12], tokens[12:])]
    positions = torch.arange(12, device=device).repeat(2)
    together = model(input_ids=tokens[None], position_ids=positions[None], use_cache=False).logits[0]
    apart = torch.cat(alone).float()
    model.train(training)
    tolerance = 1e-4 if next(model.parameters()).dtype == torch.float32 else 0.05
    return bool((together.float() - apart).abs().max() <= tolerance * apart.abs().max().clamp(min=1e-6))
