"""docs/prompts.md: every worked example comes out as it says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from loraloom.imaging.prompt import LoraTag, Part, Segment, parse_prompt

PAGE = (Path(__file__).parents[3] / "docs" / "prompts.md").read_text("utf-8")
STEPS = 10
EXAMPLES = [
    example for block in re.findall(r"```text\n(.*?)```", PAGE, re.S) for example in block.strip("\n").split("\n\n")
]


def line(head: str, text: str) -> str:
    return f"{head:<9}{text}"


def span(first: int, last: int) -> str:
    return str(first) if first == last else f"{first}–{last}"


def run(segment: Segment) -> str:
    return "BREAK" if segment == ("BREAK", -1.0) else f"{segment.text!r} {segment.weight:.4g}"


def lines_of(part: Part) -> list[str]:
    starts = [1, *(stage.end_step + 1 for stage in part.schedule)]
    return [
        line(span(start, stage.end_step), " · ".join(map(run, stage.segments)))
        for start, stage in zip(starts, part.schedule, strict=False)
    ]


def adapter(lora: LoraTag) -> str:
    facts = [lora.name, f"te {lora.te:g}", f"unet {lora.unet:g}"]
    if lora.blocks:
        facts.append("blocks " + ", ".join(f"{name} × {factor:g}" for name, factor in lora.blocks.items()))
    if lora.steps:
        starts = [1, *(end + 1 for end, _ in lora.steps)]
        pieces = zip(starts, lora.steps, strict=False)
        facts.append("steps " + ", ".join(f"{span(start, end)} × {factor:g}" for start, (end, factor) in pieces))
    return line("adapter", " · ".join(facts))


@pytest.mark.parametrize("example", EXAMPLES, ids=[example.splitlines()[0][9:] for example in EXAMPLES])
def test_a_worked_example(example: str) -> None:
    text = example.splitlines()[0].removeprefix(line("prompt", ""))
    prompt = parse_prompt(text, steps=STEPS)
    expected = [line("prompt", text), *map(adapter, prompt.loras)]
    for number, part in enumerate(prompt.parts, 1):
        expected += [line(f"part {number}", f"× {part.weight:g}")] * (len(prompt.parts) > 1) + lines_of(part)
    assert example.splitlines() == expected + [line("warning", warning) for warning in prompt.warnings]


def test_the_python_example_runs() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    exec(code, {})


def test_there_are_examples_of_everything() -> None:
    assert len(EXAMPLES) >= 11
    assert {"prompt", "adapter", "warning"} <= {row.split()[0] for example in EXAMPLES for row in example.splitlines()}
