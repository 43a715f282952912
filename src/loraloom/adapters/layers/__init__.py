"""Layers that carry updates: one file per mathematical idea, and the table from a layer's type to it.

Every kind answers the same questions as class methods, from the frozen module alone: the shapes of its
factors (`shapes`), ΔW in the weight's own shape (`delta`), the largest rank that adds anything
(`full_rank`); and as a layer it computes the adapted output (`forward`).

A sibling of LoRA (another parametrisation of ΔW) belongs beside `functional.py` and `initialise.py`; a new
layer type belongs here, as a row of `KINDS`.
"""

from __future__ import annotations

from torch import nn

from loraloom.adapters.layers.base import (
    Adapted,
    Additive,
    Kind,
    Slot,
    adapted_class,
    module_at,
    parameter_at,
    slot_of,
)
from loraloom.adapters.layers.conv import AdaptedConv
from loraloom.adapters.layers.embedding import AdaptedEmbedding
from loraloom.adapters.layers.linear import AdaptedLinear, AdaptedTransposedLinear, is_transposed_linear
from loraloom.adapters.layers.parameter import AdaptedParameters, Experts, Matrix

KINDS: dict[str, type[Kind]] = {
    "linear": AdaptedLinear,
    "conv1d-transposed": AdaptedTransposedLinear,
    "conv1d": AdaptedConv,
    "conv2d": AdaptedConv,
    "conv3d": AdaptedConv,
    "embedding": AdaptedEmbedding,
    "matrix": Matrix,
    "experts": Experts,
}

_BY_TYPE: tuple[tuple[type[nn.Module], str], ...] = (
    (nn.Linear, "linear"),
    (nn.Conv1d, "conv1d"),
    (nn.Conv2d, "conv2d"),
    (nn.Conv3d, "conv3d"),
    (nn.Embedding, "embedding"),
)


def layer_kind(module: nn.Module) -> str | None:
    """The kind of update a layer takes on its output, or None where it takes none."""
    if is_transposed_linear(module):
        return "conv1d-transposed"
    return next((kind for layer, kind in _BY_TYPE if isinstance(module, layer)), None)


def parameter_kind(dimensions: int) -> str | None:
    """The kind of update a raw parameter takes, by its number of dimensions."""
    return {2: "matrix", 3: "experts"}.get(dimensions)


__all__ = [
    "KINDS",
    "Adapted",
    "AdaptedParameters",
    "Additive",
    "Kind",
    "Slot",
    "adapted_class",
    "layer_kind",
    "module_at",
    "parameter_at",
    "parameter_kind",
    "slot_of",
]
