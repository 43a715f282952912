"""From a parsed prompt to what the denoiser is told at each step: the one door to this package.

conditioner = Conditioner(load_diffusion("scenes"), EmbeddingFolder("embeddings"))
schedule = conditioner.conditionings(parse_prompt("a [cat:dog:0.5] AND (snow:1.2)", steps=20), 20)
schedule.at(11)[0].hidden                                                    # (T, D): "a dog"
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor

from loraloom.errors import ConfigError
from loraloom.imaging.conditioning.chunks import Finder
from loraloom.imaging.conditioning.clip_texts import ClipTexts, Manner, Text
from loraloom.imaging.conditioning.conditioning import Conditioning, Schedule, ScheduledPart
from loraloom.imaging.conditioning.embedding import Embedding, misfit
from loraloom.imaging.conditioning.folder import EmbeddingFolder, Entry
from loraloom.imaging.conditioning.matching import EmbeddingIndex
from loraloom.imaging.conditioning.plain_texts import PlainTexts
from loraloom.imaging.prompt import ParsedPrompt, Part, Stage, parse_prompt
from loraloom.tasks.diffusion import Diffusion

FIXED_LAYER = {"sd2": "SD 2.x", "sdxl": "SDXL", "sd3": "SD 3", "flux": "Flux"}
"""Families that the web UI exempts from clip skip."""


class Conditioner:
    """The text side of one base; it remembers what it encoded, so one is kept as long as the base.

    `clip_skip` counts as in the web UI: 1 is the last layer, 2 the one before, with the final layer norm; SD 2.x
    and SDXL keep the layer they were trained on, unless `clip_skip_everywhere`. Without `rescale_mean` weights
    multiply and nothing is restored. All of these, and `embeddings`, may be set anew at any time.
    """

    def __init__(
        self,
        diffusion: Diffusion,
        embeddings: EmbeddingFolder | None = None,
        *,
        clip_skip: int = 1,
        rescale_mean: bool = True,
        clip_skip_everywhere: bool = False,
    ) -> None:
        self.diffusion = diffusion
        self.embeddings = embeddings
        self.clip_skip = clip_skip
        self.rescale_mean = rescale_mean
        self.clip_skip_everywhere = clip_skip_everywhere
        self.warnings: list[str] = []
        """Every sentence that a schedule carried, once; for whoever does not read them there. May be cleared."""
        self._texts: ClipTexts | PlainTexts = (
            PlainTexts(diffusion) if diffusion.kind in ("sd3", "flux") else ClipTexts(diffusion)
        )
        self._indexes: dict[str, EmbeddingIndex] = {}
        self._indexed: tuple[Entry, ...] = ()

    @property
    def encoded(self) -> int:
        """How many chunks (of SD 3 and Flux: texts) went through a text encoder so far."""
        return self._texts.memory.made

    def conditionings(
        self,
        prompt: ParsedPrompt,
        steps: int,
        *,
        size: tuple[int, int] | None = None,
        negative: bool = False,
        version: Hashable = (),
    ) -> Schedule:
        """Encode `prompt` for a run of `steps`; each text in it once, and none that is remembered.

        `size` is the picture's (width, height), for SDXL's time ids. An empty `negative` prompt is all zeros where
        the base was trained so (SDXL). `version` must change when adapters of a text encoder do, and only then.
        Raises ConfigError for a clip_skip that the encoder has no layer for, or a prompt parsed for other steps.
        """
        if prompt.steps != steps:
            raise ConfigError(f"the prompt was parsed for {prompt.steps} steps and is to be used for {steps}")
        manner = Manner(self.clip_skip, self.clip_skip_everywhere, self.rescale_mean, version)
        finders = self._finders()
        parts = []
        for part in prompt.parts:
            encoded = self._encode(part, finders, manner)
            if negative and self._zeros_for_empty and all(stage.text == "" for stage in part.schedule):
                encoded = {text: _zeros(conditioning) for text, conditioning in encoded.items()}
            parts.append(_scheduled(part, encoded, self._time_ids(size)))
        warnings = self._gather_warnings(prompt)
        self.warnings += [sentence for sentence in warnings if sentence not in self.warnings]
        found = dict.fromkeys(name for index in self._indexes.values() for name in index.found)
        return Schedule(tuple(parts), tuple(warnings), tuple(found))

    def token_count(self, text: str | ParsedPrompt, *, steps: int = 20) -> tuple[int, int]:
        """Tokens and chunks of a prompt, as they stand in its longest part at its longest stage.

        Tags take no tokens, embeddings as many as they have vectors.
        """
        prompt = parse_prompt(text, steps=steps) if isinstance(text, str) else text
        finders = self._finders()
        texts = dict.fromkeys(stage.segments for part in prompt.parts for stage in part.schedule)
        if isinstance(self._texts, ClipTexts):
            clip = self._texts
            return max((clip.count(each, finders) for each in texts), default=(0, 1))
        plain = self._texts
        return max((plain.count(each) for each in texts), default=(0, 1))

    def _encode(self, part: Part, finders: dict[str, Finder], manner: Manner) -> dict[Text, Conditioning]:
        """Every distinct text of a part, encoded."""
        counts = Counter(stage.segments for stage in part.schedule)
        texts = list(counts)
        if isinstance(self._texts, PlainTexts):
            plain = self._texts
            return {text: plain.encode(text, manner) for text in texts}
        return dict(zip(texts, self._texts.encode(texts, list(counts.values()), finders, manner), strict=True))

    def _finders(self) -> dict[str, Finder]:
        """For each encoder, what finds embeddings in its token ids; made anew when files have changed."""
        if self.embeddings is None or not isinstance(self._texts, ClipTexts):
            self._indexes, self._indexed = {}, ()
            return {}
        entries = self.embeddings.entries()
        if entries is not self._indexed or not self._indexes:
            self._indexed = entries
            self._indexes = {
                encoder.name: EmbeddingIndex(entries, encoder.vocabulary, self._fault_of)
                for encoder in self._texts.encoders
            }
        for index in self._indexes.values():
            index.forget()
        return {name: index.find for name, index in self._indexes.items()}

    def _fault_of(self, embedding: Embedding) -> str:
        encoders = cast(ClipTexts, self._texts).encoders
        widths = {encoder.name: encoder.width for encoder in encoders}
        return misfit(embedding, widths, min(each.vocabulary.places for each in encoders), self.diffusion.name)

    def _gather_warnings(self, prompt: ParsedPrompt) -> list[str]:
        found = [fault for index in self._indexes.values() for fault in index.faults]
        family = FIXED_LAYER.get(self.diffusion.kind)
        # 2 is what the web UI's users of SDXL leave set, and what SDXL does anyway.
        if family and self.clip_skip > 2 and not self.clip_skip_everywhere:
            found.append(f"clip skip {self.clip_skip} has no effect on {family} bases, which have a layer of their own")
        if isinstance(self._texts, PlainTexts):
            found += self._texts.warnings(stage.segments for part in prompt.parts for stage in part.schedule)
            found += self._unused_names(prompt)
        return list(dict.fromkeys(found))

    def _unused_names(self, prompt: ParsedPrompt) -> list[str]:
        """Sentences on embeddings named in a prompt for a base that takes none."""
        entries = self.embeddings.entries() if self.embeddings else ()
        text = prompt.text.casefold()
        family = FIXED_LAYER.get(self.diffusion.kind, self.diffusion.kind)
        return [
            f"embedding {entry.name!r} is not used: {family} bases take no textual-inversion embeddings here"
            for entry in entries
            if any(name.casefold() in text for name in entry.names)
        ]

    @property
    def _zeros_for_empty(self) -> bool:
        config = self.diffusion.pipeline.config
        return self.diffusion.kind == "sdxl" and bool(config.get("force_zeros_for_empty_prompt", True))

    def _time_ids(self, size: tuple[int, int] | None) -> Tensor | None:
        """(6,): the picture is shown as it is, uncropped. SDXL paper, arXiv 2307.01952, section 2.2."""
        if size is None or self.diffusion.kind != "sdxl":
            return None
        width, height = size
        return torch.tensor([height, width, 0, 0, height, width], device=self.diffusion.device, dtype=torch.float32)


def _scheduled(part: Part, encoded: dict[Text, Conditioning], time_ids: Tensor | None) -> ScheduledPart:
    if time_ids is not None:
        encoded = {text: replace(conditioning, time_ids=time_ids) for text, conditioning in encoded.items()}
    stages: Sequence[Stage] = part.schedule
    ends = tuple(stage.end_step for stage in stages)
    return ScheduledPart(part.weight, ends, tuple(encoded[stage.segments] for stage in stages))


def _zeros(conditioning: Conditioning) -> Conditioning:
    pooled = conditioning.pooled
    return replace(
        conditioning,
        hidden=torch.zeros_like(conditioning.hidden),
        pooled=None if pooled is None else torch.zeros_like(pooled),
    )
