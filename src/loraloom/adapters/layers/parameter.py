"""Raw parameters: weights that a module uses in code of its own, where no layer's output can be added to.

For each call the weight is replaced by W + ΔW and put back afterwards. Attention with a packed in_proj,
the expert weights of a mixture of experts, and whole heads or biases that an adapter copies go this way.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from loraloom.adapters.layers.base import Active, Adapted, Kind, Slot, mixed_copy, slot_of
from loraloom.adapters.site import Shape


class Matrix(Kind):
    """A 2-D parameter W (O, D): ΔW = B A."""

    @classmethod
    def shapes(cls, weight: Tensor, module: nn.Module, rank: int) -> tuple[Shape, Shape]:
        return (rank, weight.shape[1]), (weight.shape[0], rank)

    @classmethod
    def delta(cls, a: Tensor, b: Tensor, module: nn.Module, shape: Shape) -> Tensor:
        return b @ a


class Experts(Kind):
    """A 3-D parameter with one matrix per expert: W (E, O, D), or (E, D, O) where the module `is_transposed`.

    A (E·R, D) holds the experts one after the other; B (O, R·E) holds them interleaved, the expert being
    the fastest index, as PEFT lays them out.
    """

    @classmethod
    def shapes(cls, weight: Tensor, module: nn.Module, rank: int) -> tuple[Shape, Shape]:
        experts, rows, columns = weight.shape
        out_features, in_features = (columns, rows) if _is_transposed(module) else (rows, columns)
        return (experts * rank, in_features), (out_features, rank * experts)

    @classmethod
    def full_rank(cls, weight: Tensor, module: nn.Module) -> int:
        return min(weight.shape[1:])

    @classmethod
    def delta(cls, a: Tensor, b: Tensor, module: nn.Module, shape: Shape) -> Tensor:
        experts = shape[0]
        per_expert_a = a.reshape(experts, -1, a.shape[1])
        per_expert_b = b.reshape(b.shape[0], -1, experts).permute(2, 0, 1)
        delta = per_expert_b @ per_expert_a
        return delta.transpose(1, 2) if _is_transposed(module) else delta


def _is_transposed(module: nn.Module) -> bool:
    return bool(getattr(module, "is_transposed", False))


PARAMETER_KINDS: dict[str, type[Kind]] = {"matrix": Matrix, "experts": Experts}


class AdaptedParameters(Adapted):
    """A module that runs its own code over weights that its adapters replace for the call."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        slot = cast(Slot, slot_of(self))
        active = slot.active()
        if not active:
            return super().forward(*args, **kwargs)
        if slot.mixture.routes is not None:
            return self._routed(slot, slot.mixture.routes, args, kwargs)
        return self._with(slot, active, args, kwargs)

    def _with(self, slot: Slot, active: Active, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        tensors = effective(slot, active)
        if any(role == "head" for table in slot.copies.values() for role in table.values()):
            args, kwargs = _cast_inputs(slot, tensors, args, kwargs)
        with replaced(self, tensors):
            return super().forward(*args, **kwargs)

    def _routed(
        self,
        slot: Slot,
        routes: tuple[Mapping[str, float], ...],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Samples of like mixture go through the module together, each group with its own weights."""
        bound = inspect.signature(slot.base_class.forward).bind(self, *args, **kwargs)
        arguments = dict(bound.arguments)
        groups: dict[tuple[tuple[str, float], ...], list[int]] = {}
        for row, route in enumerate(routes):
            groups.setdefault(tuple(route.items()), []).append(row)
        of_inputs, of_outputs = _batch_dimensions(self)
        pieces, order = [], []
        for mix, rows in groups.items():
            index = torch.tensor(rows, device=next(slot.module.parameters()).device)
            order.append(index)
            for name, value in list(arguments.items())[1:]:
                bound.arguments[name] = _rows(name, value, index, len(routes), of_inputs.get(name, 0))
            active = _restricted(slot, dict(mix))
            pieces.append(
                self._with(slot, active, bound.args[1:], bound.kwargs)
                if active
                else super().forward(*bound.args[1:], **bound.kwargs)
            )
        return _joined(pieces, torch.argsort(torch.cat(order)), of_outputs)


def effective(slot: Slot, active: Active) -> dict[str, Tensor]:
    """The weights that hold for a call, by their names in the module."""
    tensors: dict[str, Tensor] = {}
    for name in active.names:
        for parameter, site in slot.sites[name].items():
            a, b = slot.factors(name, parameter)
            base = cast(Tensor, slot.module.get_parameter(parameter))
            kind = PARAMETER_KINDS[site.kind]
            delta = kind.delta(a, b, _owner(slot.module, parameter), site.shape) * (
                slot.scale(name, site) * active.weights[name]
            )
            tensors[parameter] = tensors.get(parameter, base) + delta.to(base.dtype)
    return tensors | _copied(slot, active.copies)


def _copied(slot: Slot, weights: dict[str, float]) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    heads = [name for name in weights if "head" in slot.copies[name].values()]
    chosen = slot.mixture.head if slot.mixture.head in heads else next(iter(heads), None)
    if chosen is not None:
        tensors |= {parameter: slot.copy(chosen, parameter) for parameter in slot.copies[chosen]}
    for parameter in {p for name in weights for p, role in slot.copies[name].items() if role == "bias"}:
        holders = {name: weight for name, weight in weights.items() if parameter in slot.copies[name]}
        tensors[parameter] = mixed_copy(slot, parameter, holders, slot.module.get_parameter(parameter))
    return tensors


def _restricted(slot: Slot, mix: dict[str, float]) -> Active:
    names = tuple(name for name in mix if name in slot.sites)
    copies = {name: weight for name, weight in mix.items() if name in slot.copies}
    return Active(-1, names, (), copies, mix)


def _cast_inputs(
    slot: Slot, tensors: Mapping[str, Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A head in float32 over a bf16 base computes in float32: its inputs are raised to its dtype."""
    dtype = next(iter(tensors.values())).dtype

    def up(value: Any) -> Any:
        return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value

    return tuple(map(up, args)), {key: up(value) for key, value in kwargs.items()}


@contextmanager
def replaced(module: nn.Module, tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """Within the block the module's parameters of these names are these tensors."""
    tables = [(_owner(module, name)._parameters, name.rpartition(".")[2], tensor) for name, tensor in tensors.items()]
    originals = [table[leaf] for table, leaf, _ in tables]
    try:
        for table, leaf, tensor in tables:
            table[leaf] = cast(Any, tensor)
        yield
    finally:
        for (table, leaf, _), original in zip(tables, originals, strict=True):
            table[leaf] = original
        if isinstance(module, nn.RNNBase):
            module._init_flat_weights()  # it keeps a list of its weights, which must not go on holding these


def _owner(module: nn.Module, parameter: str) -> nn.Module:
    return module.get_submodule(parameter.rpartition(".")[0])


def _batch_dimensions(module: nn.Module) -> tuple[dict[str, int], tuple[int, ...]]:
    """Where the samples lie in a module's arguments, by name, and in its outputs, in order; 0 if not told."""
    first = 0 if getattr(module, "batch_first", True) else 1
    if isinstance(module, nn.MultiheadAttention):
        return {"query": first, "key": first, "value": first}, (first, 0)
    if isinstance(module, nn.RNNBase):
        return {"input": first, "hx": 1}, (first, 1)
    return {}, ()


def _rows(name: str, value: Any, index: Tensor, count: int, dim: int) -> Any:
    """The rows of one group, in every tensor of an argument."""
    if isinstance(value, tuple | list):
        return type(value)(_rows(name, part, index, count, dim) for part in value)
    if isinstance(value, dict):
        return {key: _rows(key, part, index, count, dim) for key, part in value.items()}
    if not isinstance(value, Tensor) or value.dim() == 0:
        return value
    if name == "attn_mask":  # (T, S) for all samples alike, or (B·heads, T, S)
        if value.dim() == 2:
            return value
        return _rows("", value.reshape(count, -1, *value.shape[1:]), index, count, 0).flatten(0, 1)
    if value.dim() <= dim or value.shape[dim] != count:
        shape = tuple(value.shape)
        raise ValueError(f"{count} samples are routed, but a module got a tensor of shape {shape} as its {name!r}")
    return value.index_select(dim, index)


def _joined(pieces: list[Any], order: Tensor, dims: tuple[int, ...]) -> Any:
    """The outputs of all groups as one, its samples in the order of the batch."""
    first = pieces[0]
    if isinstance(first, tuple):
        each = dims if len(dims) == len(first) else (dims or (0,))[:1] * len(first)
        parts = zip(zip(*pieces, strict=True), each, strict=True)
        return tuple(_joined(list(part), order, (dim,)) for part, dim in parts)
    if not isinstance(first, Tensor):
        return first
    dim = dims[0] if dims else 0
    return torch.cat(pieces, dim=dim).index_select(dim, order)
