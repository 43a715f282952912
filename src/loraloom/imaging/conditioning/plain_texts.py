"""Texts of SD 3 and Flux: through diffusers' own `encode_prompt`, which knows no weights, chunks or embeddings."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from loraloom.imaging.conditioning.chunks import is_break
from loraloom.imaging.conditioning.clip_texts import Manner, Text
from loraloom.imaging.conditioning.conditioning import Conditioning
from loraloom.imaging.conditioning.memory import Memory
from loraloom.tasks.diffusion import Diffusion

LONGEST = {"sd3": 256, "flux": 512}
"""Tokens that the T5 encoder is given, diffusers' defaults."""
T5 = {"sd3": "text_encoder_3", "flux": "text_encoder_2"}
REMEMBERED = 16
"""Texts; Flux's take 8 MB each in float32."""


class PlainTexts:
    """The text encoders of an SD 3 or Flux pipeline, and what they lately encoded."""

    def __init__(self, diffusion: Diffusion) -> None:
        self.kind = diffusion.kind
        self.diffusion = diffusion
        self.memory: Memory[Conditioning] = Memory(REMEMBERED)

    def encode(self, text: Text, manner: Manner) -> Conditioning:
        """hidden (T, D) and pooled (P,) of one text; its weights play no part."""
        words, device = plain_words(text), self.diffusion.device
        key = (words, str(device), self.diffusion.dtype, manner.version)
        return self.memory.get(key, lambda: self._encode(words, device))

    @torch.no_grad()
    def _encode(self, words: str, device: torch.device) -> Conditioning:
        pipeline: Any = self.diffusion.pipeline
        if self.kind == "flux":
            hidden, pooled, _ = pipeline.encode_prompt(words, device=device, max_sequence_length=LONGEST["flux"])
        else:
            hidden, _, pooled, _ = pipeline.encode_prompt(
                words, None, None, device=device, do_classifier_free_guidance=False, max_sequence_length=LONGEST["sd3"]
            )
        return Conditioning(hidden[0], pooled[0])

    def count(self, text: Text) -> tuple[int, int]:
        """Tokens of a text, and 1: it is not cut into chunks."""
        tokenizer = self.diffusion.tokenizers.get(T5[self.kind]) or next(iter(self.diffusion.tokenizers.values()))
        ids = tokenizer(plain_words(text), add_special_tokens=False, truncation=False, verbose=False)["input_ids"]
        return len(ids), 1

    def warnings(self, texts: Iterable[Text]) -> list[str]:
        """What of the texts will have no effect."""
        texts, longest, found = list(texts), LONGEST[self.kind], []
        if any(segment.weight != 1 and not is_break(segment) for text in texts for segment in text):
            found.append(f"weights in a prompt have no effect on {self.kind} bases: the words were used without them")
        if any(is_break(segment) for text in texts for segment in text):
            found.append(f"BREAK has no effect on {self.kind} bases, which do not cut a prompt into chunks")
        count = max((self.count(text)[0] for text in texts), default=0)
        if T5[self.kind] in self.diffusion.tokenizers and count >= longest:
            found.append(f"the prompt has {count} tokens; what comes after the first {longest - 1} was not used")
        return found


def plain_words(text: Text) -> str:
    """The words of a text without its weights; a BREAK is a blank."""
    return "".join(" " if is_break(segment) else segment.text for segment in text).strip()
