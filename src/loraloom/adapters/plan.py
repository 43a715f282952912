"""From settings and a model to a plan: every site with its shapes, before anything changes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

from torch import Tensor, nn

from loraloom.adapters.layers import (
    KINDS,
    AdaptedParameters,
    Additive,
    layer_kind,
    parameter_at,
    parameter_kind,
    slot_of,
)
from loraloom.adapters.site import Copied, Site
from loraloom.adapters.spec import ALL_LINEAR, AdapterSpec
from loraloom.adapters.targets import (
    Layers,
    every_path,
    first_match,
    is_output_head,
    matches,
    no_match,
)
from loraloom.errors import ConfigError, TargetError, one_error

_LINEAR_KINDS = ("linear", "conv1d-transposed")
T = TypeVar("T")


@dataclass(frozen=True)
class AttachPlan:
    """What attaching would do. Plain data: print it, check it, then apply it."""

    sites: tuple[Site, ...]
    copies: tuple[Copied, ...]
    warnings: tuple[str, ...] = ()
    matches: Mapping[str, int] = field(default_factory=dict)
    """How many sites each target pattern chose."""

    @property
    def size(self) -> int:
        """Numbers that will train."""
        return sum(site.size for site in self.sites) + sum(copy.size for copy in self.copies)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of the tensors that train, by "<path>|<role>"."""
        own = [site for site in self.sites if site.shares is None]
        shapes = {f"{site.path}|A": site.shape_a for site in own} | {f"{site.path}|B": site.shape_b for site in own}
        copied = [(copy, pair) for copy in self.copies for pair in zip(copy.paths, copy.shapes, strict=True)]
        return shapes | {f"{path}|{copy.role}": shape for copy, (path, shape) in copied}

    def table(self) -> list[dict[str, Any]]:
        """One row per site and copy, for a dry run."""
        rows: list[dict[str, Any]] = [
            {
                "path": site.path,
                "kind": site.kind,
                "weight": site.shape,
                "rank": site.rank,
                "alpha": site.alpha,
                "scale": site.scale,
                "trained": site.size,
                "pattern": site.pattern,
            }
            for site in self.sites
        ]
        for copy in self.copies:
            row = {"path": copy.module, "kind": copy.role, "weight": copy.shapes, "rank": None, "alpha": None}
            rows.append(row | {"scale": None, "trained": copy.size, "pattern": copy.pattern})
        return rows


def plan_attach(model: nn.Module, spec: AdapterSpec) -> AttachPlan:
    """Work out what an adapter of these settings would be on this model; nothing changes.

    Raises TargetError, naming every fault at once, for a pattern that matches nothing or nothing that can be
    adapted, and for tied weights that are not dealt with; ConfigError for blocks that are not there.
    """
    planner = _Planner(model, spec)
    plan = planner.plan()
    if planner.faults:
        raise one_error(TargetError, "cannot attach", planner.faults)
    return plan


class _Planner:
    def __init__(self, model: nn.Module, spec: AdapterSpec) -> None:
        self.model, self.spec = model, spec
        self.paths = list(every_path(model))
        self.first_paths = _first_paths(model, self.paths)
        self.layers = Layers.of(spec.layers, self.first_paths)
        self.users = _weight_users(self.first_paths)
        self.faults: list[str] = []
        self.warnings: list[str] = []
        self.used: set[tuple[str, str]] = set()

    def plan(self) -> AttachPlan:
        heads = self._heads()
        layer_sites = self._layer_sites(heads)
        sites = self._with_shared(layer_sites + self._parameter_sites(heads, layer_sites))
        self._check_unused()
        if not sites and not heads and not self.faults:
            self.faults.append(self._nothing())
        counts = {pattern: 0 for pattern in (*self.spec.targets, *self.spec.parameters)}
        for site in sites:
            counts[site.pattern] = counts.get(site.pattern, 0) + 1
        copies = (*heads, *self._biases(sites, heads))
        return AttachPlan(tuple(sites), copies, tuple(self.warnings), counts)

    # -- heads and biases ---------------------------------------------------------------------------

    def _heads(self) -> list[Copied]:
        found: list[Copied] = []
        for path, module in self.first_paths.items() if self.spec.heads else ():
            pattern = self._first("heads", self.spec.heads, path) if path else None
            if pattern is None or any(path.startswith(f"{head.module}.") for head in found):
                continue
            names = base_parameters(module)
            if not names:
                self.faults.append(f"heads: {path!r} has no parameters to train")
            elif isinstance(module, Additive):
                self.faults.append(f"heads: {path!r} already carries an update or a bias of another adapter")
            elif self._run_by(path, "")[0] != path:
                self.faults.append(f"heads: {path!r} is never called; name the attention that it is a part of")
            else:
                found.append(_copied(path, names, "head", pattern))
        return found

    def _biases(self, sites: Iterable[Site], heads: list[Copied]) -> list[Copied]:
        if self.spec.bias == "none":
            return []
        adapted = {site.module for site in sites if not site.shares}
        found = []
        for path, module in self.first_paths.items():
            bias_name = "in_proj_bias" if isinstance(module, nn.MultiheadAttention) else "bias"
            bias = module._parameters.get(bias_name)
            host, name = self._run_by(path, bias_name)
            if bias is None or _inside(path, heads) or (self.spec.bias == "adapted" and host not in adapted):
                continue
            found.append(_copied(host, {name: bias}, "bias", "bias"))
        return found

    # -- sites --------------------------------------------------------------------------------------

    def _layer_sites(self, heads: list[Copied]) -> list[Site]:
        sites: list[Site] = []
        for path, module in self.first_paths.items():
            pattern = self._target(path, module) if path else None
            if pattern is None or _inside(path, heads) or not self.layers.include(path):
                continue
            if self._first("exclude", self.spec.exclude, *self._aliases(path, module)):
                continue
            sites += self._sites_of(path, module, pattern)
        return sites

    def _target(self, path: str, module: nn.Module) -> str | None:
        """The pattern that chooses this module. "all-linear" takes linear layers and attention, but no output head."""
        aliases = self._aliases(path, module)
        for pattern in self.spec.targets:
            if pattern == ALL_LINEAR:
                if self._is_inner_linear(path, module) and not is_output_head(path, module, self.model):
                    self.used.add(("targets", pattern))
                    return pattern
            elif any(matches(pattern, alias) for alias in aliases):
                self.used.add(("targets", pattern))
                return pattern
        return None

    def _is_inner_linear(self, path: str, module: nn.Module) -> bool:
        parent = self.first_paths[path.rpartition(".")[0]]
        if isinstance(parent, nn.MultiheadAttention):
            return False  # its out_proj is never called; the attention itself is the site
        return isinstance(module, nn.MultiheadAttention) or layer_kind(module) in _LINEAR_KINDS

    def _aliases(self, path: str, module: nn.Module) -> list[str]:
        return [other for other, same in self.paths if same is module] if self.shared_modules else [path]

    @cached_property
    def shared_modules(self) -> bool:
        return len(self.paths) + 1 != len(self.first_paths)

    def _sites_of(self, path: str, module: nn.Module, pattern: str) -> list[Site]:
        if isinstance(module, nn.MultiheadAttention):
            names = ("in_proj_weight",) if module._qkv_same_embed_dim else _SEPARATE
            return self._attention_sites(path, (*names, "out_proj.weight"), pattern)
        host, name = self._run_by(path, "weight")
        if host != path:
            return self._attention_sites(host, (name,), pattern)
        kind = layer_kind(module)
        fault = _cannot(module, kind, self.spec, self._rank(path))
        if fault and not self._only_a_container(module, pattern):
            self.faults.append(f"{pattern!r} chooses {path!r}, {fault}")
        if fault or kind is None:
            return []
        return [self._site(path, module, "weight", kind, pattern, False)]

    def _attention_sites(self, path: str, names: Iterable[str], pattern: str) -> list[Site]:
        if self.spec.dropout:
            self.faults.append(f"{pattern!r} chooses {path!r}, an attention, {_no_dropout(self.spec)}")
        return [self._site(path, self.first_paths[path], name, "matrix", pattern, True) for name in names]

    def _run_by(self, path: str, name: str) -> tuple[str, str]:
        """The module whose code uses a parameter, and its name there: attention never calls its out_proj."""
        parent, _, leaf = path.rpartition(".")
        if path and isinstance(self.first_paths[parent], nn.MultiheadAttention):
            return parent, f"{leaf}.{name}"
        return path, name

    def _only_a_container(self, module: nn.Module, pattern: str) -> bool:
        """A pattern that also chooses adaptable layers may run over the modules that contain them."""
        return layer_kind(module) is None and any(
            matches(pattern, path) and (layer_kind(m) or isinstance(m, nn.MultiheadAttention)) for path, m in self.paths
        )

    def _parameter_sites(self, heads: list[Copied], chosen: list[Site]) -> list[Site]:
        sites: list[Site] = []
        if not self.spec.parameters:
            return sites
        taken = {f"{site.module}.{site.parameter}" for site in chosen}
        taken |= {site.module for site in chosen if not site.substituted}
        for module_path, module in self.first_paths.items():
            for name, weight in base_parameters(module, recurse=False).items():
                path = f"{module_path}.{name}" if module_path else name
                pattern = self._first("parameters", self.spec.parameters, path)
                if pattern is None or not self.layers.include(path) or _inside(path, heads):
                    continue
                kind = parameter_kind(weight.dim())
                fault = _parameter_fault(module, weight, kind, self.spec)
                if module_path in taken or path in taken:
                    fault = "which the targets adapt already"
                if fault or kind is None:
                    self.faults.append(f"{pattern!r} chooses {path!r}, {fault}")
                else:
                    host, name = self._run_by(module_path, name)
                    sites.append(self._site(host, self.first_paths[host], name, kind, pattern, True))
        return sites

    def _site(self, path: str, module: nn.Module, name: str, kind: str, pattern: str, substituted: bool) -> Site:
        weight = parameter_at(module, name)
        full = f"{path}.{name}".lstrip(".") if substituted else path
        rank = self._rank(full)
        most = KINDS[kind].full_rank(weight, module)
        if rank > most:
            self.warnings.append(f"rank {rank} at {full!r} is more than the {most} that its weight can use")
        alpha_key = self._first("alpha_pattern", self.spec.alpha_pattern, full)
        alpha = self.spec.alpha_pattern[alpha_key] if alpha_key is not None else self.spec.alpha
        alpha = 2.0 * rank if alpha is None else float(alpha)
        shape_a, shape_b = KINDS[kind].shapes(weight, module, rank)
        scale = self.spec.scale(alpha, rank)
        shape = tuple(weight.shape)
        return Site(path, name, kind, shape, shape_a, shape_b, rank, alpha, scale, pattern, substituted)

    def _rank(self, path: str) -> int:
        key = self._first("rank_pattern", self.spec.rank_pattern, path)
        return self.spec.rank if key is None else self.spec.rank_pattern[key]

    # -- tied weights -------------------------------------------------------------------------------

    def _with_shared(self, sites: list[Site]) -> list[Site]:
        """The sites, and where weights are tied and shared, the other users of those weights."""
        chosen: dict[int, Site] = {}
        result = []
        for site in sites:
            weight = parameter_at(self.first_paths[site.module], site.parameter)
            users = self.users[id(weight)]
            if len(users) > 1 and id(weight) not in chosen:
                result += self._tied(site, users)
            elif id(weight) not in chosen or self.spec.tied == "separate":
                result.append(site)
            chosen.setdefault(id(weight), site)
        return result

    def _tied(self, site: Site, users: list[tuple[str, str]]) -> list[Site]:
        others = [f"{path}.{name}" for path, name in users if path != site.module]
        if self.spec.tied == "refuse":
            self.faults.append(
                f"the weight of {site.path!r} is tied to {', '.join(map(repr, others))}: exclude it, or say "
                "tied='share' (both get the update) or tied='separate' (this one alone)"
            )
        if self.spec.tied != "share":
            return [site]
        return [site, *(self._shared(site, path) for path, _ in users if path != site.module)]

    def _shared(self, owner: Site, path: str) -> Site:
        module = self.first_paths[path]
        kind = layer_kind(module)
        if kind is None or owner.substituted:
            self.faults.append(
                f"the weight of {owner.path!r} cannot be shared with {path!r}, a {type(module).__name__}"
            )
            return owner
        turned = KINDS[kind].turned != KINDS[owner.kind].turned
        a, b = (owner.shape_b[::-1], owner.shape_a[::-1]) if turned else (owner.shape_a, owner.shape_b)
        settings = (owner.rank, owner.alpha, owner.scale, owner.pattern)
        return Site(path, "weight", kind, owner.shape, a, b, *settings, shares=owner.module, transposed=turned)

    # -- patterns -----------------------------------------------------------------------------------

    def _first(self, setting: str, patterns: Iterable[str], *paths: str) -> str | None:
        for path in paths:
            pattern = first_match(patterns, path)
            if pattern is not None:
                self.used.add((setting, pattern))
                return pattern
        return None

    def _check_unused(self) -> None:
        """A pattern that decided nothing is a mistake, never silence."""
        modules = [path for path, _ in self.paths]
        for setting in ("targets", "exclude", "heads", "rank_pattern", "alpha_pattern", "parameters"):
            for pattern in getattr(self.spec, setting):
                if (setting, pattern) in self.used or pattern == ALL_LINEAR:
                    continue
                known = list(base_parameters(self.model)) if setting == "parameters" else modules
                if not any(matches(pattern, path) for path in known):
                    what = "parameter" if setting == "parameters" else "module"
                    self.faults.append(f"{setting}: {no_match(pattern, known, what)}")
                elif setting == "targets":
                    self.faults.append(f"targets: every module that {pattern!r} matches is chosen by another pattern")
                elif setting != "exclude":  # to exclude what no target chooses is harmless
                    self.faults.append(f"{setting}: no module that {pattern!r} matches is left to it")

    def _nothing(self) -> str:
        linear = sorted({path.rpartition(".")[2] for path, module in self.paths if layer_kind(module)})
        return f"no module is left to adapt; the model's layers are named {', '.join(linear[:12]) or '(none)'}"


_SEPARATE = ("q_proj_weight", "k_proj_weight", "v_proj_weight")


def base_parameters(module: nn.Module, recurse: bool = True) -> dict[str, Tensor]:
    """The parameters that belong to the base model, without those that adapters registered."""
    found: dict[str, Tensor] = {}
    for prefix, child in module.named_modules() if recurse else [("", module)]:
        slot = slot_of(child)
        own = {name for adapter in {**slot.sites, **slot.copies} for name in slot.names(adapter)} if slot else set()
        for name, parameter in child._parameters.items():
            if parameter is not None and name not in own:
                found[f"{prefix}.{name}" if prefix else name] = parameter
    return found


def _copied(path: str, parameters: Mapping[str, Tensor], role: str, pattern: str) -> Copied:
    shapes = tuple(tuple(parameter.shape) for parameter in parameters.values())
    return Copied(path, tuple(parameters), shapes, role, pattern)


def _inside(path: str, heads: list[Copied]) -> bool:
    return any(path == head.module or path.startswith(f"{head.module}.") for head in heads)


def _first_paths(model: nn.Module, paths: Iterable[tuple[str, nn.Module]]) -> dict[str, nn.Module]:
    """Every module by the first of its paths, the model itself by an empty one."""
    found: dict[str, nn.Module] = {"": model}
    seen = {id(model)}
    for path, module in paths:
        if id(module) not in seen:
            seen.add(id(module))
            found[path] = module
    return found


def _weight_users(modules: Mapping[str, nn.Module]) -> dict[int, list[tuple[str, str]]]:
    """By the identity of a parameter: every (module path, name) that holds it."""
    users: dict[int, list[tuple[str, str]]] = {}
    for path, module in modules.items():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                users.setdefault(id(parameter), []).append((path, name))
    return users


def _cannot(module: nn.Module, kind: str | None, spec: AdapterSpec, rank: int) -> str:
    """Why a module cannot carry an update, or an empty string."""
    groups = int(getattr(module, "groups", 1))
    if kind is None:
        inner = sorted({path for path, child in module.named_modules() if path and layer_kind(child)})
        hint = f"; inside it are {', '.join(inner[:4])}" if inner else ""
        return f"a {type(module).__name__}, which no adapter fits{hint}"
    if isinstance(module, AdaptedParameters):
        return "which is the head of another adapter, or adapted as a raw parameter"
    if module._parameters.get("weight") is None:
        return f"a {type(module).__name__} whose weight is computed from other parameters"
    if rank % groups:
        return f"a convolution of {groups} groups: its rank must be a multiple of them, not {rank}"
    if getattr(module, "max_norm", None) is not None:
        return "an embedding with max_norm, which rewrites its weight as it is used"
    return ""


def _parameter_fault(module: nn.Module, weight: Tensor, kind: str | None, spec: AdapterSpec) -> str:
    if kind is None:
        return f"a parameter of {weight.dim()} dimensions: only 2-D ones and 3-D expert weights can be adapted"
    if spec.dropout:
        return f"a raw parameter, {_no_dropout(spec)}"
    if isinstance(module, Additive):
        return "whose layer already carries an update on its output"
    return ""


def _no_dropout(spec: AdapterSpec) -> str:
    return f"whose input cannot be dropped out: set dropout to 0, not {spec.dropout}"


__all__ = ["AttachPlan", "ConfigError", "base_parameters", "plan_attach"]
