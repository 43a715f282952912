"""A file of diffusers, kohya, LyCORIS or loralib, brought into PEFT's vocabulary."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from loraloom.errors import FormatError
from loraloom.formats.careful import first_faults, parse_json
from loraloom.formats.families import guess_family, mixed_families
from loraloom.formats.keys import KOHYA_PREFIXES, Keys, grouped, sort_keys
from loraloom.formats.loralib import FOLDED, loralib_update
from loraloom.formats.loralib import HEADER as LORALIB
from loraloom.formats.lowrank import LowRank, cut, fitted, low_rank, magnitudes
from loraloom.formats.peft_config import PeftConfig
from loraloom.formats.peft_file import CONFIG_NAME
from loraloom.formats.resolving import Resolver, part_of
from loraloom.formats.tensorfile import read_tensors
from loraloom.formats.transformer_names import split
from loraloom.formats.updates import Update

METADATA_KEY = "lora_adapter_metadata"
"""Under this name diffusers keeps PEFT's config in the header, each field with the part in front ("unet.r")."""
_MOST_SUGGESTIONS = 3  # comparing names is slow, and the third says what the thirtieth would


class ForeignReader:
    """Reads one file; what is no plain LoRA in it is cut to `rank`, where one is given.

    `alpha` is for loralib's files, which do not hold theirs.
    """

    def __init__(
        self, path: Path, model: nn.Module | None = None, rank: int | None = None, alpha: float | None = None
    ) -> None:
        self.path, self.rank, self.alpha = path, rank, alpha
        self.tensors, self.metadata = read_tensors(path)
        self.keys: Keys = sort_keys(self.tensors, path)
        if self.keys.format == "peft":
            raise FormatError(
                f"{path} holds PEFT's tensors, which need their {CONFIG_NAME} beside them: name the folder"
            )
        shapes = {key: tuple(tensor.shape) for key, tensor in self.tensors.items()}
        self.resolver = Resolver(model, guess_family(shapes, self.metadata))
        self.configs = _configs(self.metadata, path)
        self.faults: list[str] = list(filter(None, [mixed_families(shapes)]))
        self.updates: dict[str, Update] = {}
        self.made: dict[str, list[tuple[int, str]]] = {}
        self._origin: dict[str, str] = {}
        self._lost: dict[str, int] = {}
        """Layers that are not there, and how many tensors each has."""

    def read(self) -> dict[str, Update]:
        """Raises FormatError that names everything which has no place or makes no sense; nothing is dropped."""
        self.faults += [f"{one!r} and {two!r} are the same tensor twice" for one, two in self.keys.repeated]
        for layer, roles in self.keys.layers.items():
            self._take(layer, roles)
        self._tell_unknown()
        if self.faults:
            raise first_faults(str(self.path), self.faults)
        return self.updates

    def _take(self, layer: str, roles: Mapping[str, str]) -> None:
        fused = self.resolver.fused(layer) if self.keys.format == "kohya" else ()
        paths = fused or self._paths(layer)
        if len(paths) != 1 and not fused:
            self._misplaced(layer, paths, roles)
            return
        for path in paths:
            if path in self._origin:
                self.faults.append(f"{self._origin[path]!r} and {layer!r} are both the layer {path!r}")
                return
            self._origin[path] = layer
        try:
            for update in self._made(paths, {role: self.tensors[key] for role, key in roles.items()}):
                self.faults += update.faults()
                self.updates[update.path] = update
        except ValueError as error:
            self.faults.append(f"{layer!r}: {error}")

    def _paths(self, layer: str) -> tuple[str, ...]:
        if self.keys.format == "kohya":
            return tuple(self.resolver.kohya(layer))
        path = self.resolver.dotted(layer)
        return () if path is None else (path,)

    def _made(self, paths: tuple[str, ...], tensors: Mapping[str, Tensor]) -> list[Update]:
        """The updates of one layer of the file: several where it is a fused one."""
        if self.keys.format == "loralib":
            module = self.resolver.modules.get(paths[0])
            return [loralib_update(paths[0], tensors, module, self._loralib_alpha())]
        update = self._low_rank(paths[0], tensors)
        return [update] if len(paths) == 1 and update.path == paths[0] else self._split(update, paths)

    def _split(self, update: Update, paths: tuple[str, ...]) -> list[Update]:
        if faults := update.faults():
            raise ValueError(faults[0])
        return split(update, paths)

    def _loralib_alpha(self) -> float | None:
        if self.alpha is None and self.metadata.get(LORALIB) != FOLDED:
            raise ValueError("loralib's files do not hold their alpha: say which lora_alpha it was trained with")
        return self.alpha

    def _low_rank(self, path: str, tensors: Mapping[str, Tensor]) -> Update:
        """One layer's tensors as one update. Raises ValueError for what makes none."""
        module = self.resolver.modules.get(path)
        weight = None if module is None else module._parameters.get("weight")
        shape = _usual_shape(path) if weight is None else tuple(weight.shape)
        factors = fitted(low_rank(tensors, shape, weight), shape)
        scale = self._scale(path, factors, tensors)
        size = magnitudes(tensors, int(factors.b.shape[0]) if factors.b.dim() else 0)
        if factors.what and self.rank is not None:
            factors = cut(factors, self.rank)
        rank = int(factors.a.shape[0]) if factors.a.dim() else 1
        b = factors.b if scale > 0 else -factors.b
        lookup = "lookup A" in tensors
        if factors.what:
            left = f", of which an SVD left out {factors.error:.2%}" if factors.error else ""
            self.made.setdefault(factors.what, []).append((rank, left))
        if size is not None and factors.error:
            raise ValueError("it is DoRA, whose magnitudes go with all of its update: it is not cut to a smaller rank")
        return Update(path, factors.a, b, abs(scale) * rank, lookup, tensors.get("bias"), factors.error, size)

    def _scale(self, path: str, factors: LowRank, tensors: Mapping[str, Tensor]) -> float:
        """By alpha of the file, PEFT's of the header, or 1. Raises ValueError for an alpha that scales nothing."""
        stored = tensors.get("alpha")
        alpha = None if stored is None else checked_alpha(stored)
        if alpha is not None or factors.dim is None:
            return 1.0 if factors.dim is None or alpha is None else alpha / max(factors.dim, 1)
        config = self.configs.get(part_of(path))
        if config is None:
            return 1.0
        inside = path.partition(".")[2]
        if config.rank(inside) != factors.dim:
            raise ValueError(f"rank {factors.dim}, but the header's {METADATA_KEY} says {config.rank(inside)}")
        return config.scale(inside)

    @property
    def notes(self) -> list[str]:
        """What a user should know: decompositions that became factors of another rank."""
        return [
            f"{self.path}: {len(layers)} × {what} became factors of rank up to {max(layers)[0]}"
            + max(layers, key=lambda entry: entry[1])[1]
            for what, layers in self.made.items()
        ]

    # -- what has no place --------------------------------------------------------------------------

    def _misplaced(self, layer: str, paths: tuple[str, ...], roles: Mapping[str, str]) -> None:
        if paths:
            self.faults.append(f"{layer!r} can be any of {', '.join(map(repr, paths))}, which are written alike")
        else:
            self._lost[layer] = len(roles)

    def _tell_unknown(self) -> None:
        """Layers that are not there, by part where a whole part is missing, and keys of no known meaning."""
        lost: dict[str, list[str]] = {}
        for layer in self._lost:
            lost.setdefault(self._part(layer), []).append(layer)
        for part, layers in lost.items():
            if part and self.resolver.model is not None and not self._has(part):
                count = sum(self._lost[layer] for layer in layers)
                self.faults.append(f"{count} tensors are for {part!r}, which this model does not have")
            else:
                self.faults += self._near(layers)
        self.faults += grouped(self.keys.unknown, [key for key in self.tensors if key not in self.keys.unknown][:200])

    def _near(self, layers: list[str]) -> list[str]:
        """Sentences for layers that are not there, the first of them with the nearest that is."""
        where = "a known model" if self.resolver.model is None else "the model"
        told = []
        for at, sentence in enumerate(grouped(layers)):
            near = self.resolver.near(sentence.split("'")[1]) if at < _MOST_SUGGESTIONS else ""
            told.append(sentence.replace("belongs to nothing known", f"names no layer of {where}") + near)
        return told

    def _part(self, layer: str) -> str:
        if self.keys.format == "kohya":
            return KOHYA_PREFIXES[next(prefix for prefix in KOHYA_PREFIXES if layer.startswith(prefix))]
        return part_of(layer)

    def _has(self, part: str) -> bool:
        here = {path.partition(".")[0] for path in self.resolver.modules}
        return part in here or (part == "unet" and bool(here & {"transformer", "down_blocks"}))


def checked_alpha(stored: Tensor) -> float:
    """The number of an alpha tensor. Raises ValueError for one that is no single finite number, or zero."""
    if stored.numel() != 1:
        raise ValueError(f"its alpha has shape {tuple(stored.shape)}, expected one number")
    alpha = float(stored)
    if not math.isfinite(alpha) or not 0 < abs(alpha) <= 1e30:
        raise ValueError(f"its alpha is {alpha:g}, expected a finite number other than zero")
    return alpha


_THREE_BY_THREE = re.compile(r"unet\..*(?:\.conv[12]?|conv_in|conv_out)")


def _usual_shape(path: str) -> tuple[int, ...] | None:
    """Of a U-Net's 3×3 convolution, where no model is at hand to ask: LyCORIS keeps some of its factors flat."""
    return (-1, -1, 3, 3) if _THREE_BY_THREE.fullmatch(path) else None


def _configs(metadata: Mapping[str, str], path: Path) -> dict[str, PeftConfig]:
    """PEFT's config per part, from the header of a file of diffusers. Raises FormatError for a damaged one."""
    text = metadata.get(METADATA_KEY)
    if text is None:
        return {}
    try:
        data = parse_json(text)
    except ValueError:
        data = None
    if not isinstance(data, dict):
        raise FormatError(f"{path}: {METADATA_KEY!r} in the header is not a JSON object")
    parts: dict[str, dict[str, Any]] = {}
    for key, value in data.items():
        part, _, name = key.partition(".")
        parts.setdefault(part, {})[name] = value
    place = f"{path}: {METADATA_KEY!r} in the header"
    return {part: PeftConfig.of({"peft_type": "LORA"} | fields, place) for part, fields in parts.items()}
