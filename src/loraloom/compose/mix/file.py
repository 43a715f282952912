"""The mixed updates, heads and biases as one adapter in PEFT's vocabulary, written layer by layer as they are made.

The shapes of the result follow from those of the adapters, so that the file's header is known before its first layer
is worked out: at no time is there more of the result in memory than one layer.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from loraloom.compose.mix.combine import mixed_rank
from loraloom.compose.mix.kept import plain_key
from loraloom.compose.mix.plan import MixPlan
from loraloom.compose.sources import Source
from loraloom.errors import FormatError
from loraloom.formats.peft_config import BIASES, NO_TARGETS
from loraloom.formats.peft_file import AdapterFile
from loraloom.formats.peft_names import PREFIX, without_wrappers
from loraloom.formats.peft_settings import HEADER, VERSION
from loraloom.formats.stored import StoredTensors
from loraloom.formats.tensorfile import Buffer, header_bytes, tensor_bytes, write_together
from loraloom.formats.updates import Update, config_of

_OUTPUT = ".base_layer.out_proj"
_SHARED = ("base_model_name_or_path", "revision", "task_type")
"""Fields of the config that say nothing of the numbers; kept where all adapters have the same."""
_OWN = ("rank_pattern", "alpha_pattern", "bias", "modules_to_save")
"""Fields that are worked out anew for an adapter that changes no layer."""


@dataclass(frozen=True)
class Layer:
    """One layer of the result, before it is worked out."""

    path: str
    rank: int
    shape: tuple[int, ...]
    """(out, in, k…) of the weight."""
    groups: int
    lookup: bool
    biased: bool

    @property
    def stem(self) -> str:
        return PREFIX + self.path

    def outline(self) -> dict[str, tuple[int, ...]]:
        """Key → shape of its tensors."""
        ones = (1,) * (len(self.shape) - 2)
        names = ("lora_embedding_A", "lora_embedding_B") if self.lookup else ("lora_A.weight", "lora_B.weight")
        a, b = (self.rank, *self.shape[1:]), (self.shape[0], self.rank // self.groups, *ones)
        found = {f"{self.stem}.{name}": shape for name, shape in zip(names, (a, b), strict=True)}
        return found | {f"{self.stem}.lora_B.bias": (self.shape[0],)} if self.biased else found

    def tensors(self, update: Update) -> Iterator[tuple[str, Tensor]]:
        """Its tensors, in the order of their keys; what the rank has room for and the update has not is 0."""
        a, b = update.a, update.b
        missing = self.rank - update.rank
        if missing:
            a = torch.cat([a, a.new_zeros(missing, *a.shape[1:])])
            b = torch.cat([b, b.new_zeros(b.shape[0], missing // self.groups, *b.shape[2:])], dim=1)
        bias = b.new_zeros(b.shape[0]) if update.bias is None else update.bias
        for key in sorted(self.outline()):
            yield key, a if "_A" in key[len(self.stem) :] else bias if key.endswith(".bias") else b


def layers_of(plan: MixPlan) -> list[Layer]:
    """The layers of the result, in the order of their keys in the file.

    PEFT's `lora_bias` is for all layers, and an attention has one rank with its out_proj: what is missing is 0.
    """
    owners = {path: [plan.ingredients[at].source.updates for at, _ in plan.holders(path)] for path in plan.sites}
    ranks: dict[str, int] = {}
    for path, own in owners.items():
        first = own[0]
        rank = mixed_rank([one.rank(path) for one in own], first.shape(path), first.groups(path), plan.method)
        ranks[_config_path(path)] = max(ranks.get(_config_path(path), 0), rank)
    biased = any(one.is_biased(path) for path, own in owners.items() for one in own)
    found = []
    for path, own in sorted(owners.items(), key=lambda entry: f"{entry[0]}."):
        first, lookup = own[0], own[0].is_lookup(path)
        rank = ranks[_config_path(path)]
        found.append(Layer(path, rank, first.shape(path), first.groups(path), lookup, biased and not lookup))
    return found


def write_mixed(plan: MixPlan, made: Callable[[str], Update], scratch: Path, comment: str) -> AdapterFile:
    """Work out every layer and write it to the file `scratch`; the adapter reads from there.

    `made` gives the update of a layer, and is called once for each, in the order of the file. Raises FormatError
    where nothing is left to write.
    """
    layers, kept = layers_of(plan), _heads(plan)
    kept |= _biases(plan, {without_wrappers(layer.path) for layer in layers})
    if not layers and not kept:
        raise FormatError("nothing is left of the mix: every layer has weight 0")
    write_together({scratch: _pieces(layers, kept, made, plan.dtype)})
    tensors = StoredTensors(scratch)
    return AdapterFile(_config(plan, layers), tensors, _metadata(plan, comment), _place(plan))


def _pieces(
    layers: Sequence[Layer], kept: Mapping[str, Callable[[], Tensor]], made: Callable[[str], Update], dtype: torch.dtype
) -> Iterator[Buffer]:
    """The file, piece by piece."""
    outline = {key: (dtype, shape) for layer in layers for key, shape in layer.outline().items()}
    for key, read in kept.items():
        tensor = read()
        outline[key] = (tensor.dtype, tuple(tensor.shape))
    yield header_bytes(outline, {"format": "pt"})
    by_first = {min(layer.outline()): layer for layer in layers}
    for key in sorted({**by_first, **kept}):
        if key in by_first:
            layer = by_first[key]
            yield from (tensor_bytes(tensor) for _, tensor in layer.tensors(made(layer.path)))
        else:
            yield tensor_bytes(kept[key]())


def as_it_is(plan: MixPlan, comment: str) -> AdapterFile:
    """The one adapter of a mix that is only itself: every tensor and setting as they are."""
    source = plan.untouched
    assert source is not None
    metadata = source.file.metadata if source.single_folder else {**source.file.metadata, **_comment(comment)}
    return replace(source.file, metadata=metadata)


def _place(plan: MixPlan) -> Path:
    """A PEFT folder where all adapters are such, so that the result is laid out as they are."""
    sources = plan.sources
    as_they_are = all(source.updates.own_name(path) == path for source in sources for path in source.updates)
    return sources[0].file.path if as_they_are and all(s.single_folder for s in sources) else Path("the mix")


def _config_path(path: str) -> str:
    """The module by which PEFT's config knows a layer: of an attention's out_proj the attention."""
    return path.removesuffix(_OUTPUT)


# -- the config ---------------------------------------------------------------------------------------


def _config(plan: MixPlan, layers: Sequence[Layer]) -> dict[str, Any]:
    configs = [source.file.config for source in plan.sources]
    known = {_config_path(layer.path): _outlined(layer) for layer in layers}
    config = config_of(known.values()) if known else _without_layers(configs[0])
    for field in _SHARED:
        values = [one.get(field) for one in configs]
        if values[0] is not None and all(value == values[0] for value in values):
            config[field] = values[0]
    if any(one.get("fan_in_fan_out") for one in configs):
        config["fan_in_fan_out"] = True
    if plan.biases:
        config["bias"] = max((source.file.peft.bias for source in plan.sources), key=list(BIASES).index)
    owners = {owner.name: owner for owner in plan.heads.values()}
    saved = [entry for owner in owners.values() for entry in owner.file.peft.modules_to_save or ()]
    return config | ({"modules_to_save": list(dict.fromkeys(saved))} if saved else {})


def _outlined(layer: Layer) -> Update:
    """The layer as far as a config tells of it: no numbers."""
    a, b = torch.empty(layer.rank, 1, device="meta"), torch.empty(1, layer.rank, device="meta")
    return Update(_config_path(layer.path), a, b, float(layer.rank), bias=b[0] if layer.biased else None)


def _without_layers(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in _OWN} | {"target_modules": [NO_TARGETS]}


# -- what is kept whole -------------------------------------------------------------------------------


def _heads(plan: MixPlan) -> dict[str, Callable[[], Tensor]]:
    kept = {one.source.name: one.kept for one in (*plan.ingredients, *plan.idle)}
    keys = {key: owner for module, owner in plan.heads.items() for key in kept[owner.name].heads[module].values()}
    return {key: _reader(owner, key) for key, owner in keys.items()}


def _reader(source: Source, key: str) -> Callable[[], Tensor]:
    return lambda: source.file.tensors[key]


def _biases(plan: MixPlan, adapted: set[str]) -> dict[str, Callable[[], Tensor]]:
    values = {plain_key(bias.path, adapted): bias.value(plan.base) for bias in plan.biases}
    return {key: (lambda value=value: value) for key, value in values.items()}  # type: ignore[misc]


# -- the header ---------------------------------------------------------------------------------------


def _metadata(plan: MixPlan, comment: str) -> dict[str, str]:
    """Of PEFT folders written here, the mark of that: a layer that PEFT would run otherwise runs as it should."""
    metadata = {"format": "pt", **_comment(comment)}
    if all(source.single_folder and source.file.ours is not None for source in plan.sources):
        metadata[HEADER] = json.dumps({"version": VERSION}, separators=(",", ":"))
    return metadata


def _comment(comment: str) -> dict[str, str]:
    """A field that web UIs show."""
    return {"ss_training_comment": comment}
