"""What adapters make of each tensor of a checkpoint, worked out from shapes and names before any weight is read."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor, nn

from loraloom.adapters.layers import KINDS
from loraloom.adapters.layers.conv import groups_of
from loraloom.adapters.site import Site
from loraloom.compose.checkpoint.layout import Skeleton
from loraloom.compose.checkpoint.opened import CheckpointTensors
from loraloom.compose.weights import Weighted
from loraloom.errors import ConfigError, FormatError, one_error
from loraloom.formats.anyfile import read_any
from loraloom.formats.peft_file import AdapterFile
from loraloom.formats.peft_fit import Fit, fit
from loraloom.formats.peft_names import PREFIX, locate

_FUSED_AT_ONCE = 2
"""Taken-apart updates that are kept: the tensors of one parameter lie close to each other in a file."""


@dataclass(frozen=True)
class Patch:
    """left · right (rows, columns), to be added from row `begin` on to a tensor seen as a matrix."""

    begin: int
    left: Tensor
    """(rows, R)."""
    right: Tensor
    """(R, columns)."""


@dataclass
class Change:
    """What becomes of one tensor of the checkpoint, or of a new one."""

    source: str | None
    """The tensor that it starts from; None for one that the checkpoint did not have."""
    patches: list[Patch] = field(default_factory=list)
    dense: Callable[[], Tensor] | None = None
    """Makes the update in the tensor's own shape, where it is put together with others when the model is loaded."""
    value: Tensor | None = None
    """What takes its place: a head, a bias."""
    sites: list[str] = field(default_factory=list)
    """The adapters' layers that change it."""

    @property
    def rank(self) -> int:
        """The largest rank of an update that is added to a row."""
        return max((int(patch.right.shape[0]) for patch in self.patches), default=0)


@dataclass(frozen=True)
class Fitted:
    """One adapter on the skeleton of the checkpoint's model."""

    weighted: Weighted
    name: str
    fit: Fit
    notes: tuple[str, ...] = ()


def fit_adapter(skeleton: Skeleton, weighted: Weighted, name: str, tensors: CheckpointTensors) -> Fitted:
    """Hold an adapter against a checkpoint. Raises FormatError that names everything which does not fit."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        file = read_any(weighted.path, model=skeleton.model)
    if file.path.is_file():  # as in load_any: its targets were read off its tensors
        file = replace(file, config={**file.config, "target_modules": None})
    with _values(skeleton, file, tensors):
        fitted = fit(skeleton.model, file)
    weighted.check(site.path for site in fitted.plan.sites)
    notes = [str(one.message) for one in told if one.category is UserWarning]
    return Fitted(weighted, name, fitted, (*notes, *fitted.warnings))


class _values:
    """Give the skeleton the real values of what an adapter holds whole: heads and biases are compared with them."""

    def __init__(self, skeleton: Skeleton, file: AdapterFile, tensors: CheckpointTensors) -> None:
        model = skeleton.model
        wanted: list[tuple[nn.Module, str, str]] = []
        for key in file.tensors:
            path, rest, _ = locate(model, key.removeprefix(PREFIX))
            module = model.get_submodule(path)
            wanted += [(module, rest, f"{path}.{rest}")] if rest in module._parameters else []
            if file.peft.lora_bias and module._parameters.get("bias") is not None:
                wanted.append((module, "bias", f"{path}.bias"))
        self._wanted, self._skeleton, self._tensors = wanted, skeleton, tensors
        self._empty: list[tuple[nn.Module, str, nn.Parameter | None]] = []

    def __enter__(self) -> None:
        for module, name, full in self._wanted:
            empty = module._parameters[name]
            if empty is None or not empty.is_meta:
                continue
            key = self._skeleton.keys.get(full)
            known = key is not None and tuple(self._tensors.shape(key)) == tuple(empty.shape)
            value = self._tensors[str(key)] if known else torch.full(empty.shape, torch.nan, dtype=empty.dtype)
            self._empty.append((module, name, empty))
            module._parameters[name] = nn.Parameter(value, requires_grad=False)

    def __exit__(self, *_: object) -> None:
        for module, name, empty in self._empty:
            module._parameters[name] = empty


class ChangePlan:
    """Every change that adapters make to a checkpoint's tensors, by the tensors' names.

    `head` names the adapter whose head is taken, where several have one. Raises FormatError, ConfigError that name
    every place which cannot take what an adapter has for it.
    """

    def __init__(
        self, skeleton: Skeleton, tensors: CheckpointTensors, adapters: Sequence[Fitted], head: str | None = None
    ) -> None:
        self.skeleton, self._tensors = skeleton, tensors
        self.changes: dict[str, Change] = {}
        self.untied = False
        """Whether a weight that modules shared becomes two."""
        self.heads: dict[str, Tensor] = {}
        """Parameter's path → value, of heads."""
        self._faults: list[str] = []
        self._fused: dict[str, list[tuple[Site, Tensor, Tensor, float]]] = {}
        self._taken_apart: OrderedDict[str, dict[str, Tensor]] = OrderedDict()
        active = [one for one in adapters if one.weighted.acts]
        for one in active:
            self._add_sites(one)
        self._add_fused()
        self._add_biases(active)
        self._add_heads(active, head)
        if self._faults:
            raise one_error(FormatError, "the checkpoint cannot hold what the adapters change", self._faults)

    # -- updates ------------------------------------------------------------------------------------

    def _add_sites(self, one: Fitted) -> None:
        for site in one.fit.plan.sites:
            factor = one.weighted.at(site.path) * site.scale
            if site.shares is None and factor:
                a, b = (one.fit.tensors[f"{site.path}|{role}"].float() for role in "AB")
                self._add_site(one, site, a, b, factor)

    def _add_site(self, one: Fitted, site: Site, a: Tensor, b: Tensor, factor: float) -> None:
        parameter = f"{site.module}.{site.parameter}".lstrip(".")
        if parameter in self.skeleton.fused:
            self._fused.setdefault(parameter, []).append((site, a, b, factor))
            return
        covered = {f"{other.module}.{other.parameter}".lstrip(".") for other in one.fit.plan.sites}
        alone = not covered.issuperset(self.skeleton.ties.get(parameter, ()))
        names = self._separate(parameter) if alone else self._all_keys(parameter)
        if not names:
            self._faults.append(f"{site.path!r} has no tensor in the files")
            return
        try:
            patches = list(_patches(site, a, b, factor, self.skeleton.model.get_submodule(_owner(parameter))))
        except ValueError as error:
            self._faults.append(f"{site.path!r}: {error}")
            return
        for name in names:
            change = self._change(name)
            change.patches += patches
            change.sites.append(site.path)

    def _all_keys(self, parameter: str) -> list[str]:
        """The tensors that a parameter is in the files: several, where a shared one was written for each user."""
        names = self.skeleton.ties.get(parameter, (parameter,))
        return list(dict.fromkeys(key for name in names if (key := self.skeleton.keys.get(name)) is not None))

    def _separate(self, parameter: str) -> list[str]:
        """One user of a shared weight gets it for itself: what the file lacks of its users is added."""
        names = self.skeleton.ties[parameter]
        if len(names) > 2:
            others = ", ".join(name for name in names if name != parameter)
            self._faults.append(f"the weight of {parameter!r} is shared with {others}, and cannot be changed alone")
            return []
        shared = self.skeleton.keys[names[0]]
        self.untied = True
        for name in names:
            if name != names[0] and self.skeleton.keys[name] == shared:
                self.changes.setdefault(name, Change(shared))
        return [shared if parameter == names[0] else parameter]

    def _change(self, name: str) -> Change:
        return self.changes.setdefault(name, Change(name if name in self._tensors else None))

    # -- parameters that are put together of several tensors ----------------------------------------

    def _add_fused(self) -> None:
        for parameter, updates in self._fused.items():
            shape = self.skeleton.model.get_parameter(parameter).shape
            try:
                parts = self.skeleton.spread(parameter, torch.empty(shape, device="meta"))
                fits = all(tuple(part.shape) == self._tensors.shape(key) for key, part in parts.items())
            except ValueError as error:
                self._faults.append(f"{parameter!r}: {error}")
                continue
            if not fits:
                self._faults.append(f"{parameter!r} is put together of tensors of other shapes")
                continue
            for key in parts:
                change = self._change(key)
                change.dense = partial(self._part, parameter, key)
                change.sites += [site.path for site, *_ in updates]

    def _part(self, parameter: str, key: str) -> Tensor:
        """The update of one of the tensors that make a parameter."""
        if parameter not in self._taken_apart:
            while len(self._taken_apart) >= _FUSED_AT_ONCE:
                self._taken_apart.popitem(last=False)
            module = self.skeleton.model.get_submodule(_owner(parameter))
            total = sum(
                KINDS[site.kind].delta(a, b, module, site.shape) * factor
                for site, a, b, factor in self._fused[parameter]
            )
            assert isinstance(total, Tensor)
            self._taken_apart[parameter] = self.skeleton.spread(parameter, total.contiguous())
        return self._taken_apart[parameter][key]

    # -- what is held whole -------------------------------------------------------------------------

    def _add_biases(self, adapters: Sequence[Fitted]) -> None:
        """base + Σ weight · (trained − base)."""
        for one in adapters:
            for key, trained in one.fit.tensors.items():
                path, _, role = key.rpartition("|")
                weight = one.weighted.at(_owner(path)) if role == "bias" else 0.0
                if not weight:
                    continue
                name = self.skeleton.keys.get(path)
                if name is None:
                    self._faults.append(f"the bias {path!r} has no tensor in the files")
                    continue
                base = self._tensors[name].float()
                change = self._change(name)
                change.value = (base if change.value is None else change.value) + weight * (trained.float() - base)
                change.sites.append(path)

    def _add_heads(self, adapters: Sequence[Fitted], chosen: str | None) -> None:
        holders = {one.name: one for one in adapters if any(key.endswith("|head") for key in one.fit.tensors)}
        if chosen is not None and chosen not in holders:
            raise ConfigError(f"--head {chosen!r} is no adapter with a head; {', '.join(holders) or 'none'} has one")
        if len(holders) > 1 and chosen is None and not _same_heads(list(holders.values())):
            raise ConfigError(f"{', '.join(holders)} have heads of their own: say with --head whose is taken")
        if not holders:
            return
        one = holders[chosen or next(iter(holders))]
        for key, value in one.fit.tensors.items():
            path, _, role = key.rpartition("|")
            if role != "head":
                continue
            self.heads[path] = value
            names = self._separate(path) if path in self.skeleton.ties else self._all_keys(path) or [path]
            for name in names:
                change = self._change(name)
                change.value = value
                change.sites.append(path)


def _same_heads(holders: Sequence[Fitted]) -> bool:
    def heads(one: Fitted) -> Mapping[str, Tensor]:
        return {key: tensor for key, tensor in one.fit.tensors.items() if key.endswith("|head")}

    first = heads(holders[0])
    return all(
        set(heads(other)) == set(first) and all(torch.equal(heads(other)[key], first[key]) for key in first)
        for other in holders[1:]
    )


def _owner(parameter: str) -> str:
    return parameter.rpartition(".")[0]


def _patches(site: Site, a: Tensor, b: Tensor, factor: float, module: nn.Module) -> Iterator[Patch]:
    """The update of a site as products over the rows of its weight, which lies as (rows, all the rest)."""
    if site.kind == "experts":
        yield from _expert_patches(site, a, b, factor, module)
    elif KINDS[site.kind].turned:
        yield Patch(0, a.t() * factor, b.t().contiguous())
    elif b.dim() > 2:
        yield Patch(0, _grouped(site, a, b, groups_of(module)) * factor, a.flatten(1))
    else:
        yield Patch(0, b * factor, a)


def _expert_patches(site: Site, a: Tensor, b: Tensor, factor: float, module: nn.Module) -> Iterator[Patch]:
    """A (E·R, D) holds the experts one after the other, B (O, R·E) the expert as the fastest index."""
    experts, rows = site.shape[:2]
    lefts, rights = b.reshape(b.shape[0], -1, experts), a.reshape(experts, -1, a.shape[1])
    for expert in range(experts):
        left, right = lefts[:, :, expert] * factor, rights[expert]
        if getattr(module, "is_transposed", False):
            left, right = right.t().contiguous(), left.t().contiguous()
        yield Patch(expert * rows, left.contiguous(), right)


def _grouped(site: Site, a: Tensor, b: Tensor, groups: int) -> Tensor:
    """B (O, R) of a convolution: with groups, each row has numbers in the columns of its own group alone."""
    if a.shape[1] != site.shape[1]:
        raise ValueError(
            f"its A reads {a.shape[1]} channels while a group of the layer reads {site.shape[1]}: a grouped weight "
            "cannot hold this update"
        )
    flat = b.flatten(1)
    if groups == 1:
        return flat
    wide = flat.new_zeros(flat.shape[0], a.shape[0])
    rows, columns = flat.shape[0] // groups, flat.shape[1]
    for group in range(groups):
        own = slice(group * rows, (group + 1) * rows)
        wide[own, group * columns : (group + 1) * columns] = flat[own]
    return wide
