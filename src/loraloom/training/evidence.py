"""Proof that an adapter acts (D9): what it matched, how far weights moved, how far outputs moved.

A run whose trained model is its base model fails here, with a sentence that says so.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from loraloom.adapters import AdapterSet
from loraloom.adapters.quantized import dense_weight
from loraloom.adapters.spectrum import Spectrum, site_values
from loraloom.training.output import NothingMoved

Rows = list[dict[str, Any]]


def pattern_table(adapters: AdapterSet, name: str) -> Rows:
    """One row per target pattern: how many sites it matched, and how many numbers train there."""
    sites = adapters.plan(name).sites
    counts = Counter(site.pattern for site in sites)
    return [
        {
            "pattern": pattern,
            "sites": count,
            "parameters": sum(site.size for site in sites if site.pattern == pattern),
        }
        for pattern, count in counts.items()
    ]


def site_changes(model: nn.Module, adapters: AdapterSet, name: str) -> Rows:
    """‖ΔW‖_F and its share of ‖W‖_F for every site."""
    tensors = adapters.tensors(name)
    rows = []
    for site in adapters.plan(name).sites:
        change = Spectrum(tuple(site_values(adapters, name, site, tensors))).norm
        weight = base_norm(model, site.module, site.parameter)
        rows.append({"path": site.path, "rank": site.rank, "change": change, "relative": _ratio(change, weight)})
    return rows


def base_norm(model: nn.Module, module: str, parameter: str) -> float:
    """‖W‖_F of a base weight; of a quantised one, of what it stands for."""
    return float(torch.linalg.vector_norm(dense_weight(model.get_submodule(module), parameter).float()))


def weight_changes(before: nn.Module, after: nn.Module) -> Rows:
    """‖W' − W‖_F and its share of ‖W‖_F for every matrix of a model that was trained whole."""
    old = dict(before.named_parameters())
    rows = []
    for path, weight in after.named_parameters():
        if weight.ndim >= 2 and path in old:
            first = old[path].detach().float().to(weight.device)
            change = float(torch.linalg.vector_norm(weight.detach().float() - first))
            relative = _ratio(change, float(torch.linalg.vector_norm(first)))
            rows.append({"path": path, "rank": None, "change": change, "relative": relative})
    return rows


def output_change(before: Sequence[Tensor], after: Sequence[Tensor]) -> float:
    """‖y' − y‖ / ‖y‖ over the raw outputs of the same batches."""
    pairs = list(zip(before, after, strict=True))
    moved = math.fsum(float((new.double() - old.double()).square().sum()) for old, new in pairs)
    size = math.fsum(float(old.double().square().sum()) for old, _ in pairs)
    return _ratio(math.sqrt(moved), math.sqrt(size))


def gather_evidence(patterns: Rows, sites: Rows, outputs: float, examples: int) -> dict[str, Any]:
    """The evidence as run.json keeps it. Raises NothingMoved when weights or outputs are the base's."""
    if sites and not any(row["change"] for row in sites):
        raise NothingMoved(
            "nothing was learnt: every update ΔW is zero after training; raise learning_rate or epochs, "
            "and check the labels"
        )
    if outputs == 0:
        raise NothingMoved(
            f"nothing was learnt: the outputs for {examples} held-out examples are those of the base model; "
            "raise learning_rate or epochs, or choose other adapter.targets"
        )
    return {"patterns": patterns, **_summary(sites), "output_change": outputs, "output_examples": examples}


def _summary(sites: Rows) -> dict[str, Any]:
    relatives = [row["relative"] for row in sites]
    return {
        "sites": sites,
        "relative_change_median": statistics.median(relatives) if relatives else None,
        "relative_change_max": max(relatives) if relatives else None,
    }


def unmoved_sites(evidence: Mapping[str, Any]) -> list[str]:
    """Paths of the sites whose update is zero."""
    return [row["path"] for row in evidence["sites"] if not row["change"]]


def _ratio(part: float, whole: float) -> float:
    """part / whole; of nothing at all, anything is all of it."""
    return part / whole if whole else float(part > 0)
