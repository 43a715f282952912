"""From an adapter on a model to PEFT's config and tensors."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from loraloom.adapters import AdapterSet, Copied, Site
from loraloom.adapters.layers import KINDS
from loraloom.adapters.layers.conv import groups_of, widen
from loraloom.adapters.plan import base_parameters
from loraloom.errors import ConfigError, suggest
from loraloom.formats.peft_config import BIASES, NO_TARGETS, TASK_HEADS, TASKS
from loraloom.formats.peft_names import PeftNames, Place, parameter_paths
from loraloom.formats.selection import by_value, exact_expression, most_common, shortest_names

CONVOLUTIONS = ("conv1d", "conv2d", "conv3d")
ATTENTION_TWICE = 2.0
"""PEFT adds the update of an attention's out_proj twice (its `MultiheadAttention.merge` adds it, then calls
out_proj's own `merge`), so that B is halved on the way there and doubled on the way back; exact in floating point."""


class PeftWriter:
    """An adapter in PEFT's words; `warnings` tells where PEFT has none."""

    def __init__(self, adapters: AdapterSet, name: str) -> None:
        self.adapters, self.name = adapters, name
        self.model = adapters.model
        self.plan, self.spec = adapters.plan(name), adapters.spec(name)
        self.names = PeftNames(self.model, [Place.of(site) for site in self.plan.sites])
        self.heads = [copied for copied in self.plan.copies if copied.role == "head"]
        self.warnings: list[str] = []

    # -- config -------------------------------------------------------------------------------------

    def config(self, base_name: str | None, task_type: str | None) -> dict[str, Any]:
        """The fields of `adapter_config.json`: those that every reader needs, and of the rest what is not default."""
        ranks, alphas = self._by_pattern_path()
        rank = most_common(list(ranks.values()) or [self.spec.rank])
        alpha = most_common(list(alphas.values()) or [self.spec.alpha or 2.0 * self.spec.rank])
        optional = {
            "alpha_pattern": {key: _plain(value) for key, value in by_value(alphas, alpha).items()},
            "fan_in_fan_out": any(site.kind == "conv1d-transposed" for site in self.plan.sites),
            "modules_to_save": self._modules_to_save(),
            "rank_pattern": {key: int(value) for key, value in by_value(ranks, rank).items()},
            "target_parameters": self._target_parameters(),
            "use_rslora": self.spec.scaling == "rslora",
        }
        return {key: value for key, value in optional.items() if value} | {
            "base_model_name_or_path": base_name,
            "bias": next(word for word, ours in BIASES.items() if ours == self.spec.bias),
            "inference_mode": True,
            "init_lora_weights": True,
            "lora_alpha": _plain(alpha),
            "lora_dropout": self.spec.dropout,
            "peft_type": "LORA",
            "r": int(rank),
            "target_modules": self._target_modules(),
            "task_type": self._task(task_type),
        }

    def _by_pattern_path(self) -> tuple[dict[str, float], dict[str, float]]:
        """Ranks and alphas by the path against which PEFT holds its patterns: a raw parameter's own, else the
        module's, which for attention stands for its out_proj too."""
        ranks: dict[str, float] = {}
        alphas: dict[str, float] = {}
        for site in self.plan.sites:
            path = site.module if site.module in self.names.attention else site.path
            if (ranks.setdefault(path, site.rank), alphas.setdefault(path, site.alpha)) != (site.rank, site.alpha):
                self._warn(f"{site.path!r} has another rank or alpha than its attention: PEFT has no word for that")
        return ranks, alphas

    def _target_modules(self) -> list[str] | str:
        known = [site for site in self.plan.sites if Place.of(site) not in self.names.unknown]
        chosen = list(
            dict.fromkeys(site.module for site in known if not site.substituted or site.module in self.names.attention)
        )
        others = [path for path, _ in self.model.named_modules() if path and not self._passed_over(path)]
        names, hopeless = shortest_names(chosen, others)
        if hopeless:
            return exact_expression(names, hopeless)
        return names if names or self._target_parameters() else NO_TARGETS

    def _passed_over(self, path: str) -> bool:
        """Whether PEFT never takes this module for a target: it lies in a head, or is adapted with its attention."""
        return path.rpartition(".")[0] in self.names.attention or any(
            path == head.module or path.startswith(f"{head.module}.") for head in self.heads
        )

    def _target_parameters(self) -> list[str]:
        chosen = [
            site.path
            for site in self.plan.sites
            if site.substituted and site.module not in self.names.attention and Place.of(site) not in self.names.unknown
        ]
        names, hopeless = shortest_names(chosen, parameter_paths(self.model), parts=2)
        for path in hopeless:
            self._warn(f"PEFT has no word for the parameter {path!r} alone: others end in the same name")
        return sorted([*names, *hopeless])

    def _modules_to_save(self) -> list[str]:
        return [copied.module for copied in self.heads]

    def _namesakes(self) -> list[str]:
        """Modules that PEFT takes for heads too, since it compares ends of paths without regard to dots."""
        ours = self._modules_to_save()
        return [
            path
            for path, _ in self.model.named_modules()
            if any(path.endswith(head) for head in ours) and not any(f"{path}.".startswith(f"{head}.") for head in ours)
        ]

    def _task(self, task_type: str | None) -> str | None:
        if task_type is None:
            return None
        if task_type not in TASKS:
            raise ConfigError(f"task_type {task_type!r} is not one of {', '.join(TASKS)}{suggest(task_type, TASKS)}")
        ours = [copied.module for copied in self.heads]
        for path, _ in self.model.named_modules():
            expected = any(path.endswith(head) for head in TASK_HEADS.get(task_type, ()))
            if expected and not any(path == head or path.startswith(f"{head}.") for head in ours):
                self._warn(f"task_type {task_type!r} is left out, since PEFT expects a trained {path!r} with it")
                return None
        return task_type

    # -- tensors ------------------------------------------------------------------------------------

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor by PEFT's key."""
        own = self.adapters.tensors(self.name)
        tensors: dict[str, Tensor] = {}
        for site in self.plan.sites:
            a, b = self._factors(site, own)
            key_a, key_b = self.names.factors(Place.of(site), lookup=KINDS[site.kind].lookup)
            tensors |= {key_a: a, key_b: b}
            self._warn_of(site)
        for copied in self.plan.copies:
            tensors |= {self.names.plain(path): own[f"{path}|{copied.role}"] for path in copied.paths}
        for head in self.heads:
            tensors |= self._buffers(head)
        for path in self._namesakes():
            tensors = self._unchanged(path) | tensors
        return tensors

    def _factors(self, site: Site, own: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """A and B as PEFT multiplies them; a site that shares the factors of another gets a copy."""
        path = site.path if site.shares is None else site.shares
        a, b = own[f"{path}|A"], own[f"{path}|B"]
        if site.transposed:
            a, b = b.t().clone(), a.t().clone()
        elif site.shares is not None:
            a, b = a.clone(), b.clone()
        if site.kind in CONVOLUTIONS and a.shape[1] == site.shape[1]:
            a = widen(a, groups_of(self.model.get_submodule(site.module)))
        if site.module in self.names.attention and site.parameter == "out_proj.weight":
            b = b / ATTENTION_TWICE
        return a, b

    def _buffers(self, head: Copied) -> dict[str, Tensor]:
        """Running statistics of a head, which PEFT wants in the file: those of the base."""
        module = self.model.get_submodule(head.module)
        kept = set(module.state_dict()) - set(base_parameters(module))
        named = {name: tensor for name, tensor in module.named_buffers() if name in kept}
        return {self.names.plain(f"{head.module}.{name}"): tensor for name, tensor in named.items()}

    def _unchanged(self, path: str) -> dict[str, Tensor]:
        """The base's own weights of a module that PEFT takes for a head, so that it finds them and changes nothing."""
        if any(f"{place.module}.".startswith(f"{path}.") for place in map(Place.of, self.plan.sites)):
            self._warn(f"PEFT takes {path!r} for a head because of the end of its path, but it is adapted")
            return {}
        state = self.model.get_submodule(path).state_dict()
        return {self.names.plain(f"{path}.{name}"): tensor for name, tensor in state.items()}

    def _warn_of(self, site: Site) -> None:
        if Place.of(site) in self.names.unknown:
            self._warn(f"PEFT has no word for {site.path!r} and will not load it")
        elif not site.substituted and (difference := peft_differs(self.model.get_submodule(site.module))):
            self._warn(f"PEFT will not give the same outputs for {site.module!r}: {difference}")

    def _warn(self, sentence: str) -> None:
        if sentence not in self.warnings:
            self.warnings.append(sentence)


def _plain(number: float) -> float | int:
    return int(number) if float(number).is_integer() else number


def peft_differs(module: nn.Module) -> str:
    """How PEFT runs an adapter of this layer otherwise than the layer runs, or an empty string."""
    if not isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return ""
    if any(step > 1 and size > 1 for step, size in zip(module.dilation, module.kernel_size, strict=True)):
        return f"its A has no dilation, and the layer has {tuple(module.dilation)}"
    padded = module.padding == "same" or (not isinstance(module.padding, str) and any(module.padding))
    if module.padding_mode != "zeros" and padded:
        return f"its A pads with zeros, and the layer's padding mode is {module.padding_mode!r}"
    return ""
