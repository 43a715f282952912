"""One CLIP text encoder run over single chunks: which layer it gives, and how embeddings get into it."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from loraloom.errors import ConfigError
from loraloom.imaging.conditioning.chunks import Chunk, Insert
from loraloom.imaging.conditioning.vocabulary import Vocabulary


@dataclass(frozen=True)
class Layer:
    """Which hidden states are taken: the `back`-th from the end, 1 being the last layer's."""

    back: int = 1
    normed: bool = True
    """Whether the final layer norm is applied to them; SDXL was trained without."""


@dataclass(frozen=True, eq=False)
class Encoded:
    """What the encoder makes of one chunk."""

    hidden: Tensor
    """(T, D)"""
    pooled: Tensor | None
    """(P,), of encoders with a projection."""


@dataclass(frozen=True, eq=False)
class ChunkEncoder:
    """A text encoder of the base and its vocabulary."""

    name: str
    """ "text_encoder" or "text_encoder_2"."""
    module: Any
    """transformers' CLIPTextModel or CLIPTextModelWithProjection, with or without adapters."""
    vocabulary: Vocabulary

    @classmethod
    def of(cls, name: str, module: Any, tokenizer: Any) -> ChunkEncoder:
        """The encoder `module` of a base, with the tokenizer that goes with it."""
        return cls(name, module, Vocabulary.of(tokenizer, module.config.max_position_embeddings))

    @property
    def width(self) -> int:
        """D, of the token vectors and of the hidden states."""
        return int(self.module.config.hidden_size)

    @property
    def place(self) -> Hashable:
        """Device and number type; a remembered encoding is of no use on another."""
        weight = self._token_embedding.weight
        return str(weight.device), weight.dtype

    @cached_property
    def _token_embedding(self) -> Any:
        return self.module.get_input_embeddings()

    def check(self, layer: Layer) -> None:
        """Raise ConfigError where the encoder has no such layer."""
        layers = int(self.module.config.num_hidden_layers)
        if not 1 <= layer.back <= layers:
            raise ConfigError(
                f"clip_skip is {layer.back}; the text encoder has {layers} layers, 1 to {layers} can be given"
            )

    @torch.no_grad()
    def encode(self, chunk: Chunk, layer: Layer) -> Encoded:
        """Run one chunk through the encoder; its weights play no part."""
        ids = torch.tensor([chunk.tokens], device=self._token_embedding.weight.device)
        with _inserted(self._token_embedding, self.name, chunk.inserts):
            output = self.module(input_ids=ids, output_hidden_states=True)
        pooled = getattr(output, "text_embeds", None)
        return Encoded(self._hidden(output, layer)[0], None if pooled is None else pooled[0])

    def _hidden(self, output: Any, layer: Layer) -> Tensor:
        if layer == Layer():
            last: Tensor = output.last_hidden_state
            return last
        hidden: Tensor = output.hidden_states[-layer.back]
        # Releases of transformers differ in whether CLIPTextModel has a `text_model` inside.
        inner = getattr(self.module, "text_model", self.module)
        return inner.final_layer_norm(hidden) if layer.normed else hidden


@contextmanager
def _inserted(token_embedding: nn.Module, encoder: str, inserts: Sequence[Insert]) -> Iterator[None]:
    """While it lasts, the vectors of `inserts` stand in the output (1, T, D) of the token embedding."""

    def replace(module: nn.Module, arguments: object, vectors: Tensor) -> Tensor:
        vectors = vectors.clone()
        for insert in inserts:
            rows = insert.embedding.vectors[encoder].to(vectors)
            vectors[0, insert.place : insert.place + len(rows)] = rows
        return vectors

    # A hook, so that an adapter on the embedding table and a table of any class are left as they are.
    handle = token_embedding.register_forward_hook(replace) if inserts else None
    try:
        yield
    finally:
        if handle:
            handle.remove()
