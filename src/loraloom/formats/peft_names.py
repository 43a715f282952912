"""Where PEFT keeps the tensors of an adapter: the keys of `adapter_model.safetensors`.

PEFT puts a wrapper around every module it adapts, and the wrapped module is its `base_layer`; keys follow the
wrappers. Attention is wrapped twice (itself and its out_proj), and a module with several adapted raw parameters
once for each, the last registered outermost.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple, TypeGuard

from torch import nn

from loraloom.adapters import Site
from loraloom.adapters.layers import module_at
from loraloom.adapters.plan import base_parameters

PREFIX = "base_model.model."
_WRAPPER = "base_layer"


class Place(NamedTuple):
    """A weight that an adapter updates: the module it belongs to, its name there, and whether by substitution."""

    module: str
    parameter: str
    substituted: bool

    @classmethod
    def of(cls, site: Site) -> Place:
        return cls(site.module, site.parameter, site.substituted)

    @property
    def path(self) -> str:
        """As `Site.path`."""
        return f"{self.module}.{self.parameter}".lstrip(".") if self.substituted else self.module


class PeftNames:
    """The keys that PEFT gives to an adapter with these places on this model."""

    def __init__(self, model: nn.Module, places: Iterable[Place]) -> None:
        self._wrappers: dict[str, int] = {}
        """Module → how many wrappers are around it."""
        self._depth: dict[Place, int] = {}
        """Raw parameter → how many of its module's wrappers are outside its own."""
        self.attention: set[str] = set()
        """Attention modules that PEFT adapts as attention."""
        self.unknown: set[Place] = set()
        """Places for which PEFT has no word."""
        by_module: dict[str, list[Place]] = {}
        for place in places:
            by_module.setdefault(place.module, []).append(place)
        for path, own in by_module.items():
            self._wrap(module_at(model, path), path, own)

    def _wrap(self, module: nn.Module, path: str, own: list[Place]) -> None:
        names = {place.parameter for place in own}
        if not own[0].substituted:
            self._wrappers[path] = 1
        elif packed_attention(module) and names == {"in_proj_weight", "out_proj.weight"}:
            self.attention.add(path)
            self._wrappers[path] = self._wrappers[f"{path}.out_proj"] = 1
        elif not path or any("." in name for name in names):
            self.unknown |= set(own)
        else:
            order = [name for name in base_parameters(module, recurse=False) if name in names]
            self._wrappers[path] = len(order)
            self._depth |= {Place(path, name, True): len(order) - 1 - at for at, name in enumerate(order)}

    def factors(self, place: Place, *, lookup: bool) -> tuple[str, str]:
        """Keys of A and B; `lookup` for an embedding."""
        if place in self.unknown:
            stem = PREFIX + place.path
        elif place.module in self.attention:
            owner = "out_proj" if place.parameter == "out_proj.weight" else ""
            stem = self._module(".".join(filter(None, [place.module, owner])))
        else:
            stem = self._module(place.module) + f".{_WRAPPER}" * self._depth.get(place, 0)
        if lookup:
            return f"{stem}.lora_embedding_A", f"{stem}.lora_embedding_B"
        return f"{stem}.lora_A.weight", f"{stem}.lora_B.weight"

    def plain(self, path: str) -> str:
        """Key of a parameter (a bias, a head's weight) that is kept whole."""
        module, _, name = path.rpartition(".")
        wrapped = f".{_WRAPPER}" * self._wrappers.get(module, 0)
        return f"{self._module(module)}{wrapped}.{name}" if module else PREFIX + name

    def _module(self, path: str) -> str:
        """The key of a module itself, through the wrappers of those that contain it."""
        pieces: list[str] = []
        parts = path.split(".")
        for at, part in enumerate(parts, 1):
            pieces.append(part)
            if at < len(parts):
                pieces += [_WRAPPER] * self._wrappers.get(".".join(parts[:at]), 0)
        return PREFIX + ".".join(pieces)


def packed_attention(module: nn.Module | None) -> TypeGuard[nn.MultiheadAttention]:
    """Attention whose query, key and value weights are one parameter, the only one that PEFT adapts."""
    return isinstance(module, nn.MultiheadAttention) and module._qkv_same_embed_dim


def locate(model: nn.Module, key: str) -> tuple[str, str, int]:
    """A key's module in the model, what is left of the key behind it, and how many wrappers stood before that.

    >>> locate(nn.Sequential(nn.Linear(1, 1)), "0.base_layer.bias")
    ('0', 'bias', 1)
    """
    module, path, wrappers = model, list[str](), 0
    parts = key.split(".")
    for at, part in enumerate(parts):
        child = module._modules.get(part)
        if child is not None:
            module, wrappers = child, 0
            path.append(part)
        elif part == _WRAPPER:
            wrappers += 1
        else:
            return ".".join(path), ".".join(parts[at:]), wrappers
    return ".".join(path), "", wrappers


def without_wrappers(key: str) -> str:
    """A key as a path of the base model, as far as that can be told from the key alone."""
    return ".".join(part for part in key.removeprefix(PREFIX).split(".") if part != _WRAPPER)


def parameter_paths(model: nn.Module) -> Iterator[str]:
    """Full paths of the base model's parameters, each module's own, in order; a shared one by its first path."""
    for path, module in model.named_modules():
        for name in base_parameters(module, recurse=False):
            yield f"{path}.{name}" if path else name
