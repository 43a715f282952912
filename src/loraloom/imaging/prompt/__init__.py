"""The prompt language of the Stable-Diffusion web UI, and adapter weights per block and step. No torch in here."""

from loraloom.imaging.prompt.emphasis import parse_emphasis
from loraloom.imaging.prompt.parse import MOST_STEPS, parse_prompt
from loraloom.imaging.prompt.parsed import (
    LoraTag,
    ParsedPrompt,
    Part,
    Segment,
    Stage,
    Tag,
    block_names,
    stage_at,
)

__all__ = [
    "MOST_STEPS",
    "LoraTag",
    "ParsedPrompt",
    "Part",
    "Segment",
    "Stage",
    "Tag",
    "block_names",
    "parse_emphasis",
    "parse_prompt",
    "stage_at",
]
