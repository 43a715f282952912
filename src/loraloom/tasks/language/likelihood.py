"""How probable a language model finds a text: the loss, and the scores that follow from it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from loraloom.errors import DataError
from loraloom.tasks.base import Batch
from loraloom.tasks.language.packing import NOT_LEARNT, accepts, passage_numbers

CHUNK = 2**26
"""Logits that are held in float32 at a time: a vocabulary of 150,000 makes 4 GB of 8,000 tokens otherwise."""
_LARGEST_EXPONENT = 700.0


class Sums(NamedTuple):
    """What a model says of one passage, added up over its targets."""

    nll: float
    """Negative log-likelihood in nats."""
    hits: int
    """Targets that were the most probable token."""
    tokens: int


def target_logits(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Logits (B, K, V) at the K positions before a target of any row, their labels (B, K), the positions (K,)."""
    following = batch["labels"][:, 1:]
    positions = (following != NOT_LEARNT).any(0).nonzero().flatten()
    inputs: dict[str, Any] = {"input_ids": batch["input_ids"]}
    if "position_ids" in batch:
        inputs["position_ids"] = batch["position_ids"]
    if accepts(model, "use_cache"):
        inputs["use_cache"] = False  # nobody reads it, and with one transformers takes packed rows for whole ones
    if accepts(model, "logits_to_keep"):
        logits = model(**inputs, logits_to_keep=positions).logits
    else:
        logits = model(**inputs).logits[:, positions]
    return logits, following[:, positions], positions


def summed_loss(model: nn.Module, batch: Batch) -> tuple[Tensor, int]:
    """Cross entropy summed over all targets of a batch, a float32 scalar, and how many they are."""
    logits, labels, _ = target_logits(model, batch)
    flat, wanted = logits.flatten(0, 1), labels.flatten()
    return _summed(flat, wanted), int((wanted != NOT_LEARNT).sum())


def _summed(logits: Tensor, labels: Tensor) -> Tensor:
    rows = max(1, CHUNK // logits.shape[-1])
    if len(logits) <= rows:
        return _cross_entropy(logits, labels)
    parts = zip(torch.split(logits, rows), torch.split(labels, rows), strict=True)
    # the float32 copies of a part are made again in the backward pass instead of being kept
    return torch.stack([checkpoint(_cross_entropy, *part, use_reentrant=False) for part in parts]).sum()


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return functional.cross_entropy(logits.float(), labels, ignore_index=NOT_LEARNT, reduction="sum")


@torch.no_grad()
def passage_sums(model: nn.Module, batch: Batch) -> list[list[Sums]]:
    """For each row, the sums of each of its passages, in their order."""
    logits, labels, positions = target_logits(model, batch)
    numbers = passage_numbers(batch)[:, positions + 1]
    count = int(numbers.max()) + 1 if numbers.numel() else 1
    found = [_row_sums(*row, count) for row in zip(logits, labels, numbers, strict=True)]
    # every passage has a target; padding, which may count as one more, has none
    return [[Sums(nll, int(hits), int(tokens)) for nll, hits, tokens in row if tokens] for row in found]


def _row_sums(logits: Tensor, labels: Tensor, numbers: Tensor, count: int) -> list[list[float]]:
    """(nll, hits, tokens) of each passage of one row; logits (K, V), labels and numbers (K,)."""
    sums = torch.zeros(count, 3, dtype=torch.float64)
    rows = max(1, CHUNK // logits.shape[-1])
    for part, wanted, number in zip(
        torch.split(logits, rows), torch.split(labels, rows), torch.split(numbers, rows), strict=True
    ):
        real = wanted != NOT_LEARNT
        part, wanted = part[real].float(), wanted[real]
        nll = functional.cross_entropy(part, wanted, reduction="none")
        values = torch.stack([nll, (part.argmax(-1) == wanted).float(), torch.ones_like(nll)], 1)
        sums.index_add_(0, number[real].cpu(), values.double().cpu())
    found: list[list[float]] = sums.tolist()
    return found


@torch.no_grad()
def last_logits(model: nn.Module, batch: Batch) -> Tensor:
    """Logits (B, V), float32, for the last target of each row: what an adapter changes shows there."""
    logits, labels, _ = target_logits(model, batch)
    real = labels != NOT_LEARNT
    last = (real * torch.arange(1, real.shape[1] + 1, device=real.device)).argmax(1)
    return logits[torch.arange(len(last), device=last.device), last].float()


# --- scores


def likelihood_scores(
    predictions: Sequence[Sequence[Sums]], references: Sequence[Sequence[tuple[int, int]]]
) -> dict[str, float]:
    """Perplexity, token accuracy and bits per byte with 95 % intervals, and how much was scored.

    `references` holds (document, bytes) of each passage of each row. Perplexity is exp(nll / tokens); bits
    per byte is nll / (ln 2 · bytes), which can be compared between tokenizers. Intervals are percentile
    bootstraps over documents, always the same draws; of a single document over its windows; where there is
    one window only, there are none. Raises DataError when there is nothing to score.
    """
    parts = [
        (document, *sums, size)
        for row, reference in zip(predictions, references, strict=True)
        for sums, (document, size) in zip(row, reference, strict=True)
    ]
    table = np.array(parts, np.float64).reshape(-1, 5)
    if not table[:, 3].sum():
        raise DataError("evaluation: there are no tokens to score")
    documents, of = np.unique(table[:, 0], return_inverse=True)
    units = np.zeros((len(documents), 4))
    np.add.at(units, of.reshape(-1), table[:, 1:])
    scores = _scores(units.sum(0)[None])
    found = {name: float(values[0]) for name, values in scores.items()}
    resampled = units if len(units) > 1 else table[:, 1:]
    if len(resampled) > 1:
        for name, values in _scores(_resampled(resampled)).items():
            low, high = np.quantile(values, [0.025, 0.975])
            found |= {f"{name}_low": float(low), f"{name}_high": float(high)}
    total = units.sum(0)
    return {**found, "tokens": float(total[2]), "bytes": float(total[3]), "n": float(len(documents))}


def _resampled(units: NDArray[np.float64], resamples: int = 1000, seed: int = 0) -> NDArray[np.float64]:
    """Sums of `resamples` draws with replacement of as many units as there are, (resamples, 4)."""
    draw, share = np.random.default_rng(seed), np.full(len(units), 1 / len(units))
    counts = [draw.multinomial(len(units), share, size=50) @ units for _ in range(resamples // 50)]
    return np.concatenate(counts)


def _scores(sums: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """Scores of each row of (nll, hits, tokens, bytes)."""
    nll, hits, tokens, size = sums.T
    return {
        "perplexity": np.exp(np.minimum(nll / np.maximum(tokens, 1), _LARGEST_EXPONENT)),
        "token_accuracy": hits / np.maximum(tokens, 1),
        "bits_per_byte": nll / math.log(2) / np.maximum(size, 1),
    }
