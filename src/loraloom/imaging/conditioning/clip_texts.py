"""Texts of one schedule through the CLIP encoders of SD 1.x, SD 2.x or SDXL: by chunk, weighted, joined."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from loraloom.imaging.conditioning.chunks import Chunk, Chunked, Finder, cut, empty_chunk
from loraloom.imaging.conditioning.conditioning import Conditioning
from loraloom.imaging.conditioning.encoder import ChunkEncoder, Encoded, Layer
from loraloom.imaging.conditioning.memory import Memory
from loraloom.imaging.conditioning.weighting import weigh
from loraloom.imaging.prompt import Segment
from loraloom.tasks.diffusion import Diffusion

Text = tuple[Segment, ...]
"""A text as the segments of its emphasis parse."""
REMEMBERED = 256
"""Chunks; SDXL's take 0.6 MB each in float32, SD 1.x's 0.2."""

PENULTIMATE = Layer(back=2, normed=False)


@dataclass(frozen=True)
class Manner:
    """How texts are encoded; a part of the key that encodings are remembered by."""

    clip_skip: int = 1
    everywhere: bool = False
    """Whether clip_skip counts for SD 2.x and for the first encoder of SDXL too, which the web UI exempts."""
    rescale_mean: bool = True
    version: Hashable = ()
    """Changes whenever the encoders' adapters do."""


class ClipTexts:
    """The text encoders of a base, each with its vocabulary, and what they lately encoded."""

    def __init__(self, diffusion: Diffusion) -> None:
        self.kind = diffusion.kind
        tokenizers = diffusion.tokenizers
        self.encoders = [
            ChunkEncoder.of(name, module, tokenizers[name]) for name, module in diffusion.text_encoders.items()
        ]
        self.memory: Memory[Encoded] = Memory(REMEMBERED)

    def layer(self, encoder: ChunkEncoder, manner: Manner) -> Layer:
        """The layer whose states count. Raises ConfigError where clip_skip asks for more layers than there are."""
        # In diffusers' files of SD 2.x the layer that goes unused is cut off: the last one is OpenCLIP's last but one.
        layer = Layer(manner.clip_skip)
        if self.kind == "sdxl":
            told = manner.everywhere and encoder.name == "text_encoder"
            layer = Layer(manner.clip_skip, normed=False) if told else PENULTIMATE
        elif self.kind == "sd2" and not manner.everywhere:
            layer = Layer()
        encoder.check(Layer(manner.clip_skip))
        return layer

    def count(self, text: Text, finders: Mapping[str, Finder]) -> tuple[int, int]:
        """Token places that a text takes, and chunks; of the encoder that needs most."""
        cuts = [cut(text, encoder.vocabulary, finders.get(encoder.name)) for encoder in self.encoders]
        return max(each.token_count for each in cuts), max(len(each.chunks) for each in cuts)

    def encode(
        self, texts: Sequence[Text], counts: Sequence[int], finders: Mapping[str, Finder], manner: Manner
    ) -> list[Conditioning]:
        """The texts that take turns in one schedule, `texts[b]` at `counts[b]` of its stages.

        Shorter ones are filled up with empty chunks, and weights are rescaled over all of them, as the web UI does.
        """
        cuts = {
            each.name: [cut(text, each.vocabulary, finders.get(each.name)) for text in texts] for each in self.encoders
        }
        length = max(len(one.chunks) for each in cuts.values() for one in each)
        hidden, empty, pooled = [], [], None
        for encoder in self.encoders:
            states, pooled = self._columns(encoder, cuts[encoder.name], length, counts, manner)
            hidden.append(states)
            empty.append(self._encoded(encoder, empty_chunk(encoder.vocabulary), manner).hidden)
        joined, end = torch.cat(hidden, dim=-1), torch.cat(empty, dim=-1)
        pooled = pooled if self.kind == "sdxl" else None
        return [Conditioning(joined[b], None if pooled is None else pooled[b], end) for b in range(len(texts))]

    def _columns(
        self, encoder: ChunkEncoder, cuts: Sequence[Chunked], length: int, counts: Sequence[int], manner: Manner
    ) -> tuple[Tensor, Tensor | None]:
        """All texts through one encoder: hidden states (B, T, D), and pooled ones (B, P) of their first chunks."""
        filler = empty_chunk(encoder.vocabulary)
        columns, pooled = [], None
        for column in range(length):
            chunks = [each.chunks[column] if column < len(each.chunks) else filler for each in cuts]
            encoded = [self._encoded(encoder, chunk, manner) for chunk in chunks]
            hidden = torch.stack([each.hidden for each in encoded])
            weights = torch.tensor([chunk.weights for chunk in chunks], device=hidden.device)
            columns.append(weigh(hidden, weights, counts, rescale_mean=manner.rescale_mean))
            if column == 0:
                first = [each.pooled for each in encoded if each.pooled is not None]
                pooled = torch.stack(first) if first else None
        return torch.cat(columns, dim=1), pooled

    def _encoded(self, encoder: ChunkEncoder, chunk: Chunk, manner: Manner) -> Encoded:
        layer = self.layer(encoder, manner)
        # Weights are applied afterwards: turning one encodes nothing again.
        key = (encoder.name, encoder.place, chunk.tokens, chunk.inserts, layer, manner.version)
        return self.memory.get(key, lambda: encoder.encode(chunk, layer))
