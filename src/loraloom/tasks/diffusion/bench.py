"""Everything that a run works with beside the denoiser: latents and text embeddings at hand, and what is learnt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from loraloom.tasks.diffusion.base import Diffusion
from loraloom.tasks.diffusion.cache import TensorCache, key_of
from loraloom.tasks.diffusion.latents import Latent, LatentShelf
from loraloom.tasks.diffusion.objective import Objective, Times
from loraloom.tasks.diffusion.texts import Texts, stacked

_VERSION = 1  # of how texts become embeddings; a change of it makes all of them anew
Group = dict[str, Any]


@dataclass
class ConditionShelf:
    """What captions come to: embeddings kept on disk, or token ids where the encoders train."""

    texts: Texts
    cache: TensorCache
    fingerprint: str
    trained: bool
    made: int = 0
    """How many texts went through the encoders."""
    _rows: dict[str, dict[str, Tensor]] = field(default_factory=dict)

    def prepare(self, text: str) -> bool:
        """Have a caption at hand; returns whether it was longer than the encoders take."""
        cut = self.texts.is_clip and self.texts.tokens(text)[1]
        self._row(text)
        return cut

    def rows(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """Conditions of B captions: "hidden" (B, T, D) and "pooled" (B, P), or ids (B, T) by encoder."""
        return stacked([self._row(text) for text in captions])

    def _row(self, text: str) -> dict[str, Tensor]:
        if self.trained:
            if text not in self._rows:
                self._rows[text] = {name: ids.unsqueeze(0) for name, ids in self.texts.tokens(text)[0].items()}
            return self._rows[text]
        made = {"base": self.fingerprint, "device": self.texts.diffusion.device.type, "version": _VERSION}
        key = key_of(kind="text", text=text, **made)
        found = self.cache.find(key)
        if found is None:
            found = self.texts.conditions(text)
            self.cache.put(key, found)
            self.made += 1
        return found


@dataclass
class Bench:
    """The processor of a text-to-image base, as `BaseModel.processor` holds it."""

    diffusion: Diffusion
    texts: Texts
    latents: LatentShelf
    conditions: ConditionShelf
    objective: Objective
    class_pictures: list[Latent] = field(default_factory=list)
    """Pictures of the subject's class, which train beside it."""

    def save_pretrained(self, folder: str | Path) -> None:
        """Nothing: the model writes the whole pipeline."""

    def group(
        self,
        latents: Sequence[Latent],
        captions: Sequence[str],
        keys: Sequence[str] | None = None,
        *,
        spread: bool = False,
    ) -> Group:
        """Pictures of one bucket and their captions, without noise yet.

        `keys` name other latents of them (mirrored ones); with `spread` they are drawn, else the means.
        """
        conditions = self.conditions.rows(captions)
        if self.diffusion.kind == "sdxl":
            conditions["time_ids"] = torch.cat([latent.time_ids for latent in latents])
        values = self.latents.values(keys or [latent.key for latent in latents], spread=spread)
        return {"latents": values, "conditions": conditions, "prediction": self.objective.prediction}

    def with_chance(self, group: Group, noise_offset: float) -> Group:
        """The group with noise (1, B, C, h, w) and times (1, B) drawn from torch's global generator."""
        latents: Tensor = group["latents"]
        noise = torch.randn_like(latents)
        if noise_offset:
            noise = noise + noise_offset * torch.randn(*latents.shape[:2], 1, 1)
        return {**group, "noise": noise.unsqueeze(0), **_stacked_times([self.objective.draw(len(latents))])}

    def with_fixed(self, group: Group, seeds: Sequence[int], count: int) -> Group:
        """The group with the noise (K, B, C, h, w) that belongs to each picture at K = `count` fixed times."""
        shape = group["latents"].shape[1:]
        noise = [torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        rows = len(seeds)
        times = [
            Times(one.model.expand(rows), one.signal.expand(rows), one.spread.expand(rows))
            for one in self.objective.fixed(count)
        ]
        return {**group, "noise": torch.stack(noise, dim=1), **_stacked_times(times)}


def _stacked_times(times: Sequence[Times]) -> Group:
    """Times of K passes over B pictures, each (K, B)."""
    return {
        "times": torch.stack([one.model for one in times]),
        "signal": torch.stack([one.signal for one in times]),
        "spread": torch.stack([one.spread for one in times]),
    }
