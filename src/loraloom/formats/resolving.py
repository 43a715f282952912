"""From a file's name of a layer to the layer's path: by a model's own modules, or by the known tables."""

from __future__ import annotations

import re
from collections.abc import Iterable

from torch import nn

from loraloom.adapters.layers import layer_kind
from loraloom.errors import suggest
from loraloom.formats.dotting import by_underscores, dotted, underscored
from loraloom.formats.keys import KOHYA_PREFIXES, PARTS
from loraloom.formats.transformer_names import split_name
from loraloom.formats.unet_names import LAYERS, from_original

_TRUNK = re.compile(r"transformer\.(?:h|wte|wpe|ln_f|layer|encoder|decoder|(?:word_)?embeddings?)(?:\.|$)")
"""Language models (GPT-2, Falcon, BLOOM, XLNet, GLM) whose trunk has the name of diffusers' denoiser."""
_FLAT_CLIP = re.compile(r"(text_encoder(?:_2)?)\.((?:encoder\.layers|embeddings|final_layer_norm)\b.*)")
_CLIP = re.compile(r"(text_encoder(?:_2)?)\.text_model\.(.+)")


def canonical(path: str) -> str:
    """A path as files have it: a CLIP text encoder's layers lie under `text_model`.

    transformers 5 has taken that level away from CLIPTextModel (not from CLIPTextModelWithProjection); every
    program's files still have it.

    >>> canonical("text_encoder.encoder.layers.0.mlp.fc1")
    'text_encoder.text_model.encoder.layers.0.mlp.fc1'
    """
    return _FLAT_CLIP.sub(r"\1.text_model.\2", path)


class Resolver:
    """Finds the layers that a file's names mean. `faults` tells, grouped, what was not found.

    Without a model the paths are diffusers' own, by the tables; with one they are the model's.
    """

    def __init__(self, model: nn.Module | None = None, kind: str | None = None) -> None:
        self.model, self.kind = model, kind
        self.modules = {} if model is None else {path: module for path, module in model.named_modules() if path}
        layers = {path: layer_kind(module) is not None for path, module in self.modules.items()}
        self._underscored = by_underscores(path for path, adaptable in layers.items() if adaptable)
        self._whole = {canonical(path): path for path in self.modules}
        self.blocks = blocks_per_level(self.modules)

    def dotted(self, path: str) -> str | None:
        """A layer that the file names by its path."""
        if self.model is None:
            return canonical(path)
        candidates = (path, canonical(path), path.partition(".")[2])
        found = next((p for name in candidates for p in (name, self._whole.get(name)) if p in self.modules), None)
        return found

    def kohya(self, stem: str) -> list[str]:
        """The layers that a kohya stem can mean: none, one, or several that are written alike."""
        start = next(prefix for prefix in KOHYA_PREFIXES if stem.startswith(prefix))
        part, name = KOHYA_PREFIXES[start], stem.removeprefix(start)
        if self.kind == "flux" and part == "text_encoder_3":
            part = "text_encoder_2"  # kohya counts T5 as the third encoder, which Flux has as its second
        names = [name, *filter(None, [from_original(name, self.blocks)])]
        if self.model is None:
            return self._by_tables(part, names)
        for candidate in [f"{p}_{n}" for n in names for p in self._parts(part)] + names:
            found = self._underscored.get(candidate) or self._underscored.get(_without_level(candidate))
            if found:
                return found
        return []

    def fused(self, stem: str) -> tuple[str, ...]:
        """The layers that a kohya stem of Flux' or SD3's original transformer stands for; none for another stem."""
        paths = split_name(stem.removeprefix("lora_unet_")) if stem.startswith("lora_unet_") else ()
        if self.model is None:
            return paths
        return tuple(filter(None, map(self.dotted, paths))) if all(map(self.dotted, paths)) else ()

    def _by_tables(self, part: str, names: Iterable[str]) -> list[str]:
        for name in reversed(list(names)):  # the original name first: its words are no words of diffusers'
            path = dotted(name)
            if path is not None:
                return [canonical(f"{part or 'unet'}.{path}")]
        return []

    def _parts(self, part: str) -> list[str]:
        """The part itself; SD3's and Flux's transformer, which kohya calls the unet; all, where none is said."""
        if not part:
            return list(PARTS)
        return [part, "transformer"] if part == "unet" else [part]

    def near(self, name: str) -> str:
        """`"; did you mean …?"` among the model's layers."""
        return suggest(underscored(name), self._underscored, most=1) if self._underscored else ""


def _without_level(name: str) -> str:
    """`text_encoder_text_model_encoder…` as the flat CLIP of transformers 5 has it."""
    return re.sub(r"^(text_encoder(?:_2)?_)text_model_", r"\1", name)


def blocks_per_level(paths: Iterable[str]) -> int:
    """diffusers' `layers_per_block` of the U-Net among these paths."""
    found = [int(match[1]) for path in paths if (match := re.search(r"\bdown_blocks\.0\.resnets\.(\d+)$", path))]
    return max(found, default=LAYERS - 1) + 1


def part_of(path: str) -> str:
    """The part of a pipeline to which a path belongs, "" where it names none.

    >>> part_of("transformer.single_transformer_blocks.0.proj_mlp"), part_of("transformer.h.0.attn.c_attn")
    ('transformer', '')
    """
    first = path.partition(".")[0]
    return first if first in PARTS and not _TRUNK.match(path) else ""
