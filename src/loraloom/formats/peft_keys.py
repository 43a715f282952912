"""Which weights of a model the keys of an adapter file belong to."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from loraloom.adapters.layers import layer_kind
from loraloom.adapters.plan import base_parameters
from loraloom.errors import suggest
from loraloom.formats.peft_config import PeftConfig
from loraloom.formats.peft_file import AdapterFile
from loraloom.formats.peft_names import (
    PREFIX,
    PeftNames,
    Place,
    locate,
    packed_attention,
    without_wrappers,
)

_FACTOR = re.compile(r"(?P<stem>.+)\.lora_(?:embedding_(?P<lookup>[AB])|(?P<role>[AB])\.(?P<what>weight|bias))")
_MOST_SUGGESTIONS = 3  # comparing names is slow, and the third says what the thirtieth would


@dataclass
class Sorted:
    """The tensors of a file by what they are, as keys of the file."""

    factors: dict[Place, dict[str, str]] = field(default_factory=dict)
    """Place → {"A": key, "B": key, and "bias" where B has one}."""
    heads: dict[str, dict[str, str]] = field(default_factory=dict)
    """Head module → parameter's name in it → key."""
    biases: dict[str, str] = field(default_factory=dict)
    """Full path of a bias → key."""
    names: PeftNames | None = None


class KeySorter:
    """Sorts the keys of a file by the parts of a model; `faults` tells what does not fit."""

    def __init__(self, model: nn.Module, file: AdapterFile) -> None:
        self.model, self.file = model, file
        self.config: PeftConfig = file.peft
        self.modules = dict(model.named_modules())
        self.head_modules = list(self._head_modules())
        self.found = Sorted()
        self.faults: list[str] = []
        self.warnings: list[str] = []
        self._suggested = 0
        self._beside: dict[str, dict[str, str]] = {}

    def sort(self) -> Sorted:
        for key in self.file.tensors:
            if not key.startswith(PREFIX):
                self.faults.append(f"tensor {key!r} does not begin with {PREFIX!r}: this is not PEFT's layout")
                continue
            match = _FACTOR.fullmatch(key.removeprefix(PREFIX))
            if match is None:
                self._keep_plain(key)
            else:
                role = "bias" if match["what"] == "bias" else match["role"] or match["lookup"]
                self._keep_factor(key, match["stem"], role)
        self.found.names = PeftNames(self.model, self.found.factors)
        self._check_factors()
        self._check_expected()
        self._check_heads()
        self._check_plain()
        self._check_embeddings()
        return self.found

    def _head_modules(self) -> Iterator[str]:
        last = None
        for path in self.modules:
            if path and self.config.saves(path) and (last is None or not path.startswith(f"{last}.")):
                last = path
                yield path

    # -- factors ------------------------------------------------------------------------------------

    def _keep_factor(self, key: str, stem: str, role: str) -> None:
        path, rest, wrappers = locate(self.model, stem)
        parent = self.modules.get(path.rpartition(".")[0])
        if packed_attention(parent) and path and not rest and stem.endswith(path):
            self.warnings.append(f"{key!r} has no effect, in PEFT either: attention does not call its out_proj")
            return
        place = self._parameter_place(path, rest) if rest else self._module_place(path, wrappers)
        if place is None:
            self._belongs_to_nothing(key, without_wrappers(stem), path if not rest else None)
        elif (other := self.found.factors.setdefault(place, {}).setdefault(role, key)) != key:
            self.faults.append(f"tensors {other!r} and {key!r} would be the same factor of {place.path!r}")

    def _module_place(self, path: str, wrappers: int) -> Place | None:
        """The place that a key means which names a module."""
        module = self.modules.get(path)
        if module is None or not path:
            return None
        if own := self._raw_targets(path, module):
            return Place(path, own[-1 - wrappers], True) if wrappers < len(own) else None
        parent, _, leaf = path.rpartition(".")
        if packed_attention(self.modules[parent]):
            return Place(parent, f"{leaf}.weight", True)
        if packed_attention(module):
            return Place(path, "in_proj_weight", True)
        return Place(path, "weight", False) if _adaptable(module) else None

    def _raw_targets(self, path: str, module: nn.Module) -> list[str]:
        """The parameters of a module that the config adapts by themselves."""
        if not self.config.target_parameters:
            return []
        return [n for n in base_parameters(module, recurse=False) if self.config.targets_parameter(f"{path}.{n}")]

    def _parameter_place(self, path: str, rest: str) -> Place | None:
        """The place that a key means which names a raw parameter: ours, where PEFT has no word."""
        module = self.modules.get(path)
        if module is None or self.file.ours is None or rest not in base_parameters(module, recurse=False):
            return None
        parent, _, leaf = path.rpartition(".")
        if path and isinstance(self.modules[parent], nn.MultiheadAttention):
            return Place(parent, f"{leaf}.{rest}", True)
        return Place(path, rest, True)

    def _check_factors(self) -> None:
        """Both factors of every place, under the keys that PEFT gives them."""
        assert self.found.names is not None
        for place, keys in self.found.factors.items():
            module = self.modules[place.module]
            lookup = isinstance(module, nn.Embedding) and not place.substituted
            expected = dict(zip("AB", self.found.names.factors(place, lookup=lookup), strict=True))
            if self._has_lora_bias(place):
                expected["bias"] = expected["B"].removesuffix("weight") + "bias"
            for role in sorted({*keys, *expected}):
                if role not in keys:
                    self.faults.append(f"missing tensor {expected[role]!r}")
                elif expected.get(role) != keys[role]:
                    self.faults.append(f"tensor {keys[role]!r} belongs to nothing, where {place.path!r} is adapted so")

    def _has_lora_bias(self, place: Place) -> bool:
        lookup = isinstance(self.modules[place.module], nn.Embedding)
        attention = self.found.names is not None and place.module in self.found.names.attention
        return self.config.lora_bias and not lookup and (attention or not place.substituted)

    def _check_expected(self) -> None:
        """The places of the file against the targets of the config."""
        if not self.config.knows_targets or self.found.names is None:
            return
        expected = dict.fromkeys(self._expected())
        for place in expected:
            if place not in self.found.factors:
                self.faults.append(f"missing tensors for {place.path!r}, which the config names as a target")
        tied = {id(self._weight(place)) for place in expected} if self.config.ensure_weight_tying else set()
        for place, keys in self.found.factors.items():
            if place in expected or place in self.found.names.unknown or id(self._weight(place)) in tied:
                continue
            self.faults += [f"tensor {key!r} belongs to no target of the config" for key in sorted(keys.values())]

    def _expected(self) -> Iterator[Place]:
        for path, module in self.modules.items():
            if not path or self._in_head(path):
                continue
            yield from (Place(path, name, True) for name in self._raw_targets(path, module))
            if not self.config.targets(path) or packed_attention(self.modules[path.rpartition(".")[0]]):
                continue
            if packed_attention(module):
                yield from (Place(path, name, True) for name in ("in_proj_weight", "out_proj.weight"))
            elif _adaptable(module):
                yield Place(path, "weight", False)

    def _weight(self, place: Place) -> Tensor:
        weight: Tensor = self.modules[place.module].get_parameter(place.parameter)
        return weight

    def _in_head(self, path: str) -> str | None:
        return next((head for head in self.head_modules if f"{path}.".startswith(f"{head}.")), None)

    # -- tensors kept whole -------------------------------------------------------------------------

    def _keep_plain(self, key: str) -> None:
        path, rest, _ = locate(self.model, key.removeprefix(PREFIX))
        head = self._in_head(path) if path else None
        if head is not None and rest.startswith(("original_module.", "modules_to_save.")):
            self._check_copy(key, path, rest)
            return
        module = self.modules.get(path)
        if module is None or rest not in {*base_parameters(module, recurse=False), *module._buffers}:
            self._belongs_to_nothing(key, without_wrappers(key), None)
            return
        full = f"{path}.{rest}".lstrip(".")
        if head is not None and rest in module._buffers:
            self._check_buffer(key, module._buffers[rest])
        elif head is not None:
            self.found.heads.setdefault(head, {})[full.removeprefix(f"{head}.")] = key
        elif rest in ("bias", "in_proj_bias") and self.config.bias != "none":
            self.found.biases[full] = key
        elif self._is_embedding(module):
            self._beside.setdefault(path, {})[rest] = key
        else:
            shape = tuple(self.file.tensors[key].shape)
            self.faults.append(
                f"tensor {key!r} of shape {shape} is a weight of the base, which the config does not name to be kept"
            )

    def _check_copy(self, key: str, head: str, rest: str) -> None:
        """With bias "all" PEFT also writes the biases inside its wrappers of heads: what they were, and a double."""
        wrapper, _, inner = rest.partition(".")
        twins = [self.file.tensors.get(f"{PREFIX}{head}.{name}") for name in (inner, inner.partition(".")[2])]
        if wrapper == "modules_to_save" and not any(
            twin is not None and torch.equal(twin, self.file.tensors[key]) for twin in twins
        ):
            self.faults.append(f"tensor {key!r} is not the double of one of the head's own")

    def _check_buffer(self, key: str, base: Tensor | None) -> None:
        tensor = self.file.tensors[key]
        if base is None or base.shape != tensor.shape or not torch.equal(tensor.to(base), base):
            self.faults.append(
                f"tensor {key!r} is a running statistic of the head that is not the model's: heads are kept without"
            )

    def _check_heads(self) -> None:
        assert self.found.names is not None
        for head in self.head_modules:
            kept = self.found.heads.get(head, {})
            for name in base_parameters(self.modules[head]):
                if name not in kept:
                    self.faults.append(f"missing tensor {self.found.names.plain(f'{head}.{name}')!r} of the head")

    def _check_plain(self) -> None:
        """What is kept whole lies where PEFT keeps it; a wrapper more or less would be another tensor."""
        assert self.found.names is not None
        kept = {f"{head}.{name}": key for head, keys in self.found.heads.items() for name, key in keys.items()}
        for path, key in (kept | self.found.biases).items():
            if key != self.found.names.plain(path):
                self.faults.append(
                    f"tensor {key!r} belongs to nothing: {path!r} is kept as {self.found.names.plain(path)!r}"
                )

    # -- embeddings saved beside --------------------------------------------------------------------

    def _is_embedding(self, module: nn.Module) -> bool:
        getters = ("get_input_embeddings", "get_output_embeddings")
        return any(getattr(self.model, getter, lambda: None)() is module for getter in getters)

    def _check_embeddings(self) -> None:
        """PEFT can save the base's embeddings too: the same as the model's, they say nothing; else they are copies."""
        for path, keys in self._beside.items():
            base = base_parameters(self.modules[path], recurse=False)
            tensors = {name: self.file.tensors[key] for name, key in keys.items()}
            resized = [name for name, tensor in tensors.items() if tensor.shape != base[name].shape]
            if resized:
                self.faults.append(
                    f"tensor {keys[resized[0]]!r} of shape {tuple(tensors[resized[0]].shape)} is an embedding of a "
                    f"resized base, where the model's is {tuple(base[resized[0]].shape)}: resize the model's first"
                )
            elif all(torch.equal(tensor.to(base[name]), base[name]) for name, tensor in tensors.items()):
                continue
            elif set(base) != set(keys) or any(place.module == path for place in self.found.factors):
                self.faults.append(
                    f"tensor {min(keys.values())!r} replaces an embedding of the base that the adapter updates as well"
                )
            else:
                self.found.heads[path] = keys

    # -- faults -------------------------------------------------------------------------------------

    def _belongs_to_nothing(self, key: str, path: str, module: str | None) -> None:
        shape = tuple(self.file.tensors[key].shape)
        if ".lora_magnitude_vector" in key:
            reason = ": it is the magnitude of DoRA, which cannot be read"
        elif "token_adapter." in key:
            reason = ": it holds trained tokens, which cannot be read"
        elif module:
            reason = f": {module!r} is a {type(self.modules[module]).__name__}, which is not adapted so"
        else:
            reason = f": the model has no {path!r}{self._near(path)}"
        self.faults.append(f"tensor {key!r} of shape {shape} belongs to nothing{reason}")

    def _near(self, path: str) -> str:
        self._suggested += 1
        return suggest(path, self.modules) if self._suggested <= _MOST_SUGGESTIONS else ""


def _adaptable(module: nn.Module) -> bool:
    """Whether a layer takes an update on its output; one whose weight is computed from others does not."""
    return layer_kind(module) is not None and module._parameters.get("weight") is not None
