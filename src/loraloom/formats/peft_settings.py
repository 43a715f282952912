"""The settings of an adapter in a file: as they were given, in the header, or worked out from the config."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import torch
from torch import nn

from loraloom.adapters import AdapterSpec
from loraloom.errors import ConfigError
from loraloom.formats.expressions import expression
from loraloom.formats.peft_config import BIASES, PeftConfig
from loraloom.formats.peft_names import Place, parameter_paths
from loraloom.formats.selection import most_common, shortest_names

HEADER = "loraloom"
"""Key of the safetensors header under which our settings travel that PEFT has no word for."""
VERSION = 1


def header_of(spec: AdapterSpec, config: PeftConfig) -> dict[str, str]:
    """Metadata for the safetensors header: the settings, and a seal that tells whether they still hold."""
    settings = spec.to_dict()
    ours = {"seal": _seal(settings, config), "spec": settings, "version": VERSION}
    return {"format": "pt", HEADER: json.dumps(ours, separators=(",", ":"))}


def _seal(settings: dict[str, Any], config: PeftConfig) -> str:
    text = json.dumps(settings) + config.canonical()
    return hashlib.sha256(text.encode()).hexdigest()


def spec_of(ours: dict[str, Any], config: PeftConfig) -> AdapterSpec | None:
    """The settings from a header, or None where the config was changed since and now decides alone."""
    settings = ours.get("spec")
    if not isinstance(settings, dict) or ours.get("seal") != _seal(settings, config):
        return None
    try:
        spec = AdapterSpec.from_dict(settings)
        return spec if _is_harmless(spec) else None
    except (ConfigError, TypeError, ValueError):  # settings that this version does not know
        return None


def _is_harmless(spec: AdapterSpec) -> bool:
    """Whether the patterns can be matched soon: anybody can write a header, and seal it."""
    patterns = (*spec.targets, *spec.exclude, *spec.parameters, *spec.heads, *spec.rank_pattern, *spec.alpha_pattern)
    return all(expression(pattern[3:]).is_simple for pattern in patterns if pattern.startswith("re:"))


def derived_spec(
    config: PeftConfig,
    sites: Sequence[tuple[Place, int, float]],
    attention: Collection[str],
    heads: Sequence[str],
    model: nn.Module,
    dtype: torch.dtype,
) -> AdapterSpec:
    """Settings that mean exactly these places (with rank and alpha) and heads on this model.

    `attention` names the modules of which in_proj and out_proj are both meant.
    """
    by_path = {place.path: (float(rank), alpha) for place, rank, alpha in sites}
    rank = most_common([rank for rank, _ in by_path.values()] or [config.r])
    alpha = most_common([alpha for _, alpha in by_path.values()] or [config.lora_alpha])
    modules = [path for path, _ in model.named_modules(remove_duplicate=False) if path]
    outside = [path for path in modules if not any(f"{path}.".startswith(f"{head}.") for head in heads)]
    whole = {place.module for place, _, _ in sites if not place.substituted or place.module in attention}
    parameters = [place.path for place, _, _ in sites if place.module not in whole]
    return AdapterSpec(
        rank=int(rank),
        alpha=alpha,
        targets=_patterns(sorted(whole), outside),
        parameters=_patterns(parameters, parameter_paths(model)),
        heads=_patterns(heads, modules),
        rank_pattern={k: int(v) for k, v in _values({p: r for p, (r, _) in by_path.items()}, rank).items()},
        alpha_pattern=_values({p: a for p, (_, a) in by_path.items()}, alpha),
        scaling="rslora" if config.use_rslora else "alpha/r",
        dropout=0.0,  # which a plan with raw parameters refuses, and PEFT passes over
        bias="adapted" if config.lora_bias and config.bias == "none" else BIASES[config.bias],
        tied="separate",
        dtype=dtype,
    )


def _patterns(chosen: Iterable[str], others: Iterable[str]) -> tuple[str, ...]:
    names, hopeless = shortest_names(list(chosen), others)
    return (*map(_literal, names), *(_literal(path, whole=True) for path in hopeless))


def _values(values: dict[str, float], default: float) -> dict[str, float]:
    patterns: dict[str, float] = {}
    for value in sorted(set(values.values()) - {default}):
        for pattern in _patterns([path for path, own in values.items() if own == value], values):
            patterns[pattern] = value
    return patterns


def _literal(name: str, *, whole: bool = False) -> str:
    """A pattern that means a name as it is written."""
    if whole or any(sign in name for sign in "*?[") or name.startswith("re:"):
        return "re:" + ("" if whole else r"(?:.*\.)?") + re.escape(name)
    return name
