"""A checkpoint's tensors as floating-point numbers: as they are, or, of a quantised one, what they stand for.

bitsandbytes' weights of four and eight bits can become a dense copy, where that is asked for; other quantised
checkpoints are refused, with what to do instead.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from loraloom.compose.checkpoint.opened import Checkpoint, CheckpointTensors, Part
from loraloom.errors import BaseModelError, MissingExtraError
from loraloom.formats.stored import StoredTensors

_FOUR_BITS = ".weight.quant_state.bitsandbytes__"
_FOUR_BIT_PARTS = (".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map")
_EIGHT_BITS = (".SCB", ".weight_format")
_OTHERS = (".qweight", ".qzeros", ".weight_scale_inv", ".weight_scale", "_packed", ":_data")
"""Ends of keys that other ways of quantising leave."""


@dataclass(frozen=True)
class Packed:
    """A weight that other tensors of the file belong to."""

    key: str
    beside: tuple[str, ...]
    """The keys that go with it, and are not in the dense copy."""
    shape: tuple[int, ...]
    dtype: torch.dtype
    four_bits: bool


class DenseTensors(Mapping[str, Tensor]):
    """The tensors of one part by name, written out where they are packed; each is made when it is asked for."""

    def __init__(self, stored: StoredTensors, packed: Mapping[str, Packed]) -> None:
        self.stored, self.packed = stored, packed
        gone = {key for one in packed.values() for key in one.beside}
        self._names = [key for key in stored if key not in gone]
        self._known = frozenset(self._names)

    def __getitem__(self, name: str) -> Tensor:
        packed = self.packed.get(name)
        if packed is None:
            return self.stored[name]
        return _four_bits(self.stored, packed) if packed.four_bits else _eight_bits(self.stored, packed)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: object) -> bool:  # the mapping's own way would read the tensor
        return name in self._known

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a tensor, which is not read."""
        return self.packed[name].shape if name in self.packed else self.stored.shape(name)

    def dtype(self, name: str) -> torch.dtype:
        """Of a tensor, which is not read."""
        return self.packed[name].dtype if name in self.packed else self.stored.dtype(name)

    def place(self, name: str) -> tuple[Path, int, int] | None:
        """Where a tensor lies; None for one that must be written out."""
        return None if name in self.packed else self.stored.place(name)


@dataclass(frozen=True)
class Dense:
    """A checkpoint as a dense one."""

    checkpoint: Checkpoint
    parts: Mapping[str, DenseTensors]
    """By the part's name."""
    notes: tuple[str, ...] = ()

    @cached_property
    def tensors(self) -> CheckpointTensors:
        """Of all parts, with the part in front."""
        return CheckpointTensors({part.prefix: self.parts[part.name] for part in self.checkpoint.parts})

    @property
    def written_out(self) -> bool:
        """Whether any tensor is another than the file's."""
        return any(own.packed for own in self.parts.values())


def dense_view(checkpoint: Checkpoint, dequantize: bool) -> Dense:
    """A checkpoint's tensors as floating-point numbers.

    Raises BaseModelError for a quantised one, unless it can be written out and `dequantize` says so.
    """
    parts = {part.name: _dense_part(part, dequantize) for part in checkpoint.parts}
    count = sum(len(own.packed) for own in parts.values())
    notes = (f"{count} quantised weights were written out: the result is dense",) if count else ()
    return Dense(checkpoint, parts, notes)


def _dense_part(part: Part, dequantize: bool) -> DenseTensors:
    settings = part.config.get("quantization_config")
    how = str(settings.get("quant_method", "unknown")) if isinstance(settings, dict) else None
    packed = _packed(part)
    other = next((key for key in part.tensors if key.endswith(_OTHERS)), None)
    if how is None and not packed and other is None:
        return DenseTensors(part.tensors, {})
    where = part.folder or part.files[0]
    if not packed:
        raise BaseModelError(
            f"base model: {where} is quantised ({how or other}), and adapters are merged into dense weights: take the "
            "checkpoint that it was made from, or load it with transformers, model.dequantize().save_pretrained(folder)"
        )
    if not dequantize:
        raise BaseModelError(
            f"base model: {where} is quantised (bitsandbytes), and adapters are merged into dense weights: take the "
            "checkpoint that it was made from, or say --dequantize for a dense copy, which is several times as large"
        )
    return DenseTensors(part.tensors, packed)


def _packed(part: Part) -> dict[str, Packed]:
    found: dict[str, Packed] = {}
    numbers = [dtype for key in part.tensors if (dtype := part.tensors.dtype(key)) in (torch.float16, torch.bfloat16)]
    dtype = numbers[0] if numbers else torch.float32
    for key in part.tensors:
        if _FOUR_BITS in key:
            found[f"{key.split(_FOUR_BITS)[0]}.weight"] = _packed_four(part.tensors, key)
        elif key.endswith(".SCB"):
            stem = key.removesuffix(".SCB")
            beside = tuple(stem + end for end in _EIGHT_BITS if stem + end in part.tensors)
            found[f"{stem}.weight"] = Packed(
                f"{stem}.weight", beside, part.tensors.shape(f"{stem}.weight"), dtype, False
            )
    return found


def _packed_four(tensors: StoredTensors, state_key: str) -> Packed:
    stem = f"{state_key.split(_FOUR_BITS)[0]}.weight"
    beside = (state_key, *(stem + end for end in _FOUR_BIT_PARTS if stem + end in tensors))
    try:
        state = json.loads(bytes(tensors[state_key].tolist()))
        shape, dtype = tuple(int(size) for size in state["shape"]), getattr(torch, state["dtype"])
    except (ValueError, KeyError, TypeError, AttributeError):
        raise BaseModelError(f"base model: tensor {state_key!r} does not tell how {stem!r} is quantised") from None
    return Packed(stem, beside, shape, dtype, True)


def _four_bits(tensors: StoredTensors, packed: Packed) -> Tensor:
    functional: Any = _bitsandbytes()
    held = {key.removeprefix(f"{packed.key}."): tensors[key] for key in packed.beside}
    state = functional.QuantState.from_dict(held, device=torch.device("cpu"))
    weight: Tensor = functional.dequantize_4bit(tensors[packed.key], state)
    return weight.reshape(packed.shape).to(packed.dtype)


def _eight_bits(tensors: StoredTensors, packed: Packed) -> Tensor:
    largest = tensors[packed.beside[0]].float()
    return (tensors[packed.key].float() * (largest / 127)[:, None]).to(packed.dtype)


def _bitsandbytes() -> Any:
    try:
        return importlib.import_module("bitsandbytes.functional")
    except (ImportError, OSError, RuntimeError):
        raise MissingExtraError('--dequantize needs bitsandbytes: pip install "loraloom[quantize]"') from None
