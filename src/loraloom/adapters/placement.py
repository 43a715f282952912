"""Where adapters sit in a model: swapped classes, slots, and the tensors registered in the layers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from loraloom.adapters.initialise import INITIALISERS, site_generator
from loraloom.adapters.layers import (
    KINDS,
    Adapted,
    AdaptedParameters,
    adapted_class,
    layer_kind,
    module_at,
    parameter_at,
    slot_of,
)
from loraloom.adapters.layers.base import Mixture, Slot, put_slot
from loraloom.adapters.plan import AttachPlan
from loraloom.adapters.site import Copied, Site
from loraloom.adapters.spec import AdapterSpec

FACTORS = ("A", "B")

_TAKE_BIASES = ("linear", "conv1d", "conv2d", "conv3d", "conv1d-transposed")
_SHORTCUTS = (
    (nn.TransformerEncoderLayer, "activation_relu_or_gelu"),
    (nn.TransformerEncoder, "use_nested_tensor"),
)
_WITH_SHORTCUTS = tuple(cls for cls, _ in _SHORTCUTS)


class Placed(NamedTuple):
    """One adapter that is there: how it was asked for, and what that came to."""

    spec: AdapterSpec
    plan: AttachPlan


class Placement:
    """The adapters that are in a model, and the slots of its layers."""

    def __init__(self, model: nn.Module, mixture: Mixture) -> None:
        self.model = model
        self.adapters: dict[str, Placed] = {}
        self.slots: dict[str, Slot] = {}
        """By the layer's path."""
        self._mixture = mixture
        self._shortcuts: list[tuple[nn.Module, str, Any]] = []

    def place(self, name: str, placed: Placed, tensors: Mapping[str, Tensor] | None = None) -> None:
        """Put a planned adapter into the layers: its factors freshly made, or `tensors` by "<path>|<role>"."""
        self.adapters[name] = placed
        for site in placed.plan.sites:
            self._place_site(name, site, placed.spec, tensors)
        for copied in placed.plan.copies:
            self._place_copies(name, copied, placed.spec, tensors)
        self._block_shortcuts()

    def remove(self, name: str) -> None:
        """Take an adapter out; layers that carry no other get their own class back."""
        for path, slot in list(self.slots.items()):
            slot.forget(name)
            if slot.empty:
                slot.module.__class__ = slot.base_class
                put_slot(slot.module, None)
                del self.slots[path]
        del self.adapters[name]

    def open_shortcuts(self) -> None:
        """Switch the fast paths on again that were switched off for adapters."""
        for module, switch, value in self._shortcuts:
            setattr(module, switch, value)
        self._shortcuts.clear()

    def entries(self, name: str) -> Iterator[tuple[str, str, nn.Parameter]]:
        """("<path>|<role>", role, parameter) of everything that an adapter trains."""
        plan = self.adapters[name].plan
        for site in plan.sites:
            if site.shares is None:
                slot = self.slots[site.module]
                for role in FACTORS:
                    parameter = slot.module._parameters[slot.parameter(role, name, site.parameter)]
                    yield f"{site.path}|{role}", role, cast(nn.Parameter, parameter)
        for copied in plan.copies:
            for path, inner in zip(copied.paths, copied.parameters, strict=True):
                yield f"{path}|{copied.role}", copied.role, self.slots[copied.module].copy(name, inner)

    def delta(self, name: str, site: Site) -> Tensor:
        """ΔW of an adapter at one of its sites, in the weight's shape; at least float32."""
        slot = self.slots[site.module]
        base = parameter_at(slot.module, site.parameter)
        dtype = torch.promote_types(base.dtype, torch.float32) if base.is_floating_point() else torch.float32
        a, b = (factor.detach().to(dtype) for factor in slot.factors(name, site.parameter))
        owner = slot.module.get_submodule(site.parameter.rpartition(".")[0])
        return KINDS[site.kind].delta(a, b, owner, site.shape) * site.scale

    def _slot(self, path: str, mixin: type[Adapted]) -> Slot:
        slot = self.slots.get(path)
        if slot is None:
            module = module_at(self.model, path)
            slot = self.slots[path] = Slot(module, self._mixture, path)
            put_slot(module, slot)
            module.__class__ = adapted_class(mixin, slot.base_class)
        return slot

    def _place_site(self, name: str, site: Site, spec: AdapterSpec, tensors: Mapping[str, Tensor] | None) -> None:
        mixin = AdaptedParameters if site.substituted else cast("type[Adapted]", KINDS[site.kind])
        slot = self._slot(site.module, mixin)
        slot.sites.setdefault(name, {})[site.parameter] = site
        if site.shares is not None:
            slot.owners[name] = module_at(self.model, site.shares)
        else:
            if tensors is None:
                generator = site_generator(spec.seed, site.path)
                factors = INITIALISERS[spec.init](site.shape_a, site.shape_b, KINDS[site.kind].lookup, generator)
            else:
                factors = tensors[f"{site.path}|A"], tensors[f"{site.path}|B"]
            device = parameter_at(slot.module, site.parameter).device
            for role, factor in zip(FACTORS, factors, strict=True):
                registered = slot.parameter(role, name, site.parameter)
                slot.module.register_parameter(registered, _own(factor.to(device, spec.dtype)))
        slot.changed()

    def _place_copies(self, name: str, copied: Copied, spec: AdapterSpec, tensors: Mapping[str, Tensor] | None) -> None:
        module = module_at(self.model, copied.module)
        slot = self._slot(copied.module, _mixin_for(module, copied.role))
        for parameter, path in zip(copied.parameters, copied.paths, strict=True):
            slot.copies.setdefault(name, {})[parameter] = copied.role
            base = parameter_at(module, parameter)
            dtype = torch.promote_types(base.dtype, spec.dtype)
            if tensors is None:
                own = base.detach().to(dtype, copy=True)
            else:
                own = tensors[f"{path}|{copied.role}"].to(base.device, dtype)
            module.register_parameter(slot.parameter("copy", name, parameter), _own(own))
        slot.changed()

    def _block_shortcuts(self) -> None:
        """nn.TransformerEncoderLayer has a fast path that reads its children's weights without calling them;
        it is switched off, for adapters in those children would silently not act. So are the nested tensors that
        nn.TransformerEncoder makes for that path alone."""
        for module in self.model.modules():
            if not isinstance(module, _WITH_SHORTCUTS):
                continue
            switch = next(switch for cls, switch in _SHORTCUTS if isinstance(module, cls))
            value = getattr(module, switch, None)
            if value and any(slot_of(child) is not None for child in module.modules()):
                self._shortcuts.append((module, switch, value))
                setattr(module, switch, type(value)(0))


def _own(tensor: Tensor) -> nn.Parameter:
    """A parameter on this memory, with a version of its own."""
    return nn.Parameter(tensor.detach().contiguous().data)


def _mixin_for(module: nn.Module, role: str) -> type[Adapted]:
    """The class for a module with copied parameters: the one it has, or one that lets a layer carry a bias of
    its own beside updates of other adapters, or one that replaces parameters."""
    present = next((cls for cls in type(module).__mro__ if issubclass(cls, Adapted)), None)
    kind = layer_kind(module)
    if present is not None or role == "head" or kind not in _TAKE_BIASES:
        return present or AdaptedParameters
    return cast("type[Adapted]", KINDS[kind])
