"""Folding adapters into the base weights, and taking them out again with every bit back."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from loraloom.adapters.layers.base import Slot
from loraloom.adapters.placement import Placement
from loraloom.adapters.quantized import is_quantized
from loraloom.adapters.site import Site
from loraloom.errors import ConfigError, one_error

Factor = Callable[[str, str], float]
"""(adapter, site path) → what the adapter's weight is multiplied by there."""


class Merge:
    """One merge: the weights it folds, what each base parameter becomes, and what each one was.

    The former values are kept, since adding and subtracting ΔW in floating point does not give a weight back.
    """

    def __init__(self, weights: dict[str, float], merged: list[tuple[nn.Parameter, Tensor]]) -> None:
        self.weights = weights
        self._merged = merged
        self._former: list[Tensor] = []

    @classmethod
    def of(cls, placement: Placement, weights: dict[str, float], head: str | None, factor: Factor) -> Merge:
        """Work out every merged weight; nothing changes yet. Raises ConfigError naming each site that cannot be."""
        results: dict[int, tuple[nn.Parameter, Tensor]] = {}
        faults: list[str] = []
        for name, weight in weights.items():
            faults += _tied_faults(placement, name)
            for site in placement.adapters[name].plan.sites:
                if site.shares is not None:
                    continue  # the owner's merge changes the one tensor that both use
                if factor(name, site.path) == 0:
                    continue
                base = placement.slots[site.module].module.get_parameter(site.parameter)
                try:
                    delta = _delta(placement, name, site, base)
                except ValueError as error:
                    faults.append(f"{site.path!r}: {error}")
                    continue
                _, so_far = results.get(id(base), (base, base.detach().to(delta.dtype)))
                results[id(base)] = (base, so_far + weight * factor(name, site.path) * delta)
        if faults:
            raise one_error(ConfigError, "cannot merge", faults)
        return cls(weights, [*results.values(), *_copies(placement, weights, head, factor)])

    def apply(self) -> None:
        self._former = [parameter.detach().clone() for parameter, _ in self._merged]
        self._write([value for _, value in self._merged])
        self._merged = [(parameter, parameter.detach()) for parameter, _ in self._merged]

    def undo(self) -> None:
        self._write(self._former)

    def _write(self, values: list[Tensor]) -> None:
        with torch.no_grad():
            for (parameter, _), value in zip(self._merged, values, strict=True):
                parameter.copy_(value)


def _delta(placement: Placement, name: str, site: Site, base: nn.Parameter) -> Tensor:
    """ΔW at a site. Raises ValueError where the base weight cannot take it."""
    if is_quantized(base):
        raise ValueError(
            f"the weight is quantised ({type(base).__name__}) and has no room for an update; merge into the base "
            "loaded without quantize"
        )
    return placement.delta(name, site)


def _copies(
    placement: Placement, weights: dict[str, float], head: str | None, factor: Factor
) -> list[tuple[nn.Parameter, Tensor]]:
    """Heads as they are, biases by weight."""
    results = []
    for slot in placement.slots.values():
        holders = {name: weight * factor(name, slot.path) for name, weight in weights.items() if name in slot.copies}
        for parameter in {inner for name in holders for inner in slot.copies[name]}:
            base = slot.module.get_parameter(parameter)
            owners = {name: weight for name, weight in holders.items() if parameter in slot.copies[name]}
            results.append((base, _merged_copy(slot, parameter, owners, base, head)))
    return results


def _merged_copy(slot: Slot, parameter: str, owners: dict[str, float], base: nn.Parameter, head: str | None) -> Tensor:
    chosen = head if head is not None and head in owners else next(iter(owners))
    if slot.copies[chosen][parameter] == "head" or owners == {chosen: 1.0}:
        return slot.copy(chosen, parameter).detach()
    mixed = base.detach().to(torch.promote_types(base.dtype, torch.float32))
    for name, weight in owners.items():
        mixed = mixed + weight * (slot.copy(name, parameter).detach() - base.detach())
    return mixed


def _tied_faults(placement: Placement, name: str) -> list[str]:
    """A weight that two modules use can only be merged where both carry the update."""
    spec, plan = placement.adapters[name]
    if spec.tied != "separate":
        return []
    users: dict[int, list[str]] = {}
    for path, parameter in placement.model.named_parameters(remove_duplicate=False):
        users.setdefault(id(parameter), []).append(path)
    faults = []
    for site in plan.sites:
        weight = placement.model.get_submodule(site.module).get_parameter(site.parameter)
        if len(users[id(weight)]) > 1:
            faults.append(
                f"the weight of {site.path!r} is tied ({', '.join(users[id(weight)])}) and adapted separately"
            )
    return faults
