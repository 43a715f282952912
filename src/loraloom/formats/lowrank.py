"""The tensors of one layer, in whatever decomposition, as the two factors of LoRA.

Most decompositions of LyCORIS are LoRA in another guise, and become it without any rounding but that of one product
per number: a Hadamard product of two rank-r matrices is the rank-r² product of their face-splitting products, a
Kronecker product of factors the product of Kronecker products, and a full matrix itself times the identity. An SVD is
made only where a smaller rank is asked for, and its error is told.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from loraloom.adapters.product import Product

Tensors = Mapping[str, Tensor]
"""Of one layer, by role; see `keys.ROLES`."""


class LowRank(NamedTuple):
    """Factors of ΔW / scale, as PEFT multiplies them."""

    a: Tensor
    b: Tensor
    dim: int | None
    """What the file divides its alpha by; None where it scales by nothing."""
    what: str = ""
    """The decomposition, where it was no plain LoRA."""
    error: float = 0.0
    """Relative error of ΔW, where an SVD cut it."""


REFUSED = {
    "oft_blocks": "OFT, a rotation of the weight and no update of low rank",
    "oft_diag": "OFT, a rotation of the weight and no update of low rank",
    "rescale": "BOFT, a rotation of the weight and no update of low rank",
    "a1.weight": "GLoRA, which also multiplies the base's weights",
    "bias_values": "a sparse bias of LyCORIS",
    "diff_b": "a change of a bias, which no adapter of these formats can hold beside factors",
    "w_norm": "a change of a normalisation layer",
    "b_norm": "a change of a normalisation layer",
}
"""Role → why a layer that has it cannot become factors."""

_MOST_NUMBERS = 2**27
_BESIDE = {"alpha", "bias", "dora_scale", "magnitude"}


def low_rank(tensors: Tensors, shape: tuple[int, ...] | None, weight: Tensor | None = None) -> LowRank:
    """The factors of one layer's tensors; `shape` is the weight's, `weight` the base's own, where they are known.

    Raises ValueError for tensors that make no update, or one that factors cannot hold.
    """
    for role, what in REFUSED.items():
        if role in tensors:
            raise ValueError(f"it is {what}")
    roles = set(tensors) - _BESIDE
    for needed, allowed, make in _DECOMPOSITIONS:
        if roles and needed <= roles <= allowed:
            return make(_checked(tensors), shape, weight)
    raise ValueError(f"{', '.join(sorted(roles)) or 'alpha'} alone {'make' if len(roles) > 1 else 'makes'} no update")


def _checked(tensors: Tensors) -> Tensors:
    for role, tensor in tensors.items():
        if not tensor.is_floating_point() and role != "on_input":
            raise ValueError(f"its {role} holds {tensor.dtype}, expected floating-point numbers")
        if role not in ("alpha", "on_input") and not torch.isfinite(tensor).all():
            raise ValueError(f"its {role} holds values that are not finite")
        if role != "alpha" and not tensor.numel():
            raise ValueError(f"its {role} is empty: shape {tuple(tensor.shape)}")
    return tensors


def magnitudes(tensors: Tensors, outputs: int) -> Tensor | None:
    """DoRA's magnitudes (out,), None where it is none. Raises ValueError for those that go by inputs.

    LyCORIS keeps (out, 1…) or, without `wd_on_out`, (1, in…); PEFT and diffusers (out,) or, of a convolution, (1, out,
    1…). Only those by outputs are defined alike everywhere: the norm of a row of W + ΔW.
    """
    named = next(((role, tensors[role]) for role in ("dora_scale", "magnitude") if role in tensors), None)
    if named is None:
        return None
    role, tensor = named
    if tensor.numel() == outputs and (role == "magnitude" or tensor.dim() == 0 or tensor.shape[0] == outputs):
        return tensor.flatten()
    raise ValueError(
        f"it is DoRA with magnitudes of shape {tuple(tensor.shape)}, not one per output ({outputs}, 1): such by inputs "
        "have no word in PEFT, and programs do not agree on them"
    )


# -- the decompositions -------------------------------------------------------------------------------


def _plain(tensors: Tensors, shape: tuple[int, ...] | None, weight: Tensor | None) -> LowRank:
    a, b = tensors["A"], tensors["B"]
    if "mid" in tensors:
        _must(a.dim() > 2 and b.dim() > 2, "its factors are no convolutions, but it has a Tucker core")
        core = tensors["mid"]
        return LowRank(_tucker(core, a.flatten(1)), b.to(core.dtype), int(b.shape[1]), "LoCon with a Tucker core")
    return LowRank(a, b, int(a.shape[0]) if a.dim() else None)


def _lookup(tensors: Tensors, shape: tuple[int, ...] | None, weight: Tensor | None) -> LowRank:
    a, b = tensors["lookup A"], tensors["lookup B"]
    return LowRank(a, b, int(a.shape[0]) if a.dim() else None)


def _loha(tensors: Tensors, shape: tuple[int, ...] | None, weight: Tensor | None) -> LowRank:
    """ΔW = (B₁A₁) ∘ (B₂A₂) = B A with B[o, pq] = B₁[o, p] B₂[o, q] and A alike (FedPara, arXiv 2108.06098)."""
    pairs = [_hada_pair(tensors, index) for index in "12"]
    (a1, b1), (a2, b2) = pairs
    _must(a1.shape[1:] == a2.shape[1:] and b1.shape[0] == b2.shape[0], "its two products have different shapes")
    rank = a1.shape[0] * a2.shape[0]
    _affordable(rank, a1[0].numel())
    _affordable(rank, b1.shape[0])
    a = (a1[:, None] * a2[None]).flatten(0, 1)
    b = (b1[:, :, None] * b2[:, None, :]).flatten(1)
    return _as_layer(LowRank(a, b, int(tensors["hada_w1_b"].shape[0]), "LoHa"), shape)


def _hada_pair(tensors: Tensors, index: str) -> tuple[Tensor, Tensor]:
    """A and B of one of LoHa's two products."""
    a, b = _wide(tensors[f"hada_w{index}_b"]), _wide(tensors[f"hada_w{index}_a"])
    core = tensors.get(f"hada_t{index}")
    if core is not None:
        a, b = _tucker(_wide(core), a.flatten(1)), b.t()
    _must(a.dim() >= 2 and b.dim() == 2 and a.shape[0] == b.shape[1], f"its w{index} factors do not fit each other")
    return a, b


def _lokr(tensors: Tensors, shape: tuple[int, ...] | None, weight: Tensor | None) -> LowRank:
    """ΔW = W₁ ⊗ W₂ with W = B A each, so that ΔW = (B₁ ⊗ B₂)(A₁ ⊗ A₂) (KronA, arXiv 2212.10650)."""
    (a1, b1), dim1 = _kron_factor(tensors, "1")
    (a2, b2), dim2 = _kron_factor(tensors, "2")
    _must(a1.dim() == 2, "its w1 is no matrix")
    _affordable(b1.numel(), b2.numel())
    _affordable(a1.numel(), a2.numel())
    b = torch.kron(b1.flatten(1).contiguous(), b2.flatten(1).contiguous())
    a = torch.kron(a1.reshape(*a1.shape, *(1,) * (a2.dim() - 2)), a2.contiguous())
    return _as_layer(LowRank(a, b, dim1 if dim2 is None else dim2, "LoKr"), shape)


def _kron_factor(tensors: Tensors, index: str) -> tuple[tuple[Tensor, Tensor], int | None]:
    """A and B of one side of LoKr, and its rank where it has one."""
    whole = tensors.get(f"lokr_w{index}")
    if whole is not None:
        _must(whole.dim() >= 2, f"its w{index} is no matrix")
        return identity_factors(_wide(whole)), None
    names = [f"lokr_w{index}_{end}" for end in "ab"]
    _must(all(name in tensors for name in names), f"it has neither a whole w{index} nor both of its factors")
    b, a = (_wide(tensors[name]) for name in names)
    core = tensors.get(f"lokr_t{index}")
    dim = int(a.shape[0])
    if core is not None:
        return (_tucker(_wide(core), a.flatten(1)), b.t()), dim
    _must(a.dim() >= 2 and b.dim() == 2 and a.shape[0] == b.shape[1], f"its w{index} factors do not fit each other")
    return (a, b), dim


def _full(tensors: Tensors, shape: tuple[int, ...] | None, weight: Tensor | None) -> LowRank:
    difference = _wide(tensors["diff"])
    _must(difference.dim() >= 2, f"it changes a weight of shape {tuple(difference.shape)}, a norm's or a bias")
    return LowRank(*identity_factors(difference), None, "a full difference")


def _ia3(tensors: Tensors, shape: tuple[int, ...] | None, weight: Tensor | None) -> LowRank:
    """ΔW = W scaled by inputs or by outputs (arXiv 2205.05638): only the base itself can tell it."""
    if weight is None:
        raise ValueError("it is IA3, which scales the base's own weights: it can be read onto its base alone")
    scale = _wide(tensors["ia3"]).flatten()
    on_input = bool(tensors["on_input"].flatten()[0]) if "on_input" in tensors else False
    _must(scale.numel() == weight.shape[1 if on_input else 0], f"it has {scale.numel()} numbers, for another layer")
    view = [1] * weight.dim()
    view[1 if on_input else 0] = -1
    return LowRank(*identity_factors(weight.detach().cpu().float() * scale.view(view)), None, "IA3")


Make = Callable[[Tensors, "tuple[int, ...] | None", "Tensor | None"], LowRank]
_HADA = {f"hada_w{index}_{end}" for index in "12" for end in "ab"}
_LOKR = {f"lokr_{name}" for name in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t1", "t2")}
_DECOMPOSITIONS: tuple[tuple[set[str], set[str], Make], ...] = (
    ({"A", "B"}, {"A", "B", "mid"}, _plain),
    ({"lookup A", "lookup B"}, {"lookup A", "lookup B"}, _lookup),
    (_HADA, _HADA | {"hada_t1", "hada_t2"}, _loha),
    (set(), _LOKR, _lokr),
    ({"diff"}, {"diff"}, _full),
    ({"ia3"}, {"ia3", "on_input"}, _ia3),
)
"""Roles that it must have, those it may have, and how its factors are made."""


# -- tools --------------------------------------------------------------------------------------------


def _must(holds: bool, fault: str) -> None:
    if not holds:
        raise ValueError(fault)


def _affordable(one: int, two: int) -> None:
    """A few numbers in a file can stand for more than any layer has."""
    _must(one * two <= _MOST_NUMBERS, f"its factors would have {one * two} numbers, more than any layer's")


def _wide(tensor: Tensor) -> Tensor:
    """In float32 at least: products of two half-precision numbers are exact there."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _tucker(core: Tensor, a: Tensor) -> Tensor:
    """A (R, in, k…) of a core (R, r, k…) behind a first factor (r, in)."""
    _must(core.dim() > 2 and core.shape[1] == a.shape[0], "its Tucker core does not fit its factors")
    _affordable(core[:, 0].numel(), a.shape[1])
    return torch.einsum("ij...,jc->ic...", core, a.to(core.dtype))


def identity_factors(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """A and B of a whole update (out, in, k…), one of them the identity: no number is changed."""
    rows, columns = matrix.shape[0], matrix[0].numel()
    ones = (1,) * (matrix.dim() - 2)
    if rows <= columns:
        return matrix, torch.eye(rows, dtype=matrix.dtype).reshape(rows, rows, *ones)
    eye = torch.eye(columns, dtype=matrix.dtype).reshape(columns, *matrix.shape[1:])
    return eye, matrix.flatten(1).reshape(rows, columns, *ones)


def _as_layer(factors: LowRank, shape: tuple[int, ...] | None) -> LowRank:
    """B of a convolution as a convolution of size 1, and a flat A in the layer's own shape; −1 is any size."""
    a, b = factors.a, factors.b
    if shape is not None and len(shape) > 2 and a.dim() == 2:
        whole, kernel = a.shape[1], math.prod(shape[2:])
        _must(whole % kernel == 0 and shape[1] in (-1, whole // kernel), f"its {whole} columns do not fit {shape}")
        a = a.reshape(a.shape[0], whole // kernel, *shape[2:])
    b = b.flatten(1)
    return factors._replace(a=a, b=b.reshape(*b.shape, *(1,) * (a.dim() - 2)))


def fitted(factors: LowRank, shape: tuple[int, ...] | None) -> LowRank:
    """A linear layer's factors as a 1×1 convolution's, or the other way round, as the layer of the model is."""
    a, b = factors.a, factors.b
    if shape is None or a.dim() == len(shape) or b.dim() != a.dim():
        return factors
    ones = (1,) * abs(len(shape) - a.dim())
    if len(shape) == 2 and a.shape[2:] == ones and b.shape[2:] == ones:
        return factors._replace(a=a.flatten(1), b=b.flatten(1))
    if a.dim() == 2 and shape[2:] == ones:
        return factors._replace(a=a.reshape(*a.shape, *ones), b=b.reshape(*b.shape, *ones))
    return factors


def cut(factors: LowRank, rank: int) -> LowRank:
    """The best factors of at most this rank (Eckart–Young), by QR of the factors and an SVD of what is small."""
    if factors.a.shape[0] <= rank:
        return factors
    if factors.b.shape[1] != factors.a.shape[0]:
        raise ValueError("it is a grouped convolution, which is not cut to another rank")
    whole = Product.of(factors.b, factors.a).svd()
    kept = whole.product(rank)
    ones = (1,) * (factors.a.dim() - 2)
    return factors._replace(
        a=kept.a.float().reshape(kept.rank, *factors.a.shape[1:]),
        b=kept.b.float().reshape(*kept.b.shape, *ones),
        error=whole.left_out(rank),
    )
