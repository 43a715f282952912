"""Schedules and alternations: known results, what stays text, and thousands of prompts against the oracle."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.imaging.prompt import oracle

from loraloom.imaging.prompt import parse_prompt, stage_at
from loraloom.imaging.prompt.faults import Faults
from loraloom.imaging.prompt.schedules import read_schedule, step_of

PIECES = (
    *"ab3 [][]::|()\\",
    *("[a:b:2]", ":2]", "[a|b]", "[b|]", ":.5]", "[:[c|]:.5]", "1.", "-", "+", "1e0", "\n", "\u3000", "é"),
)


def stages(text: str, steps: int = 10) -> list[tuple[int, str]]:
    return read_schedule(text, steps, Faults())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", [(10, "")]),
        ("test", [(10, "test")]),
        ("a [b:3]", [(3, "a "), (10, "a b")]),
        ("a [b: 3 ]", [(3, "a "), (10, "a b")]),
        ("a [b::3]", [(3, "a b"), (10, "a ")]),
        ("a [[[b]]:2]", [(2, "a "), (10, "a [[b]]")]),
        ("[(a:2):3]", [(3, ""), (10, "(a:2)")]),
        ("a [b : c : 1] d", [(1, "a b  d"), (10, "a  c  d")]),
        ("a[b:[c:d:2]:1]e", [(1, "abe"), (2, "ace"), (10, "ade")]),
        ("a[[c:d:2]:b:4]e", [(2, "ace"), (4, "ade"), (10, "abe")]),
        ("a [b:.5] c", [(5, "a  c"), (10, "a b c")]),
        ("a [{b|d{:.5] c", [(10, "a [{b|d{:.5] c")]),
        ("((a][:b:c [d:3]", [(3, "((a][:b:c "), (10, "((a][:b:c d")]),
        ("[:3]", [(3, ""), (10, "")]),
        ("[a:a:3]", [(3, "a"), (10, "a")]),
        ("[a:b:[c:3]", [(3, "[a:b:"), (10, "[a:b:c")]),
    ],
)
def test_known_schedules(text: str, expected: list[tuple[int, str]]) -> None:
    assert stages(text) == expected


@pytest.mark.parametrize(
    ("number", "step"),
    [
        ("0.35", 7),
        ("0.29", 5),
        ("1.0", 20),
        ("1", 1),
        ("1.5", 20),
        ("25", 20),
        (".05", 1),
        ("-3", -3),
        ("1e1", 10),
        ("1e-1", 0),
        (".5e1", 20),
        ("9e999", 20),
    ],
)
def test_a_point_makes_a_number_a_share_of_the_steps(number: str, step: int) -> None:
    assert step_of(number, 20) == step
    last = [(step, "a")] if 1 <= step < 20 else []
    assert stages(f"[a:b:{number}]", 20) == [*last, (20, "a" if step >= 20 else "b")]


def test_a_share_is_cut_to_a_whole_step() -> None:
    """0.29 × 100 is 28.999999999999996."""
    assert stages("[a:b:0.29]", 100) == [(28, "a"), (100, "b")]


def test_at_step_0_and_before_it_only_the_second_holds() -> None:
    assert stages("[a:b:0]") == stages("[a:b:-1]") == stages("[a:b:0.05]") == [(10, "b")]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[a|b]", ["a", "b", "a", "b", "a"]),
        ("[fe|]male", ["female", "male", "female", "male", "female"]),
        ("[fe|||]male", ["female", "male", "male", "male", "female"]),
        ("[|a]", ["", "a", "", "a", ""]),
        ("[a|(b:1.1)]", ["a", "(b:1.1)", "a", "(b:1.1)", "a"]),
        ("[a|[b|c]]", ["a", "c", "a", "c", "a"]),
        ("[a|b|c]", ["a", "b", "c", "a", "b"]),
        ("[[a|b]:c:3]", ["a", "b", "a", "c", "c"]),
        ("[[x:y:3]|b]", ["x", "b", "x", "b", "y"]),
    ],
)
def test_alternation_has_a_stage_for_every_step(text: str, said: list[str]) -> None:
    assert stages(text, 5) == list(enumerate(said, 1))


@pytest.mark.parametrize(
    "text",
    [
        "a [unbalanced",
        "[a:b:c]",
        "[a:b:c:3]",
        "[a:b:3",
        "[a:b:1.2.3]",
        "[a:b:3 steps]",
        "[a:(b:3]",
        "[x:[a:b:c]:3]",
        "[x:(a:b:c):3]",
        "[a|b:3]",
        "[a|b",
        "(a|b)",
        r"\[a:b:3]",
        r"[a:b:3\]",
        "(a:b:3)",
        "[a:b:٣]",
        # A stray bar or backslash takes every schedule of the part with it.
        "a | [b:c:3]",
        "(a|b) [c:d:3]",
        "[b:c:3] \\",
        "[b:c:3] \\\n",
    ],
)
def test_what_does_not_parse_stays_text(text: str) -> None:
    assert stages(text) == [(10, text)]


@pytest.mark.parametrize("strays", [":", "::", ")))", "]]:(", "[[["])
def test_a_schedule_counts_whatever_follows_it(strays: str) -> None:
    assert stages(f"[a:b:3]{strays}") == [(3, f"a{strays}"), (10, f"b{strays}")]


def test_escapes_are_kept_for_the_weights() -> None:
    assert stages(r"[\[a\:b\|:c:3]") == [(3, r"\[a\:b\|"), (10, "c")]


def test_stage_at_holds_up_to_its_end_and_beyond_the_last() -> None:
    (part,) = parse_prompt("[a:b:3]", steps=10).parts
    assert [stage_at(part, step).text for step in (1, 3, 4, 10, 11)] == ["a", "a", "b", "b", "b"]


@settings(max_examples=1000, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=14).map("".join), st.sampled_from((1, 4, 7)))
def test_the_oracle_agrees(text: str, steps: int) -> None:
    assert [list(stage) for stage in stages(text, steps)] == oracle.schedule(text, steps)
