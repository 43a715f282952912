"""The short ways in: `attach`, `adapters_of`, and `LoRA`, the module of one line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from loraloom.adapters.adapterset import AdapterSet
from loraloom.adapters.layers import slot_of
from loraloom.adapters.plan import AttachPlan
from loraloom.adapters.spec import AdapterSpec
from loraloom.errors import ConfigError, FormatError


def attach(
    model: nn.Module,
    spec: AdapterSpec | None = None,
    *,
    name: str = "default",
    plan: AttachPlan | None = None,
    tensors: Mapping[str, Tensor] | None = None,
    **settings: Any,
) -> AdapterSet:
    """Freeze a model and attach an adapter to it; return the handle of all its adapters.

    The settings are those of `AdapterSpec`, written as is convenient: `targets="query"` or a list, `layers`
    a number, list, range or "4-7". On a model that already has adapters, one more is added. The model itself
    is changed in place: call it as before, and train `adapters.parameters()`. `plan`, of `plan_attach` for this
    model, is applied as it is, and filled with `tensors`; see `AdapterSet.add`.

    Raises ConfigError for a setting out of range, TargetError for a pattern that matches nothing; the model is
    then as it was.

    >>> adapters = attach(nn.Sequential(nn.Linear(4, 4)), rank=2)
    >>> adapters.num_parameters("default")
    16
    """
    spec = spec or AdapterSpec.of(**settings)
    existing = adapters_of(model)
    if existing is not None:
        if existing.model is not model:
            raise ConfigError(
                "another module around or inside this one has adapters already: attach to that one, "
                "adapters_of(…).model, or detach it first"
            )
        existing.add(name, spec, plan=plan, tensors=tensors)
        return existing
    adapters = AdapterSet(model)
    try:
        adapters.add(name, spec, plan=plan, tensors=tensors)
    except BaseException:
        adapters.unfreeze()
        raise
    return adapters


def adapters_of(model: nn.Module) -> AdapterSet | None:
    """The adapters of a model, or of one of its copies; None where there are none."""
    for module in model.modules():
        slot = slot_of(module)
        if slot is not None:
            return cast(AdapterSet, slot.mixture)
    return None


class LoRA(nn.Module):
    """A model with a low-rank adapter, in one line: `model = LoRA(model, rank=4)`.

    The base is frozen and untouched (its parameters receive no gradient, so any optimiser passes them over);
    `state_dict()` holds the adapter alone, also as a part of a larger module's, and calling it calls the model.
    Settings are those of `attach`.

    >>> net = LoRA(nn.Sequential(nn.Linear(4, 4)), rank=2)
    >>> sorted(net.state_dict())
    ['0|A', '0|B']
    """

    def __init__(self, model: nn.Module, rank: int = 4, *, name: str = "default", **settings: Any) -> None:
        super().__init__()
        self.adapters = attach(model, name=name, rank=rank, **settings)
        self.model = model
        self.adapter_name = name
        self.register_load_state_dict_post_hook(_forgive_base)  # type: ignore[no-untyped-call]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.model(*args, **kwargs)

    def state_dict(  # type: ignore[override]
        self, *, destination: dict[str, Any] | None = None, prefix: str = "", keep_vars: bool = False
    ) -> dict[str, Any]:
        """The adapter's tensors by "<path>|<role>"; the base is not in it."""
        destination = {} if destination is None else destination
        for key, parameter in self.adapters.named_parameters(self.adapter_name):
            destination[prefix + key] = parameter if keep_vars else parameter.detach().clone()
        return destination

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Take back what `state_dict` gave. Raises FormatError where it does not fit."""
        self.adapters.load_tensors(self.adapter_name, cast("Mapping[str, Tensor]", state_dict))
        return torch.nn.modules.module._IncompatibleKeys([], [])

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        """As a part of a larger module that loads: torch calls this, then descends into the base."""
        self._prefix = prefix
        errors: list[str] = rest[-1]
        own = {key.removeprefix(prefix): value for key, value in state_dict.items() if key.startswith(prefix)}
        try:
            self.adapters.load_tensors(self.adapter_name, own)
        except FormatError as error:
            errors.append(str(error))


def _forgive_base(module: LoRA, keys: Any) -> None:
    """The base is not in a LoRA's part of a state dict, and so is not missing from it."""
    base = f"{module._prefix}model."
    keys.missing_keys[:] = [key for key in keys.missing_keys if not key.startswith(base)]
