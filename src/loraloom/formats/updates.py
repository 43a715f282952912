"""The updates of an adapter, site by site, whatever program's file they come from.

Every foreign file is first brought into this form: a path (diffusers' own, with the part of the pipeline in front:
"unet.down_blocks.0…"), the factors as PEFT multiplies them, and alpha. From here it goes into PEFT's vocabulary, to
be attached to a model, or into another program's file.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from loraloom.adapters.adapterset import is_finite
from loraloom.adapters.product import Product
from loraloom.errors import FormatError, one_error
from loraloom.formats.peft_file import MAGNITUDE, AdapterFile, refuse_dora
from loraloom.formats.peft_names import PREFIX
from loraloom.formats.peft_settings import HEADER
from loraloom.formats.selection import by_value, most_common

_FACTOR = re.compile(
    r"(?P<path>.+)\.lora_(?:embedding_(?P<lookup>[AB])|(?P<role>[AB])\.(?P<what>weight|bias)|(?P<magnitude>magnitude_vector))"
)
_DTYPE_NAMES = {torch.float16: "float16", torch.bfloat16: "bfloat16", torch.float32: "float32"}


@dataclass(frozen=True)
class Update:
    """One update ΔW = (alpha / rank) · B · A, as it stands in a file."""

    path: str
    a: Tensor
    """(R, in) or (R, in, k…); of an embedding (R, number)."""
    b: Tensor
    """(out, R) or (out, R / groups, 1…)."""
    alpha: float
    lookup: bool = False
    """True for an embedding, where ΔW is (B A)ᵀ."""
    bias: Tensor | None = None
    """(out,): what PEFT's `lora_bias` adds to the output, times the scale."""
    error: float = 0.0
    """‖written − meant‖ / ‖meant‖ of ΔW, where the file held no low-rank factors and an SVD made these."""
    magnitude: Tensor | None = None
    """(out,): of DoRA, the norm that each output's row of W + ΔW is given (arXiv 2402.09353, as PEFT and LyCORIS'
    `wd_on_out` have it). Such an update only comes from who asks for it: see `updates_of`."""

    @property
    def rank(self) -> int:
        return int(self.a.shape[0])

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    @property
    def groups(self) -> int:
        """Into how many groups a convolution's B divides the rank."""
        return self.rank // int(self.b.shape[1]) if self.b.dim() > 2 and self.b.shape[1] else 1

    def delta(self) -> Tensor:
        """ΔW in the weight's own shape, float64; of a grouped convolution as its wide A has it."""
        delta = self.product().dense().reshape(self.b.shape[0], *self.a.shape[1:])
        return delta.t() if self.lookup else delta

    def product(self) -> Product:
        """ΔW as a matrix, (out, in·k…), kept as its factors; of an embedding its transpose (dim, number)."""
        b = self.b.detach().double().flatten(1)
        return Product.of(b if self.groups == 1 else self._wide(b), self.a, self.scale)

    def norm(self) -> float:
        """‖ΔW‖_F without forming ΔW."""
        return self.product().norm()

    def difference(self, other: Update) -> float:
        """‖ΔW − ΔW'‖_F / ‖ΔW‖_F without forming either; infinite where the shapes of the weights differ.

        Both are one product of stacked factors, [sB, −s'B'] [A; A']. Of DoRA that of the magnitudes, where it is more.
        """
        apart = self._magnitudes_apart(other)
        if apart == math.inf or self._same_bits(other):
            return apart
        ours, theirs = self.product(), other.product()
        if ours.shape != theirs.shape:
            return math.inf
        distance, norm = Product.total([ours, theirs.scaled(-1.0)]).norm(), ours.norm()
        return max(apart, distance / norm if norm else (math.inf if distance else 0.0))

    def _magnitudes_apart(self, other: Update) -> float:
        one, two = self.magnitude, other.magnitude
        if one is None or two is None or one.shape != two.shape:
            return 0.0 if one is two else math.inf
        return float((one.double() - two.double()).norm() / one.double().norm().clamp_min(1e-300))

    def _same_bits(self, other: Update) -> bool:
        pairs = ((self.a, other.a), (self.b, other.b))
        return self.scale == other.scale and all(
            one.numel() == two.numel() and torch.equal(one.flatten(1), two.flatten(1)) for one, two in pairs
        )

    def _wide(self, b: Tensor) -> Tensor:
        """A grouped convolution's B (out, R): each output row stands in its own group's columns."""
        wide = b.new_zeros(b.shape[0], self.rank)
        rows, columns = b.shape[0] // self.groups, b.shape[1]
        for group in range(self.groups):
            own = slice(group * rows, (group + 1) * rows)
            wide[own, group * columns : (group + 1) * columns] = b[own]
        return wide

    def faults(self) -> list[str]:
        """What is wrong with the factors by themselves."""
        return self.shape_faults() or self._value_faults()

    def shape_faults(self) -> list[str]:
        """What is wrong with the shapes of the factors, whatever is in them."""
        a, b = self.a, self.b
        shapes = f"{self.path!r}: its factors have shapes {tuple(a.shape)} and {tuple(b.shape)}"
        if a.dim() < 2 or b.dim() != a.dim() or not a.numel() or not b.numel():
            return [f"{shapes}, expected (rank, in, …) and (out, rank, …)"]
        if b.shape[1] != a.shape[0] and (b.dim() == 2 or a.shape[0] % b.shape[1]):
            return [f"{shapes}: rank {a.shape[0]} in one, {b.shape[1]} in the other"]
        if b[0, 0].numel() != 1:
            return [f"{shapes}: the second is not a convolution of size 1"]
        if self.magnitude is not None and self.magnitude.shape != b.shape[:1]:
            return [f"{shapes}, and DoRA's magnitudes {tuple(self.magnitude.shape)}, expected {tuple(b.shape[:1])}"]
        return []

    def _value_faults(self) -> list[str]:
        tensors = [tensor for tensor in (self.a, self.b, self.magnitude, self.bias) if tensor is not None]
        if not all(tensor.is_floating_point() for tensor in tensors):
            return [f"{self.path!r} holds {self.a.dtype} and {self.b.dtype}, expected floating-point numbers"]
        return [] if all(map(is_finite, tensors)) else [f"{self.path!r} holds values that are not finite"]


def as_peft(updates: Iterable[Update], path: Path, metadata: Mapping[str, str]) -> AdapterFile:
    """Updates in PEFT's vocabulary, in memory, so that they are attached and checked as a PEFT folder is.

    Raises FormatError that names every update whose factors do not fit each other, and a file that has none.
    """
    listed = list(updates)
    faults = [fault for update in listed for fault in update.faults()]
    if faults or not listed:
        raise one_error(FormatError, str(path), faults or ["there is no update in it"])
    tensors: dict[str, Tensor] = {}
    for update in listed:
        tensors |= _named(update)
    own = {key: value for key, value in metadata.items() if key != HEADER}  # settings of a PEFT folder, not of this
    errors = {update.path: update.error for update in listed if update.error}
    return AdapterFile(config_of(listed), tensors, own, path, errors)


def _named(update: Update) -> dict[str, Tensor]:
    stem = f"{PREFIX}{update.path}"
    names = ("lora_embedding_A", "lora_embedding_B") if update.lookup else ("lora_A.weight", "lora_B.weight")
    tensors = {f"{stem}.{name}": factor for name, factor in zip(names, (update.a, update.b), strict=True)}
    if update.bias is not None:
        tensors[f"{stem}.lora_B.bias"] = update.bias
    if update.magnitude is not None:
        tensors[f"{stem}.{MAGNITUDE}"] = magnitude_like(update)
    return tensors


def config_of(updates: Iterable[Update]) -> dict[str, Any]:
    """PEFT's config for these updates: every target by its full path."""
    listed = list(updates)
    ranks = {update.path: float(update.rank) for update in listed}
    alphas = {update.path: update.alpha for update in listed}
    rank, alpha = most_common(list(ranks.values())), most_common(list(alphas.values()))
    optional = {
        "alpha_pattern": {key: _plain(value) for key, value in by_value(alphas, alpha).items()},
        "lora_bias": any(update.bias is not None for update in listed),
        "use_dora": all(update.magnitude is not None for update in listed),
        "rank_pattern": {key: int(value) for key, value in by_value(ranks, rank).items()},
    }
    return {key: value for key, value in optional.items() if value} | {
        "base_model_name_or_path": None,
        "bias": "none",
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": _plain(alpha),
        "lora_dropout": 0.0,
        "peft_type": "LORA",
        "r": int(rank),
        "target_modules": sorted(ranks),
        "task_type": None,
    }


def _plain(number: float) -> float | int:
    return int(number) if float(number).is_integer() else number


def updates_of(file: AdapterFile, *, magnitudes: bool = False) -> tuple[Updates, list[str]]:
    """The updates of an adapter in PEFT's vocabulary by path, and the keys that are none (heads, biases …).

    rsLoRA's alpha / √rank becomes an alpha of alpha · √rank, which gives the same scale everywhere. An adapter of DoRA
    is no sum of updates, so that FormatError is raised, unless the caller deals with `magnitudes`.
    """
    if not magnitudes:
        refuse_dora(file)
    found: dict[str, dict[str, str]] = {}
    rest: list[str] = []
    for key in file.tensors:
        match = _FACTOR.fullmatch(key.removeprefix(PREFIX)) if key.startswith(PREFIX) else None
        if match is None or "base_layer" in match["path"].split("."):
            rest.append(key)
        elif match["magnitude"]:
            found.setdefault(match["path"], {})["magnitude"] = key
        elif match["lookup"]:
            found.setdefault(match["path"], {})[f"lookup {match['lookup']}"] = key
        else:
            found.setdefault(match["path"], {})["bias" if match["what"] == "bias" else match["role"]] = key
    whole = {
        path: keys for path, keys in found.items() if {"A", "B"} <= set(keys) or {"lookup A", "lookup B"} <= set(keys)
    }
    rest += [key for path, keys in found.items() if path not in whole for key in keys.values()]
    return Updates(file, whole), rest


class Updates(Mapping[str, Update]):
    """The updates of an adapter by path, each made when it is asked for: a file that is read tensor by tensor need
    not be in memory as a whole."""

    def __init__(self, file: AdapterFile, keys: Mapping[str, Mapping[str, str]]) -> None:
        self._tensors, self._config, self._file, self._keys = file.tensors, file.peft, file.path, keys

    def __getitem__(self, path: str) -> Update:
        keys = self._keys[path]
        lookup = "lookup A" in keys
        a, b = (self._tensors[keys[f"lookup {role}" if lookup else role]] for role in "AB")
        bias = self._tensors[keys["bias"]] if "bias" in keys else None
        magnitude = self._tensors[keys["magnitude"]].flatten() if "magnitude" in keys else None
        alpha = self._config.scale(path) * (int(a.shape[0]) if a.dim() else 0)
        update = Update(path, a, b, alpha, lookup, bias, magnitude=magnitude)
        if faults := update.shape_faults():
            raise one_error(FormatError, str(self._file), faults)
        return update

    def __contains__(self, path: object) -> bool:  # the mapping's own way would read the factors
        return path in self._keys

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)


_ALWAYS = re.compile(r"unet\..*\.conv_shortcut")
_BY_FAMILY = re.compile(r"unet\..*\.attentions\.\d+\.proj_(?:in|out)")


def in_known_shape(update: Update, kind: str | None) -> Update:
    """Factors of a size-1 convolution as the family's U-Net has the layer: as a convolution, or as a linear layer.

    SD 1.x maps into and out of its attentions by 1×1 convolutions, SD 2.x and SDXL by linear layers; programs that
    look at the layer alone write either, and diffusers loads only what the layer is.
    """
    if _ALWAYS.fullmatch(update.path):
        wanted = 4
    elif kind in ("sd1", "sd2", "sdxl") and _BY_FAMILY.fullmatch(update.path):
        wanted = 4 if kind == "sd1" else 2
    else:
        return update
    a, b = update.a, update.b
    if wanted == 4 and a.dim() == 2:
        return replace(update, a=a[..., None, None], b=b[..., None, None])
    if wanted == 2 and a.dim() == 4 and a.shape[2:] == (1, 1):
        return replace(update, a=a.flatten(1), b=b.flatten(1))
    return update


def in_dtype(update: Update, dtype: torch.dtype) -> Update:
    """The update with its factors in another dtype. Raises FormatError where a value is beyond its range."""
    for tensor in (update.a, update.b):
        if tensor.numel() and float(tensor.abs().max()) > torch.finfo(dtype).max:
            raise FormatError(f"{update.path!r} holds values beyond the range of {_DTYPE_NAMES.get(dtype, dtype)}")
    bias = None if update.bias is None else update.bias.to(dtype)
    magnitude = None if update.magnitude is None else update.magnitude.to(dtype)
    return replace(update, a=update.a.to(dtype), b=update.b.to(dtype), bias=bias, magnitude=magnitude)


def magnitude_like(update: Update, *, kohya: bool = False) -> Tensor:
    """DoRA's magnitudes in the shape that PEFT keeps them in, (out,) or of a convolution (1, out, 1…), or LyCORIS,
    (out, 1…)."""
    assert update.magnitude is not None
    ones = (1,) * (update.b.dim() - 2)
    if kohya:
        return update.magnitude.reshape(-1, 1, *ones)
    return update.magnitude.reshape(1, -1, *ones) if ones else update.magnitude


def some_with_magnitudes(updates: Iterable[Update]) -> list[str]:
    """The fault of updates of which some are DoRA and some are not, for a format that has one word for all."""
    listed = list(updates)
    without = [update.path for update in listed if update.magnitude is None]
    if not without or len(without) == len(listed):
        return []
    return [f"{without[0]!r} is plain LoRA and other layers are DoRA, which this format has for all layers or for none"]
