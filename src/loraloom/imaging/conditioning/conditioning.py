"""What the denoiser is told: encoded texts, which of them holds at which step, and how lengths are made equal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Conditioning:
    """One encoded text. The same object comes back as long as the text stays the same, so `is` tells a change."""

    hidden: Tensor
    """(T, D), what cross-attention looks at; T is 77 times the number of chunks for the CLIP models."""
    pooled: Tensor | None = None
    """(P,), the whole text in one vector: SDXL, SD3, Flux."""
    empty: Tensor | None = None
    """(77, D), an encoded empty chunk, to make a text longer with; None where all texts have one length."""
    time_ids: Tensor | None = None
    """(6,), SDXL: height and width of the original, top and left of the crop, height and width of the picture."""

    @property
    def chunks(self) -> int:
        """How many chunks the text has; 1 where texts are not cut."""
        return 1 if self.empty is None else self.hidden.shape[0] // self.empty.shape[0]


@dataclass(frozen=True, eq=False)
class ScheduledPart:
    """One part of a prompt (between ANDs): its weight, and which encoded text holds up to which step."""

    weight: float
    ends: tuple[int, ...]
    """Last step (from 1, inclusive) of each text, ascending."""
    conditionings: tuple[Conditioning, ...]

    def at(self, step: int) -> Conditioning:
        """The text that holds at `step`; beyond the last end, the last one."""
        for end, conditioning in zip(self.ends, self.conditionings, strict=True):
            if step <= end:
                return conditioning
        return self.conditionings[-1]


@dataclass(frozen=True, eq=False)
class Schedule:
    """A whole prompt, encoded: what each of its parts says at each step."""

    parts: tuple[ScheduledPart, ...]
    warnings: tuple[str, ...] = ()
    """What was asked for and could not be done, one sentence each."""
    embeddings: tuple[str, ...] = ()
    """Names of the textual-inversion embeddings that the prompt uses, in the order of their first use."""

    @property
    def weights(self) -> Tensor:
        """(parts,), each part's weight in the sum of guided differences."""
        return torch.tensor([part.weight for part in self.parts])

    def at(self, step: int) -> list[Conditioning]:
        """The encoded text of each part at `step`, counted from 1."""
        return [part.at(step) for part in self.parts]


def pad_together(conditionings: Sequence[Conditioning], how: Literal["empty", "last"] = "empty") -> Tensor:
    """(B, T, D): texts of different chunk counts brought to the longest one's T, so that they run as one batch.

    "empty" appends encoded empty chunks, as the web UI's option to pad prompt and negative prompt does; "last"
    repeats the last vector, as it does for the parts of one prompt. Texts of one length are left as they are.
    """
    longest = max(one.hidden.shape[0] for one in conditionings)
    return torch.stack([_lengthened(one, longest, how) for one in conditionings])


def _lengthened(conditioning: Conditioning, length: int, how: Literal["empty", "last"]) -> Tensor:
    hidden, missing = conditioning.hidden, length - conditioning.hidden.shape[0]
    if missing == 0:
        return hidden
    if how == "last" or conditioning.empty is None:
        return torch.cat([hidden, hidden[-1:].expand(missing, -1)])
    return torch.cat([hidden, conditioning.empty.repeat(missing // conditioning.empty.shape[0], 1)])


def batches(parts: Sequence[Conditioning], negative: Conditioning, *, pad: bool = False) -> list[Tensor]:
    """What one step runs through the denoiser, in order: the parts of the prompt, then the negative prompt.

    One tensor (P + 1, T, D) where all have one length, or with `pad`. Otherwise two, (P, T, D) and (1, T', D),
    run one after the other: the web UI's rule, for padding a text changes the picture a little.
    """
    together = pad_together(parts, "last")
    if together.shape[1] == negative.hidden.shape[0]:
        return [torch.cat([together, negative.hidden.unsqueeze(0)])]
    if not pad:
        return [together, negative.hidden.unsqueeze(0)]
    lengthened = [Conditioning(hidden, empty=negative.empty) for hidden in together]
    return [pad_together([*lengthened, negative], "empty")]
