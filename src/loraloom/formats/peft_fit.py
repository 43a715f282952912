"""From a sound adapter file and a model to a plan and its tensors; nothing changes, every fault is collected."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from loraloom.adapters import AdapterSpec, AttachPlan, Copied, Site, plan_attach
from loraloom.adapters.layers import KINDS, layer_kind, parameter_at, parameter_kind
from loraloom.adapters.layers.conv import groups_of, narrow
from loraloom.errors import ConfigError, TargetError
from loraloom.formats.careful import first_faults
from loraloom.formats.peft_file import AdapterFile, refuse_dora
from loraloom.formats.peft_keys import KeySorter
from loraloom.formats.peft_names import Place, parameter_paths
from loraloom.formats.peft_settings import derived_spec, spec_of
from loraloom.formats.peft_write import ATTENTION_TWICE, CONVOLUTIONS, peft_differs


class Fit(NamedTuple):
    """What to attach, and the tensors to fill it with by "<path>|<role>"."""

    spec: AdapterSpec
    plan: AttachPlan
    tensors: dict[str, Tensor]
    warnings: list[str]


def fit(model: nn.Module, file: AdapterFile) -> Fit:
    """Raises FormatError that names every tensor which is missing, left over, misshapen or for another base."""
    refuse_dora(file)
    sorter = KeySorter(model, file)
    sorter.sort()
    fitter = _Fitter(sorter)
    result = fitter.fit()
    _raise(file, fitter.faults)
    assert result is not None
    return result


def _raise(file: AdapterFile, faults: list[str]) -> None:
    if faults:
        raise first_faults(f"adapter {file.path} does not fit this model", faults)


class _Fitter:
    def __init__(self, sorter: KeySorter) -> None:
        self.model, self.file, self.config = sorter.model, sorter.file, sorter.config
        self.found, self.modules = sorter.found, sorter.modules
        assert sorter.found.names is not None
        self.names = sorter.found.names
        self.warnings, self.faults = sorter.warnings, sorter.faults
        self.tensors: dict[str, Tensor] = {}
        self.bias_shifts: dict[str, Tensor] = {}
        self.wide: set[Place] = set()
        ours = self.file.ours
        self.given = None if ours is None else spec_of(ours, self.config)
        self.given_plan = None if self.given is None else self._plan(self.given, [])
        sites = () if self.given_plan is None else self.given_plan.sites
        self._uneven = {Place.of(site): site for site in sites if self._is_output(Place.of(site))}

    def fit(self) -> Fit | None:
        for place, keys in self.found.factors.items():
            if {"A", "B"} <= set(keys):  # what is missing is told already
                self._take_factors(place, keys)
        for head, keys in self.found.heads.items():
            for name, key in keys.items():
                self._take_whole(f"{head}.{name}", key, "head")
        self._take_biases()
        return None if self.faults else self._planned()

    # -- plan ---------------------------------------------------------------------------------------

    def _planned(self) -> Fit | None:
        """The first settings that mean exactly what is in the file: those given, else those worked out."""
        if self.given is not None and self.given_plan is not None and self._agrees(self.given_plan, True):
            return self._fit(self.given, self.given_plan)
        derived = self._derived()
        faults: list[str] = []
        for tied in ("refuse", "share", "separate"):
            faults.clear()
            spec = replace(derived, tied=tied)
            plan = self._plan(spec, faults)
            if plan is not None and self._agrees(plan, False):
                return self._fit(replace(spec, dropout=self.config.lora_dropout), plan)
        self.faults += faults or ["its tensors and its config do not describe one adapter of this model"]
        return None

    def _plan(self, spec: AdapterSpec, faults: list[str]) -> AttachPlan | None:
        try:
            return plan_attach(self.model, spec)
        except (ConfigError, TargetError) as error:
            faults.append(str(error))
            return None

    def _derived(self) -> AdapterSpec:
        sites = [(place, self._rank(place), self._alpha(place)) for place in self.found.factors]
        dtypes = [tensor.dtype for key, tensor in self.tensors.items() if key.endswith(("|A", "|B"))]
        dtype = torch.float64 if torch.float64 in dtypes else torch.float32
        return derived_spec(self.config, sites, self.names.attention, list(self.found.heads), self.model, dtype)

    def _agrees(self, plan: AttachPlan, given: bool) -> bool:
        """Whether a plan is what the file says: the same places, ranks, scales and heads."""
        places = {Place.of(site): site for site in plan.sites}
        heads = {copied.module for copied in plan.copies if copied.role == "head"}
        return (
            set(places) == set(self.found.factors)
            and heads <= set(self.found.heads)
            and all(given and self._unchanged(head) for head in set(self.found.heads) - heads)
            and all(
                (site.rank, site.alpha) == (self._rank(place), self._alpha(place)) for place, site in places.items()
            )
            and all(site.shares is None or self._shares(site) for site in plan.sites)
        )

    def _unchanged(self, head: str) -> bool:
        """Whether what the file keeps of a module is the model's own: written for PEFT's sake, it says nothing."""
        return all(
            torch.equal(tensor.to(base), base)
            for name, key in self.found.heads[head].items()
            for tensor, base in [(self.file.tensors[key], self.model.get_parameter(f"{head}.{name}"))]
        )

    def _shares(self, site: Site) -> bool:
        """Whether a tied site has the factors of the site whose weight it uses."""
        a, b = (self.tensors[f"{site.shares}|{role}"] for role in "AB")
        if site.transposed:
            a, b = b.t(), a.t()
        return torch.equal(self.tensors[f"{site.path}|A"], a) and torch.equal(self.tensors[f"{site.path}|B"], b)

    def _fit(self, spec: AdapterSpec, plan: AttachPlan) -> Fit:
        sites = tuple(
            replace(site, shape_a=tuple(self.tensors[f"{site.path}|A"].shape)) if Place.of(site) in self.wide else site
            for site in plan.sites
        )
        heads = [copied for copied in plan.copies if copied.role == "head"]
        biases = [copied for copied in plan.copies if copied.role == "bias"]
        kept = {path for copied in biases for path in copied.paths}
        if kept != set(self._bias_paths()):
            biases = list(self._bias_copies())
        needless = {f"{site.path}|{role}" for site in sites if site.shares for role in "AB"}
        kept_heads = {f"{path}|head" for copied in heads for path in copied.paths}
        needless |= {key for key in self.tensors if key.endswith("|head")} - kept_heads
        tensors = {key: tensor for key, tensor in self.tensors.items() if key not in needless}
        return Fit(spec, replace(plan, sites=sites, copies=(*heads, *biases)), tensors, self.warnings)

    def _bias_paths(self) -> Iterator[str]:
        for key in self.tensors:
            if key.endswith("|bias"):
                yield key.removesuffix("|bias")

    def _bias_copies(self) -> Iterator[Copied]:
        for path in self._bias_paths():
            module, _, name = path.rpartition(".")
            parent, _, leaf = module.rpartition(".")
            if module and isinstance(self.modules[parent], nn.MultiheadAttention):
                module, name = parent, f"{leaf}.{name}"
            yield Copied(module, (name,), (tuple(self.tensors[f"{path}|bias"].shape),), "bias", "bias")

    # -- tensors ------------------------------------------------------------------------------------

    def _rank(self, place: Place) -> int:
        site = self._uneven.get(place)
        return self.config.rank(self._pattern_path(place)) if site is None else site.rank

    def _alpha(self, place: Place) -> float:
        site = self._uneven.get(place)
        return self.config.alpha(self._pattern_path(place)) if site is None else site.alpha

    def _is_output(self, place: Place) -> bool:
        """An attention's out_proj: PEFT gives it the attention's own rank and alpha, our header others too."""
        return place.module in self.names.attention and place.parameter == "out_proj.weight"

    def _pattern_path(self, place: Place) -> str:
        return place.module if place.module in self.names.attention else place.path

    def _take_factors(self, place: Place, keys: dict[str, str]) -> None:
        module = self.modules[place.module]
        weight = parameter_at(module, place.parameter)
        kind = parameter_kind(weight.dim()) if place.substituted else layer_kind(module)
        if kind is None:
            self.faults.append(f"{place.path!r} has {weight.dim()} dimensions, which no adapter fits")
            return
        if self.file.ours is None and not place.substituted and (difference := peft_differs(module)):
            self.faults.append(
                f"PEFT runs the adapter of {place.path!r} otherwise than the layer runs ({difference}), and the file "
                "is not one of Loraloom's, where it runs as the layer does"
            )
        shapes = KINDS[kind].shapes(weight, module, self._rank(place))
        tensors = [self.file.tensors[keys[role]] for role in "AB"]
        if kind in CONVOLUTIONS and groups_of(module) > 1:
            wide = (shapes[0][0], shapes[0][1] * groups_of(module), *shapes[0][2:])
            narrowed = self._narrowed(place, tensors[0], wide, groups_of(module))
            shapes = (wide if narrowed is None else shapes[0], shapes[1])
            tensors[0] = tensors[0] if narrowed is None else narrowed
        for role, tensor, shape in zip("AB", tensors, shapes, strict=True):
            if tuple(tensor.shape) != shape:
                self.faults.append(self._misshapen(keys[role], place, shape))
        if self._is_output(place):
            tensors[1] = tensors[1] * ATTENTION_TWICE
        self.tensors |= {f"{place.path}|{role}": tensor for role, tensor in zip("AB", tensors, strict=True)}
        if "bias" in keys:
            self._take_lora_bias(place, keys["bias"])

    def _narrowed(self, place: Place, a: Tensor, wide: tuple[int, ...], groups: int) -> Tensor | None:
        """PEFT's A of a grouped convolution reads all channels; where it needs its own group's alone, only these."""
        if tuple(a.shape) != wide or a.shape[0] % groups:
            return None
        own = narrow(a, groups)
        if own is None:
            self.wide.add(place)
        return own

    def _misshapen(self, key: str, place: Place, shape: tuple[int, ...]) -> str:
        weight = tuple(self.modules[place.module].get_parameter(place.parameter).shape)
        return (
            f"tensor {key!r} has shape {tuple(self.file.tensors[key].shape)}, expected {shape} for rank "
            f"{self._rank(place)} at {place.path!r}, whose weight is {weight} in this model"
        )

    def _take_lora_bias(self, place: Place, key: str) -> None:
        """A bias behind B is, times the scale, a part of the layer's own bias."""
        shift = self.file.tensors[key]
        module = self.modules[place.module]
        if place.module in self.names.attention and place.parameter == "in_proj_weight":
            self.warnings.append(f"{key!r} has no effect, in PEFT either: attention adds no bias of its in_proj")
            return
        name = "out_proj.bias" if place.substituted else "bias"
        owner = module.get_submodule(name.rpartition(".")[0])
        base = owner._parameters.get("bias")
        if base is None:
            self.faults.append(
                f"tensor {key!r} is a bias of B at {place.path!r}, which has no bias of its own to hold it"
            )
        elif tuple(base.shape) != tuple(shift.shape):
            self.faults.append(f"tensor {key!r} has shape {tuple(shift.shape)}, expected {tuple(base.shape)}")
        else:
            self.bias_shifts[f"{place.module}.{name}"] = shift.float() * self.config.scale(self._pattern_path(place))

    def _take_whole(self, path: str, key: str, role: str) -> None:
        base, tensor = self.model.get_parameter(path), self.file.tensors[key]
        if base.shape != tensor.shape or base.is_floating_point() != tensor.is_floating_point():
            self.faults.append(
                f"tensor {key!r} has shape {tuple(tensor.shape)} ({tensor.dtype}), but the model's {path!r} has "
                f"{tuple(base.shape)} ({base.dtype})"
            )
        self.tensors[f"{path}|{role}"] = tensor

    def _take_biases(self) -> None:
        """Trained biases, in the model's order; those that a bias behind B goes into among them."""
        sources = {*self.found.biases, *self.bias_shifts}
        for path in [path for path in parameter_paths(self.model) if path in sources] if sources else []:
            key = self.found.biases.get(path)
            if key is not None:
                self._take_whole(path, key, "bias")
            if path in self.bias_shifts:
                base = self.tensors.get(f"{path}|bias", self.model.get_parameter(path).detach())
                self.tensors[f"{path}|bias"] = base.cpu().float() + self.bias_shifts[path]
        for path in self._missing_biases():
            self.faults.append(f"missing tensor {self.names.plain(path)!r}")

    def _missing_biases(self) -> Iterator[str]:
        """Biases that the config says were trained, and that are not in the file."""
        if self.config.bias == "none":
            return
        adapted = {place.module for place in self.found.factors if not place.substituted}
        for path, module in self.modules.items():
            full = f"{path}.bias".lstrip(".")
            if module._parameters.get("bias") is None or full in self.found.biases or self._in_head(path):
                continue
            if self.config.bias == "all" or path in adapted:
                yield full

    def _in_head(self, path: str) -> bool:
        return any(f"{path}.".startswith(f"{head}.") for head in self.found.heads)
