"""A prompt that has been read, as plain data: what holds at which step, and which adapters it asks for."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

_SITE = re.compile(
    r"(?:unet|transformer)\.(?:(?P<side>down|up)_blocks|(?P<mid>mid_block)|(?P<kind>(?:single_)?transformer_blocks))"
    r"(?:\.(?P<number>\d+))?(?:\.|$)"
)
_ENCODER = re.compile(r"text_encoder(?:_(\d))?(?:\.|$)")
_KINDS = {"transformer_blocks": "double", "single_transformer_blocks": "single"}


class Segment(NamedTuple):
    """A run of text under one weight. A BREAK is `Segment("BREAK", -1.0)`."""

    text: str
    weight: float


@dataclass(frozen=True)
class Stage:
    """What a part says up to and including one step."""

    end_step: int
    """Last step that it holds for; steps count from 1."""
    segments: tuple[Segment, ...]
    text: str
    """The same before brackets were read as weights."""


@dataclass(frozen=True)
class Part:
    """One side of an AND: its own prediction, added to the others' by `weight`."""

    weight: float
    schedule: tuple[Stage, ...]
    """In the order of their end steps; the last holds to the end."""


@dataclass(frozen=True)
class Tag:
    """`<name:arg:key=value>`: a request to something other than an adapter."""

    name: str
    args: tuple[str, ...]
    named: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As JSON data."""
        return {"name": self.name, "args": list(self.args), "named": dict(self.named)}


@dataclass(frozen=True)
class LoraTag:
    """`<lora:NAME:TE:UNET>`: an adapter, and how strongly it acts where and when.

    What acts on a site at a step is `te` or `unet` × `block_factor(path)`, and for the denoiser also
    × `weight_at(step)`: the text is encoded before the first step, so that steps do not touch `te`.
    """

    name: str
    te: float
    """Weight on the text encoders."""
    unet: float
    """Weight on the denoiser, a U-Net or a transformer."""
    blocks: Mapping[str, float] = field(default_factory=dict)
    """Block pattern, e.g. "down", "up.1", "mid", "te2", to factor; 1 for what no pattern names."""
    steps: tuple[tuple[int, float], ...] = ()
    """(last step, factor) pieces that cover all steps; empty: 1 throughout."""

    def weight_at(self, step: int) -> float:
        """The factor at a step, counted from 1."""
        return next((factor for end, factor in self.steps if step <= end), self.steps[-1][1] if self.steps else 1.0)

    def block_factor(self, path: str) -> float:
        """The factor of a site by its path in diffusers' names, e.g. "unet.down_blocks.1.attentions.0.proj_in".

        The pattern with a number goes before the one without.
        """
        return next((self.blocks[name] for name in block_names(path) if name in self.blocks), 1.0)

    def to_json(self) -> dict[str, Any]:
        """As JSON data; blocks and steps only where the tag has them."""
        data: dict[str, Any] = {"name": self.name, "te": self.te, "unet": self.unet}
        if self.blocks:
            data["blocks"] = dict(self.blocks)
        if self.steps:
            data["steps"] = [list(piece) for piece in self.steps]
        return data


@dataclass(frozen=True)
class ParsedPrompt:
    """All that one prompt says over a number of steps."""

    text: str
    """What was typed, without its tags."""
    loras: tuple[LoraTag, ...]
    networks: tuple[Tag, ...]
    """The tags that name no adapter, e.g. `<hypernet:…>`."""
    parts: tuple[Part, ...]
    """At least one."""
    warnings: tuple[str, ...]
    """What is odd, each with its place in the text as it was typed."""
    steps: int

    def to_json(self) -> dict[str, Any]:
        """The form that `loraloom prompt --json` prints."""
        return {
            "loras": [lora.to_json() for lora in self.loras],
            "networks": [tag.to_json() for tag in self.networks],
            "parts": [_part_json(part) for part in self.parts],
            "warnings": list(self.warnings),
        }


def _part_json(part: Part) -> dict[str, Any]:
    return {
        "weight": part.weight,
        "schedule": [
            {
                "end_step": stage.end_step,
                "segments": [
                    [text, -1 if (text, weight) == ("BREAK", -1.0) else weight] for text, weight in stage.segments
                ],
            }
            for stage in part.schedule
        ],
    }


def stage_at(part: Part, step: int) -> Stage:
    """The stage that holds at a step, counted from 1; beyond the last step it is the last one."""
    return next((stage for stage in part.schedule if step <= stage.end_step), part.schedule[-1])


def block_names(path: str) -> tuple[str, ...]:
    """The names in `blocks=` that mean the site at `path`, the narrowest first; empty for one outside all blocks.

    >>> block_names("unet.up_blocks.2.attentions.0.proj_in")
    ('up.2', 'up')
    >>> block_names("text_encoder_2.text_model.encoder.layers.0.mlp.fc1")
    ('te2', 'te')
    """
    if encoder := _ENCODER.match(path):
        return (f"te{encoder[1] or 1}", "te")
    site = _SITE.match(path)
    if site is None:
        return ()
    name = "mid" if site["mid"] else site["side"] or _KINDS[site["kind"]]
    return (f"{name}.{site['number']}", name) if site["number"] and not site["mid"] else (name,)
