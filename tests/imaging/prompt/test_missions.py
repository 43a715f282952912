"""The two prompts of the image scene, to the letter and to the last bit."""

from __future__ import annotations

import pytest
from tests.imaging.prompt import oracle
from tests.imaging.prompt.missions import NEGATIVE, NEGATIVE_SEGMENTS, POSITIVE, POSITIVE_SEGMENTS

from loraloom.imaging.prompt import parse_prompt

WHOLE = {
    "positive": (POSITIVE, POSITIVE_SEGMENTS),
    "negative": (NEGATIVE, NEGATIVE_SEGMENTS),
}


@pytest.mark.parametrize("negative", [False, True])
@pytest.mark.parametrize("which", WHOLE)
def test_every_segment_and_weight(which: str, negative: bool) -> None:
    """Neither holds a tag or an AND, so that both mean the same on either side."""
    text, segments = WHOLE[which]
    read = parse_prompt(text, steps=20, negative=negative)
    schedule = [{"end_step": 20, "segments": segments}]
    assert read.to_json() == {
        "loras": [],
        "networks": [],
        "parts": [{"weight": 1.0, "schedule": schedule}],
        "warnings": [],
    }
    assert read.text == text


@pytest.mark.parametrize("which", WHOLE)
def test_the_second_implementation_agrees(which: str) -> None:
    assert oracle.emphasis(WHOLE[which][0]) == WHOLE[which][1]
