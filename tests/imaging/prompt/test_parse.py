"""The whole: AND, warnings with their places, no text that raises, and time that grows with the length alone."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.imaging.prompt import oracle
from tests.scaling import grows_about_linearly

from loraloom.errors import ConfigError
from loraloom.imaging.prompt import MOST_STEPS, parse_prompt
from loraloom.imaging.prompt.faults import Faults
from loraloom.imaging.prompt.split import split_parts

SIGNS = (
    "(",
    ")",
    "[",
    "]",
    ":",
    "|",
    "\\",
    "<",
    ">",
    "=",
    "AND",
    "BREAK",
    ".5",
    "3",
    " ",
    ",",
    "a",
    "\n",
    "<lora:a:1>",
)
HOSTILE = st.one_of(
    st.text(max_size=60), st.lists(st.one_of(st.sampled_from(SIGNS), st.characters()), max_size=40).map("".join)
)


# -- AND --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a", [("a", 1.0)]),
        ("a AND b", [("a", 1.0), (" b", 1.0)]),
        ("a :0.5 AND b:-2", [("a", 0.5), (" b", -2.0)]),
        ("a : .5", [("a", 0.5)]),
        ("a:1.", [("a", 1.0)]),
        ("a: 1 : 2", [("a: 1", 2.0)]),
        ("a:b", [("a:b", 1.0)]),
        ("a:1e3", [("a:1e3", 1.0)]),
        ("(a:1.2)", [("(a:1.2)", 1.0)]),
        ("a \n:2\n AND\nb", [("a", 2.0), ("\nb", 1.0)]),
        ("a AND", [("a", 1.0), ("", 1.0)]),
        ("SAND ANDA and", [("SAND ANDA and", 1.0)]),
        ("(a AND b)", [("(a", 1.0), (" b)", 1.0)]),
        ("", [("", 1.0)]),
    ],
)
def test_parts(text: str, parts: list[tuple[str, float]]) -> None:
    assert [(piece.text, piece.weight) for piece in split_parts(text, Faults())] == parts
    assert oracle.parts(text) == parts


@settings(max_examples=500, deadline=None)
@given(st.lists(st.sampled_from(["a", " ", "\n", ":", "AND", "1", ".", "-", "+", ":0.5"]), max_size=14).map("".join))
def test_the_oracle_splits_alike(text: str) -> None:
    assert [(piece.text, piece.weight) for piece in split_parts(text, Faults())] == oracle.parts(text)


def test_everything_at_once() -> None:
    text = "a [red:blue:0.5] (boat:1.2) <lora:ink:0.8:0.6> BREAK ((sea)) AND [night|day] :0.5"
    # The blanks around a BREAK go with it.
    start, end = [["boat", 1.2], ["", 1.0]], [["BREAK", -1], ["", 1.0], ["sea", 1.2100000000000002]]
    data = parse_prompt(text, steps=4).to_json()
    assert data["loras"] == [{"name": "ink", "te": 0.8, "unet": 0.6}]
    assert data["parts"] == [
        {
            "weight": 1.0,
            "schedule": [
                {"end_step": 2, "segments": [["a red ", 1.0], *start, *end]},
                {"end_step": 4, "segments": [["a blue ", 1.0], *start, *end]},
            ],
        },
        {
            "weight": 0.5,
            "schedule": [
                {"end_step": step, "segments": [[said, 1.0]]} for step, said in enumerate([" night", " day"] * 2, 1)
            ],
        },
    ]
    assert type(data["parts"][0]["schedule"][0]["segments"][3][1]) is int, "a BREAK is written as -1"


# -- warnings ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a (b", "character 3: '(' never closes, so that it weights all that follows; write \\( for the sign"),
        ("a [b", "character 3: '[' never closes, so that it weights all that follows; write \\[ for the sign"),
        ("a) b", "character 2: ')' closes no bracket and stays text"),
        ("a:1.3)", "character 6: ')' closes no bracket and stays text"),
        ("a] b", "character 2: ']' closes no bracket and stays text"),
        ("<lora:ink:1>a <x:y>(b", "character 20: '(' never closes"),
        ("a AND (b", "character 7: '(' never closes"),
        ("(a:1.2.3)", "character 4: '1.2.3' is no number, so that it stays text and the bracket is × 1.1"),
        ("(a:1,3)", "character 4: '1,3' is no number, so that it stays text and the bracket is × 1.1; a point, not"),
        ("a [b:c:d] e", "character 3: '[b:c:d]' is no schedule and stays text, since 'd' is no number of a step"),
        ("[a:b:c:3]", "character 1: '[a:b:c:3]' is no schedule and stays text, since a schedule has one or two colons"),
        ("[a|b:3]", "character 1: '[a|b:3]' is no schedule and stays text, since ':' and '|' do not go together"),
        ("a | b [c:d:3]", "character 3: this '|' is in no [a|b], so that no schedule of this part is read"),
        ("a AND", "character 6: part 2 of the 2 that AND makes is empty"),
        ("(a BREAK b)", "character 4: BREAK within brackets breaks nothing and is read as a word"),
        ("[a BREAK b]", "character 4: BREAK within brackets breaks nothing"),
        (r"a\b", "character 2: a backslash before anything but a bracket or a backslash is left out"),
        ("(a:" + "9" * 400 + ")", "a weight of this part is beyond all numbers"),
    ],
)
def test_warnings_have_their_place(text: str, said: str) -> None:
    (warning,) = parse_prompt(text, steps=20).warnings
    assert said in warning


@pytest.mark.parametrize(
    "text",
    [
        r"\(a\) \[b\] \\",
        "([)]",
        "(saber:fate)",
        "a | b",
        "[a BREAK b:c:3]",
        "a:b::c",
        "[a|b] [a:b:3] (c:1.2) BREAK <lora:x:1> AND d",
    ],
)
def test_what_is_right_is_not_warned_of(text: str) -> None:
    assert parse_prompt(text, steps=20).warnings == ()


def test_many_of_a_kind_are_counted_and_stand_in_the_prompt_s_order() -> None:
    assert parse_prompt("]" + "(" * 1000, steps=20).warnings == (
        "character 1: ']' closes no bracket and stays text",
        "character 2: '(' never closes, so that it weights all that follows; write \\( for the sign",
        "character 3: '(' never closes, so that it weights all that follows; write \\( for the sign",
        "character 4: '(' never closes, so that it weights all that follows; write \\( for the sign"
        " (and 997 more of this kind)",
    )


# -- any text ---------------------------------------------------------------------------------------


@settings(max_examples=500, deadline=None)
@given(HOSTILE, st.integers(1, 9), st.booleans())
def test_no_text_raises(text: str, steps: int, negative: bool) -> None:
    prompt = parse_prompt(text, steps=steps, negative=negative)
    for part in prompt.parts:
        ends = [stage.end_step for stage in part.schedule]
        assert ends == sorted(set(ends))
        assert ends[0] >= 1
        assert ends[-1] == steps
        assert all(stage.segments for stage in part.schedule)
    assert prompt.to_json()["parts"]


@settings(max_examples=500, deadline=None)
@given(HOSTILE, st.integers(1, 6))
def test_the_whole_language_against_the_oracle(text: str, steps: int) -> None:
    assert parse_prompt(text, steps=steps).to_json()["parts"] == oracle.prompt(text, steps)


@pytest.mark.parametrize("steps", [0, -1, MOST_STEPS + 1])
def test_steps_out_of_range_are_refused(steps: int) -> None:
    with pytest.raises(ConfigError, match=f"steps: {steps} found, and 1 to 1000 are accepted"):
        parse_prompt("a", steps=steps)


N = 100_000
LONG = {
    **{sign * 3: sign * N for sign in ("(", ")", "[", "]", ":", "|", "\\", " ", "<")},
    "(a": "(a" * N,
    "[a:": "[a:" * N,
    "[a|": "[a|" * N,
    "([a:b|": "([a:b|)" * (N // 4),
    "<a:": "<a:" * N,
    "1:": "1: " * N,
    "BREAK": "BREAK " * N,
    "a AND": "a AND " * (N // 4),
    "(a … a)": "(a" * (N // 2) + "a)" * (N // 2),
    "[a … ]": "[a" * (N // 2) + "]" * (N // 2),
    "([a … ])": "([a" * (N // 4) + "])" * (N // 4),
    "(a … :1.01)": "(a" * (N // 2) + ":1.01)" * (N // 2),
    "[a: … :3]": "[a:" * (N // 2) + "b" + ":3]" * (N // 2),
    "[a| … ]": "[a|" * (N // 2) + "b" + "]" * (N // 2),
    "[a:b:3]": "[a:b:3]" * (N // 2),
    "[a|b]": "[a|b]" * (N // 2),
    "<lora:a:1>": "<lora:a:1:bloks=1>" * (N // 10),
}


@pytest.mark.parametrize("name", LONG)
def test_ten_times_the_signs_take_about_ten_times_the_time(name: str) -> None:
    """On a quiet machine no text takes a second."""
    part = LONG[name][: len(LONG[name]) // 10]
    assert grows_about_linearly(lambda: parsed(part), lambda: parsed(LONG[name]), 10)


def parsed(text: str) -> None:
    assert len(parse_prompt(text, steps=20).warnings) < 20


def test_weights_beyond_all_numbers_are_infinite_and_said_so() -> None:
    prompt = parse_prompt("(" * 10_000 + "a", steps=20)
    assert math.isinf(prompt.parts[0].schedule[0].segments[-1].weight)
    assert any("beyond all numbers" in warning for warning in prompt.warnings)


def test_importing_the_language_imports_no_torch() -> None:
    code = "import sys, loraloom.imaging.prompt; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
