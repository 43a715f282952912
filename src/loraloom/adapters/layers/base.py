"""What every adapted layer has: a class swapped in beneath it, and a slot with its adapters' factors.

The layer's own class stays its base class, so `isinstance`, paths, hooks and state-dict keys of the base
model do not change. Factors are registered parameters of the layer (they move, wrap and synchronise with
it), yet stay out of `state_dict()`, which remains the base model's, key by key.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from loraloom.adapters.functional import Gate, compute_dtype
from loraloom.adapters.site import Shape, Site

_SLOT = "_adapter_slot"


class Mixture(Protocol):
    """What a slot needs to know of the set that owns the adapters."""

    version: int
    active: dict[str, float]
    routes: tuple[Mapping[str, float], ...] | None
    head: str | None
    fused: bool

    def gate(self, signature: Signature, device: torch.device, dtype: torch.dtype) -> Gate:
        """weight × scale along the stacked rank axis: a number, (ΣR), or (B, ΣR) when routed."""
        ...

    def site_factor(self, name: str, path: str) -> float:
        """What an adapter's weight is multiplied by at one of its sites."""
        ...

    def choice(self, signature: Signature, device: torch.device) -> Choice | None:
        """Where every sample is routed to one adapter, all of like rank: which, and with what weight × scale."""
        ...

    def drops(self, module: nn.Module) -> bool:
        """Whether adapter dropout is on for this module now."""
        ...

    def dropout(self, name: str) -> float:
        """The dropout share of an adapter."""
        ...


Choice = tuple[Tensor, Tensor]
"""Index (B) of each sample's adapter along the stack, and (B, n) weight × scale in that adapter's column."""

Signature = tuple[tuple[str, int, float], ...]
"""(adapter, rank, scale) along the stacked rank axis; layers with the same one share a gate."""


class Active(NamedTuple):
    """What acts in one layer, until the mixture changes."""

    version: int
    names: tuple[str, ...]
    """Adapters with an update here."""
    signature: Signature
    copies: dict[str, float]
    """Weight of each adapter with copied parameters here."""
    weights: dict[str, float]

    def __bool__(self) -> bool:
        return bool(self.names or self.copies)


class Kind:
    """The mathematics of one kind of weight; no state."""

    lookup: ClassVar[bool] = False
    """True where columns of A are looked up rather than multiplied by (embeddings)."""
    turned: ClassVar[bool] = False
    """True where the weight is stored the other way round, so that ΔW is (B A)ᵀ."""

    @classmethod
    def shapes(cls, weight: Tensor, module: nn.Module, rank: int) -> tuple[Shape, Shape]:
        """Shapes of A and B for this weight."""
        raise NotImplementedError

    @classmethod
    def delta(cls, a: Tensor, b: Tensor, module: nn.Module, shape: Shape) -> Tensor:
        """B·A in the weight's own shape, without the scale. Raises ValueError where no such weight exists."""
        raise NotImplementedError

    @classmethod
    def full_rank(cls, weight: Tensor, module: nn.Module) -> int:
        """The largest rank that can add anything."""
        return min(cls.shapes(weight, module, 1)[0][-1], cls.shapes(weight, module, 1)[1][0])


class Slot:
    """The adapters of one layer: which sites, which copied parameters, and what is active of them now.

    Plain data beside the module: it holds names, and reads tensors from the module's own parameters, so
    that moving, casting or copying the module needs nothing more.
    """

    def __init__(self, module: nn.Module, mixture: Mixture, path: str) -> None:
        self.module = module
        self.path = path
        self.mixture = mixture
        self.sites: dict[str, dict[str, Site]] = {}
        """By adapter, then by the parameter's name in the module."""
        self.copies: dict[str, dict[str, str]] = {}
        """By adapter, then by the parameter's name: "head" or "bias"."""
        self.owners: dict[str, nn.Module] = {}
        """For shared factors: the module that holds them, by adapter."""
        self.base_class = type(module)
        self._resolved: Active | None = None
        self._stacks: dict[Any, tuple[Any, tuple[Tensor, Tensor], list[Tensor]]] = {}

    def parameter(self, role: str, name: str, parameter: str = "weight") -> str:
        """The name under which the module registers a factor ("A", "B") or a copy ("copy") of an adapter."""
        inner = "" if parameter == "weight" and role != "copy" else f"{parameter.replace('.', '_')}_"
        return f"lora_{role}_{inner}{name}"

    def factors(self, name: str, parameter: str = "weight") -> tuple[Tensor, Tensor]:
        """A and B of an adapter at a parameter of this layer."""
        site = self.sites[name][parameter]
        owner = self.owners.get(name)
        slot = slot_of(owner) if owner is not None else self
        assert slot is not None
        registered = slot.module._parameters
        a = cast(Tensor, registered[slot.parameter("A", name, parameter)])
        b = cast(Tensor, registered[slot.parameter("B", name, parameter)])
        return (b.t(), a.t()) if site.transposed else (a, b)

    def copy(self, name: str, parameter: str) -> nn.Parameter:
        """An adapter's own copy of a parameter of this layer."""
        return cast(nn.Parameter, self.module._parameters[self.parameter("copy", name, parameter)])

    def names(self, name: str) -> list[str]:
        """Every registered parameter of an adapter in this layer."""
        found = []
        if name not in self.owners:
            for parameter in self.sites.get(name, {}):
                found += [self.parameter(role, name, parameter) for role in "AB"]
        return found + [self.parameter("copy", name, parameter) for parameter in self.copies.get(name, {})]

    @property
    def empty(self) -> bool:
        return not self.sites and not self.copies

    def forget(self, name: str) -> None:
        """Drop an adapter from this layer, its parameters included."""
        for registered in self.names(name):
            del self.module._parameters[registered]
        for table in (self.sites, self.copies, self.owners):
            cast(dict[str, Any], table).pop(name, None)
        self.changed()

    def changed(self) -> None:
        """Something about this layer's adapters changed: work out anew what is active."""
        self._resolved = None
        self._stacks.clear()

    def active(self) -> Active:
        """What acts in this layer now; worked out once per change of the mixture."""
        if self._resolved is None or self._resolved.version != self.mixture.version:
            self._resolved = self._resolve()
        return self._resolved

    def _resolve(self) -> Active:
        mixture = self.mixture
        if mixture.routes is None:
            weights = mixture.active
        else:
            weights = {name: 1.0 for route in mixture.routes for name in route}
        names = tuple(name for name in weights if name in self.sites and self._acts(name))
        signature = tuple(
            (name, site.rank, self.scale(name, site))
            for name in names
            if (site := self.sites[name].get("weight")) is not None
        )
        copies = {
            name: weight * mixture.site_factor(name, self.path)
            for name, weight in weights.items()
            if name in self.copies
        }
        return Active(mixture.version, names, signature, copies, {name: weights[name] for name in names})

    def scale(self, name: str, site: Site) -> float:
        """The site's scale times the factor that holds there; sites of one update share its owner's."""
        return site.scale * self.mixture.site_factor(name, site.shares or site.path)

    def _acts(self, name: str) -> bool:
        return any(self.scale(name, site) != 0 for site in self.sites[name].values())

    def stacked(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """A (ΣR, …) and B (O, ΣR) of the active adapters.

        Those of frozen adapters are kept, in `dtype`, until one changes. Those that train are joined anew for
        each call: a kept stack would cut them off from the graph, and some optimisers change a parameter
        without counting it as a new version.
        """
        names = self.active().names
        pairs = [self.factors(name) for name in names]
        factors = [factor for pair in pairs for factor in pair]
        if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
            return self._stack(pairs)
        if any(factor.requires_grad or factor.is_inference() for factor in factors):
            return self._stack(pairs)
        stamp = [(factor.data_ptr(), factor._version) for factor in factors]
        kept = self._stacks.get((names, dtype))
        if kept is None or kept[0] != stamp:
            a, b = self._stack(pairs)
            # The factors' memory is kept too, lest others come to lie at the address by which they are known.
            kept = (stamp, (a.to(dtype), b.to(dtype)), [factor.detach() for factor in factors])
            self._stacks[names, dtype] = kept
        return kept[1]

    def _stack(self, pairs: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        if len(pairs) == 1:
            return pairs[0]
        joined: tuple[Tensor, Tensor] = cast("type[Additive]", type(self.module)).stack(pairs, self.module)
        return joined


class Adapted(nn.Module):
    """Mixed in before a layer's own class; see `adapted_class`."""

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name in _registered(self):
            destination.pop(prefix + name, None)

    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, metadata: Any, strict: bool, missing: list[str], *rest: Any
    ) -> None:
        super()._load_from_state_dict(state_dict, prefix, metadata, strict, missing, *rest)
        own = {prefix + name for name in _registered(self)}
        missing[:] = [key for key in missing if key not in own]

    def __reduce_ex__(self, protocol: Any) -> Any:
        # The swapped-in class has no importable name, so copies and pickles are rebuilt from its two parents.
        slot = cast(Slot, slot_of(self))
        state = super().__reduce_ex__(protocol)[2]
        return _rebuild, (_mixin(type(self)), slot.base_class), state


class Additive(Adapted, Kind):
    """A layer whose update is added to its output: y = layer(x) + B(gate · A(x))."""

    @classmethod
    def stack(cls, pairs: list[tuple[Tensor, Tensor]], module: nn.Module) -> tuple[Tensor, Tensor]:
        """Factors of several adapters as one pair: A joined along its rows, B along its columns."""
        # B is joined as the transpose of a contiguous Bᵀ, which products with it are faster for.
        return torch.cat([a for a, _ in pairs]), torch.cat([b.t() for _, b in pairs]).t()

    def base_forward(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """The layer's own computation, with this bias."""
        raise NotImplementedError

    def update(self, x: Tensor, a: Tensor, b: Tensor, gate: Gate) -> Tensor:
        """B(gate · A(x)) in x's batch shape."""
        raise NotImplementedError

    def joined(self, x: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, gate: Gate) -> Tensor:
        """base_forward and update together; a layer that can fuse them does."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        slot = cast(Slot, slot_of(self))
        active = slot.active()
        if not active:
            y: Tensor = super().forward(x)
            return y
        bias, shift = _bias(slot, active) if active.copies else (getattr(self, "bias", None), None)
        if not active.names:
            y = self.base_forward(x, bias)
        elif slot.mixture.drops(self) and any(slot.mixture.dropout(name) for name in active.names):
            y = self._forward_with_dropout(slot, active, x, bias)
        else:
            a, b = slot.stacked(compute_dtype(x) if x.is_floating_point() else cast(Tensor, self.weight).dtype)
            y = self.joined(x, bias, a, b, slot.mixture.gate(active.signature, a.device, a.dtype))
        return y if shift is None else y + self._placed(shift, y)

    def _forward_with_dropout(self, slot: Slot, active: Active, x: Tensor, bias: Tensor | None) -> Tensor:
        """Each adapter drops its own inputs, so the factors cannot be stacked."""
        y = self.base_forward(x, bias)
        for entry in active.signature:
            a, b = slot.factors(entry[0])
            # Token ids have nothing to drop: an embedding's update is left whole, as in PEFT.
            dropped = F.dropout(x, slot.mixture.dropout(entry[0])) if x.is_floating_point() else x
            y = y + self.update(dropped, a, b, slot.mixture.gate((entry,), a.device, a.dtype))
        return y

    def _placed(self, shift: Tensor, y: Tensor) -> Tensor:
        """A bias per sample (B, O) so that it broadcasts over y (B, …, O)."""
        return shift.to(y.dtype).view(shift.shape[0], *[1] * (y.dim() - 2), shift.shape[1])


def _bias(slot: Slot, active: Active) -> tuple[Tensor | None, Tensor | None]:
    """The bias that holds now, and what is added per sample (B, O) when samples are routed."""
    base = cast(Tensor, slot.module._parameters["bias"])
    routes = slot.mixture.routes
    if routes is None:
        return mixed_copy(slot, "bias", active.copies, base), None
    changes = torch.stack([slot.copy(name, "bias") - base for name in active.copies])
    shares = [[route.get(name, 0.0) for name in active.copies] for route in routes]
    return base, torch.tensor(shares, dtype=changes.dtype, device=changes.device) @ changes


def mixed_copy(slot: Slot, parameter: str, weights: dict[str, float], base: Tensor) -> Tensor:
    """W + Σ weight · (copy − W) over the adapters with a copy; one copy at weight 1 is taken to the bit."""
    if len(weights) == 1 and next(iter(weights.values())) == 1.0:
        return slot.copy(next(iter(weights)), parameter).to(base.dtype)
    mixed = base
    for name, weight in weights.items():
        mixed = mixed + weight * (slot.copy(name, parameter) - base)
    return mixed.to(base.dtype)


def _registered(module: nn.Module) -> list[str]:
    slot = cast(Slot, slot_of(module))
    return [name for adapter in {**slot.sites, **slot.copies} for name in slot.names(adapter)]


def module_at(model: nn.Module, path: str) -> nn.Module:
    """The module at a path that is there; torch's `get_submodule` without its questions."""
    module = model
    for part in path.split(".") if path else ():
        module = cast(nn.Module, module._modules[part])
    return module


def parameter_at(module: nn.Module, name: str) -> Tensor:
    """The parameter under a name that is there, dotted or not."""
    path, _, leaf = name.rpartition(".")
    return cast(Tensor, module_at(module, path)._parameters[leaf])


def slot_of(module: nn.Module) -> Slot | None:
    """The slot of an adapted layer, None for any other module."""
    return cast("Slot | None", module.__dict__.get(_SLOT))


def put_slot(module: nn.Module, slot: Slot | None) -> None:
    """Give a module its slot, or take it away."""
    if slot is None:
        module.__dict__.pop(_SLOT, None)
    else:
        module.__dict__[_SLOT] = slot


_CLASSES: dict[tuple[type[Adapted], type[nn.Module]], type[nn.Module]] = {}


def adapted_class(mixin: type[Adapted], base: type[nn.Module]) -> type[nn.Module]:
    """The subclass of a layer's class that adapts it; one per pair, however many layers."""
    if (mixin, base) not in _CLASSES:
        _CLASSES[mixin, base] = type(f"Adapted{base.__name__}", (mixin, base), {"__module__": base.__module__})
    return _CLASSES[mixin, base]


def _mixin(adapted: type[nn.Module]) -> type[Adapted]:
    return cast("type[Adapted]", adapted.__bases__[0])


def _rebuild(mixin: type[Adapted], base: type[nn.Module]) -> nn.Module:
    cls = adapted_class(mixin, base)
    return cls.__new__(cls)
