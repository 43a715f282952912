"""What adapters keep whole beside their updates, and how it is mixed: heads have one owner, biases add up.

A bias is kept as a full copy, so that the mix of several is base + Σ w (copy − base), as `AdapterSet.activate` adds
them; that is Σ w copy + (1 − Σ w) base, which needs no base where the weights of those that have it sum to 1.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from loraloom.compose.sources import Source
from loraloom.errors import ConfigError, FormatError
from loraloom.formats.peft_names import PREFIX, without_wrappers
from loraloom.formats.stored import StoredTensors
from loraloom.tasks.models.bases import fingerprint, resolve_base, weight_files

_BIASES = ("bias", "in_proj_bias")
_BALANCED = 1e-9
"""How far weights may be from 1 in sum and still count as 1: what is left of 0.7 + 0.2 + 0.1 in floating point."""


@dataclass(frozen=True)
class Kept:
    """What one adapter keeps whole, by what it is; keys of its file."""

    heads: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Module → what follows it → key."""
    biases: Mapping[str, str] = field(default_factory=dict)
    """Full path of a bias → key."""
    unknown: tuple[str, ...] = ()
    """Keys that no mixture has a rule for."""
    magnitudes: bool = False
    """Whether it is a DoRA adapter, whose updates hang on the base's weights."""


def kept_by(source: Source) -> Kept:
    """Sort what an adapter keeps beside its updates."""
    heads: dict[str, dict[str, str]] = {}
    biases: dict[str, str] = {}
    unknown: list[str] = []
    config = source.file.peft
    dora = bool(getattr(config, "use_dora", False))
    for key in source.rest:
        path = without_wrappers(key)
        module, _, name = path.rpartition(".")
        head = _head_of(source, module)
        if ".lora_magnitude_vector" in key:
            dora = True
        elif not key.startswith(PREFIX) or ".lora_" in key or "token_adapter." in key or not module:
            unknown.append(key)
        elif head is None and name in _BIASES and config.bias != "none":
            biases[path] = key
        else:  # what is neither is an embedding of the base that was saved as well, which has one owner too
            owner = head or module
            heads.setdefault(owner, {})[path.removeprefix(f"{owner}.")] = key
    return Kept(heads, biases, tuple(unknown), dora)


def _head_of(source: Source, module: str) -> str | None:
    """The outermost module around this one that the config names to be saved."""
    parts = module.split(".")
    around = (".".join(parts[:count]) for count in range(1, len(parts) + 1))
    return next((path for path in around if source.file.peft.saves(path)), None)


# -- heads --------------------------------------------------------------------------------------------


def head_owners(
    holders: Mapping[str, Sequence[tuple[Source, Mapping[str, str]]]], chosen: Source | None
) -> dict[str, Source]:
    """Module → the adapter whose head is kept. Raises ConfigError, naming both, where nobody has chosen.

    `holders` are, by module, the adapters that have a head there, with the keys of it.
    """
    if chosen is not None and not any(source is chosen for own in holders.values() for source, _ in own):
        had = sorted({source.name for own in holders.values() for source, _ in own})
        told = f"; heads are in {', '.join(map(repr, had))}" if had else "; none of the adapters has one"
        raise ConfigError(f"--head {chosen.name!r}: it has no head{told}")
    owners = {}
    for module, own in holders.items():
        names = [source for source, _ in own if source is chosen] or [own[0][0]]
        if names[0] is not chosen:
            _refuse_other(module, own)
        owners[module] = names[0]
    return owners


def _refuse_other(module: str, own: Sequence[tuple[Source, Mapping[str, str]]]) -> None:
    first, keys = own[0]
    for other, its in own[1:]:
        if not _same_head(first, keys, other, its):
            raise ConfigError(
                f"{first.name!r} and {other.name!r} have different heads {module!r}, and heads are not mixed: choose "
                f"with --head {first.name} or --head {other.name}"
            )


def _same_head(one: Source, keys: Mapping[str, str], other: Source, its: Mapping[str, str]) -> bool:
    return set(keys) == set(its) and all(
        torch.equal(one.file.tensors[keys[name]], other.file.tensors[its[name]]) for name in keys
    )


# -- biases -------------------------------------------------------------------------------------------


class BaseBiases:
    """Biases of the base model, read from its files when they are asked for; without a base there are none.

    `expected` are the sha256 that adapters tell of their base's weights. Raises BaseModelError where there is no such
    base, FormatError where it is another one.
    """

    def __init__(self, base: str | Path | None, expected: Iterable[str] = ()) -> None:
        self.given = base
        files = [] if base is None else _weight_files(str(base))
        self._tensors = StoredTensors(*files)
        for wanted in set(expected) if files else ():
            if (found := fingerprint(files)) != wanted:
                raise FormatError(
                    f"--base '{base}' has weights of sha256 {found[:12]}…, and the adapters were trained over "
                    f"{wanted[:12]}…"
                )

    def find(self, path: str) -> Tensor | None:
        """A bias by its path in the model; checkpoints have a prefix more or less than the model."""
        if path in self._tensors:
            return self._tensors[path]
        near = [key for key in self._tensors if key.endswith(f".{path}") or path.endswith(f".{key}")]
        if len(near) > 1:
            longest = max(map(len, near))
            near = [key for key in near if len(key) == longest]
        return self._tensors[near[0]] if len(near) == 1 else None


def _weight_files(base: str) -> list[Path]:
    path = Path(base).expanduser()
    return [path] if path.suffix == ".safetensors" and path.is_file() else weight_files(resolve_base(base).folder)


@dataclass(frozen=True)
class MixedBias:
    """One bias of the result."""

    path: str
    holders: tuple[tuple[float, Source, str], ...]
    """(weight, adapter, key of its copy)."""

    @property
    def total(self) -> float:
        return sum(weight for weight, _, _ in self.holders)

    @property
    def needs_base(self) -> bool:
        return abs(self.total - 1.0) > _BALANCED

    def value(self, base: BaseBiases) -> Tensor:
        """Σ w copy + (1 − Σ w) base, in the dtype of the copies."""
        copies = [source.file.tensors[key] for _, source, key in self.holders]
        if len(copies) == 1 and self.holders[0][0] == 1.0:
            return copies[0]
        result = torch.zeros_like(copies[0], dtype=torch.float64) if copies else None
        for (weight, _, _), copy in zip(self.holders, copies, strict=True):
            assert result is not None
            result += weight * copy.double()
        if self.needs_base:
            own = base.find(self.path)
            assert own is not None
            result = own.double() * (1 - self.total) + (0.0 if result is None else result)
        assert result is not None
        return result.to(copies[0].dtype if copies else torch.float32)


def check_biases(biases: Iterable[MixedBias], base: BaseBiases) -> None:
    """Raises ConfigError where the base's own bias is needed and no base is named, FormatError where it has none."""
    for bias in biases:
        if not bias.needs_base:
            continue
        names = " and ".join(dict.fromkeys(repr(source.name) for _, source, _ in bias.holders))
        if base.given is None:
            raise ConfigError(
                f"the bias {bias.path!r} is kept whole by {names or 'other layers'} with weights of {bias.total:g} in "
                "sum, and what is missing to 1 is the base's own: name the base with --base"
            )
        own = base.find(bias.path)
        if own is None:
            raise FormatError(f"--base '{base.given}' has no tensor {bias.path!r}, which the mix of biases needs")
        for _, source, key in bias.holders:
            shape = tuple(source.file.tensors[key].shape)
            if shape != tuple(own.shape):
                raise FormatError(
                    f"{bias.path!r} is {shape} in {source.name!r} and {tuple(own.shape)} in --base '{base.given}'"
                )


def plain_key(path: str, adapted: Collection[str]) -> str:
    """PEFT's key of a parameter that is kept whole, where these modules have a wrapper around them."""
    module, _, name = path.rpartition(".")
    pieces: list[str] = []
    parts = module.split(".")
    for at, part in enumerate(parts, 1):
        pieces.append(part)
        if ".".join(parts[:at]) in adapted:
            pieces.append("base_layer")
    return PREFIX + ".".join([*pieces, name])
