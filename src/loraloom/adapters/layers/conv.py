"""Convolutions in one, two and three dimensions: A has the layer's own kernel, B is a 1×1 convolution.

x (B, C, …), W (O, C/groups, k…), A (R, C/groups, k…), B (O, R/groups, 1…). Stride, dilation, padding and
padding mode are the layer's. With groups, the rank is divided among them, so that ΔW stays grouped and can
be merged. (PEFT's A reads all channels instead; such a "wide" adapter (R, C, k…) runs here too, but a
grouped weight cannot hold its ΔW.)
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from loraloom.adapters.functional import Gate
from loraloom.adapters.layers.base import Additive
from loraloom.adapters.site import Shape

_CONV = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}


class AdaptedConv(Additive):
    """y = W * x + b + B * (gate · (A * x))."""

    @classmethod
    def shapes(cls, weight: Tensor, module: nn.Module, rank: int) -> tuple[Shape, Shape]:
        ones = (1,) * (weight.dim() - 2)
        return (rank, *weight.shape[1:]), (weight.shape[0], rank // groups_of(module) or 1, *ones)

    @classmethod
    def full_rank(cls, weight: Tensor, module: nn.Module) -> int:
        groups = groups_of(module)
        return groups * min(weight[0].numel(), weight.shape[0] // groups)

    @classmethod
    def delta(cls, a: Tensor, b: Tensor, module: nn.Module, shape: Shape) -> Tensor:
        groups = groups_of(module)
        if a.shape[1] != shape[1]:
            raise ValueError(
                f"its A reads {a.shape[1]} channels while a group of the layer reads {shape[1]}: "
                "a grouped weight cannot hold this update"
            )
        a_groups = a.reshape(groups, a.shape[0] // groups, -1)
        b_groups = b.reshape(groups, b.shape[0] // groups, -1)
        return (b_groups @ a_groups).reshape(shape)

    @classmethod
    def stack(cls, pairs: list[tuple[Tensor, Tensor]], module: nn.Module) -> tuple[Tensor, Tensor]:
        groups = groups_of(module)
        if groups > 1 and len({a.shape[1] for a, _ in pairs}) > 1:
            pairs = [(widen(a, groups), b) for a, b in pairs]
        parts = [a.reshape(groups, a.shape[0] // groups, *a.shape[1:]) for a, _ in pairs]
        return torch.cat(parts, dim=1).flatten(0, 1), torch.cat([b for _, b in pairs], dim=1)

    def base_forward(self, x: Tensor, bias: Tensor | None) -> Tensor:
        y: Tensor = self._conv_forward(x, self.weight, bias)
        return y

    def update(self, x: Tensor, a: Tensor, b: Tensor, gate: Gate) -> Tensor:
        conv, module = cast(Any, _CONV[a.dim()]), cast(Any, self)
        padding = module.padding
        if module.padding_mode != "zeros":
            x = F.pad(x, module._reversed_padding_repeated_twice, mode=module.padding_mode)
            padding = 0
        groups = module.groups if a.shape[1] * module.groups == module.in_channels else 1
        h = conv(x, a.to(x.dtype), None, module.stride, padding, module.dilation, groups)
        out: Tensor = conv(self._gate_channels(h, gate), b.to(x.dtype), groups=module.groups)
        return out

    def joined(self, x: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, gate: Gate) -> Tensor:
        return self.base_forward(x, bias) + self.update(x, a, b, gate)

    def _gate_channels(self, h: Tensor, gate: Gate) -> Tensor:
        """h (B, ΣR, …) times the gate along its channels; with groups, each group holds a part of every rank."""
        if isinstance(gate, float):
            return h * gate
        if gate.dim() == 2 and gate.shape[0] != h.shape[0]:
            raise ValueError(f"{gate.shape[0]} samples are routed, but a layer got {h.shape[0]} rows (dimension 0)")
        groups = cast(Any, self).groups
        gate = gate.to(h.dtype)[..., ::groups].repeat(*[1] * (gate.dim() - 1), groups)
        return h * gate.view(*gate.shape, *[1] * len(cast(Any, self).kernel_size))

    def _placed(self, shift: Tensor, y: Tensor) -> Tensor:
        return shift.to(y.dtype).view(*shift.shape, *[1] * (y.dim() - 2))

    weight: Tensor
    _conv_forward: Any


def groups_of(module: nn.Module) -> int:
    """Into how many groups a convolution divides its channels."""
    return int(cast(Any, module).groups)


def widen(a: Tensor, groups: int) -> Tensor:
    """A (R, C/groups, k…) as the wide A (R, C, k…) that computes the same: zeros outside a row's own group."""
    rank, channels = a.shape[:2]
    wide = a.new_zeros(groups, rank // groups, groups, channels, *a.shape[2:])
    for group, part in enumerate(a.reshape(groups, rank // groups, channels, *a.shape[2:])):
        wide[group, :, group] = part
    return wide.reshape(rank, groups * channels, *a.shape[2:])


def narrow(a: Tensor, groups: int) -> Tensor | None:
    """The inverse of `widen`: A (R, C/groups, k…), or None where a row reads channels outside its own group."""
    rank, channels = a.shape[0], a.shape[1] // groups
    parts = a.reshape(groups, rank // groups, groups, channels, *a.shape[2:])
    own = torch.stack([parts[group, :, group] for group in range(groups)]).flatten(0, 1)
    return own if torch.equal(widen(own, groups), a) else None
