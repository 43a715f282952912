"""Weights: known results, the order of multiplication, escapes, BREAK, and thousands of prompts against the oracle."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.imaging.prompt import oracle

from loraloom.imaging.prompt import Segment, parse_emphasis

PIECES = (
    *"ab,()[]()[]:\\",
    *(":1.3)", ": 0.7 )", ":-.3)", ":0)", ":1.2.3)", ":.)", ":+2)", "BREAK", " BREAK ", "BREAKS", "  ", "\n", "é", "1"),
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", [("", 1.0)]),
        ("an (important) word", [("an ", 1.0), ("important", 1.1), (" word", 1.0)]),
        ("(a)(b)", [("ab", 1.1)]),
        ("((a))", [("a", 1.1 * 1.1)]),
        ("((a))", [("a", 1.2100000000000002)]),
        ("[a]", [("a", 0.9090909090909091)]),
        ("[[a]]", [("a", 0.8264462809917354)]),
        ("([a])", [("a", 1.0)]),
        ("(a:1.3)", [("a", 1.3)]),
        ("((a:1.3))", [("a", 1.4300000000000002)]),
        ("(a: 1.3 )", [("a", 1.3)]),
        ("(a:b:1.5)", [("a:b", 1.5)]),
        ("(a:-0.5)", [("a", -0.5)]),
        ("(a:1,3)", [("a:1,3", 1.1)]),
        ("[a:1.3)", [("a:1.3)", 0.9090909090909091)]),
        ("a:1.3)", [("a:1.3)", 1.0)]),
        ("a) b]", [("a) b]", 1.0)]),
        ("(a [b", [("a ", 1.1), ("b", 1.0)]),
        ("((a", [("a", 1.2100000000000002)]),
        ("(a [b) c]", [("a ", 1.1), ("b", 1.0), (" c", 0.9090909090909091)]),
        (r"\(a\) \[b\] \\", [("(a) [b] \\", 1.0)]),
        (r"(a\):1.3)", [("a)", 1.3)]),
        (r"a\b\ ", [("ab ", 1.0)]),
        ("a\\", [("a", 1.0)]),
    ],
)
def test_known_results(text: str, expected: list[tuple[str, float]]) -> None:
    assert parse_emphasis(text) == expected


def test_unclosed_brackets_go_round_first_then_square() -> None:
    """1.3 × 1.1 ÷ 1.1 and 1.3 ÷ 1.1 × 1.1 are not the same number: round ones are applied first."""
    round_first = 1.3 * 1.1 * (1 / 1.1)
    assert round_first != 1.3 * (1 / 1.1) * 1.1
    for text in ("[((a:1.3)", "([(a:1.3)"):
        assert parse_emphasis(text) == [("a", round_first)]


def test_closed_brackets_multiply_from_the_inside_out() -> None:
    assert parse_emphasis("(((a:1.3):1.3):0.7)") == [("a", 1.3 * 1.3 * 0.7)]
    assert 1.3 * 1.3 * 0.7 != 0.7 * 1.3 * 1.3


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a BREAK b", [("a", 1.0), ("BREAK", -1.0), ("b", 1.0)]),
        ("a \n BREAK\tb", [("a", 1.0), ("BREAK", -1.0), ("b", 1.0)]),
        ("BREAK", [("", 1.0), ("BREAK", -1.0), ("", 1.0)]),
        ("a BREAK BREAK b", [("a", 1.0), ("BREAK", -1.0), ("", 1.0), ("BREAK", -1.0), ("b", 1.0)]),
        ("(a) BREAK (b)", [("a", 1.1), ("", 1.0), ("BREAK", -1.0), ("", 1.0), ("b", 1.1)]),
        ("(a BREAK b)", [("a", 1.1), ("BREAK", -1.1), ("b", 1.1)]),
        ("BREAKFAST break", [("BREAKFAST break", 1.0)]),
    ],
)
def test_break(text: str, expected: list[tuple[str, float]]) -> None:
    assert parse_emphasis(text) == expected


def test_segments_have_names() -> None:
    assert parse_emphasis("(a)") == [Segment(text="a", weight=1.1)]


@settings(max_examples=1000, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=24).map("".join))
def test_the_oracle_agrees_to_the_last_bit(text: str) -> None:
    assert [list(segment) for segment in parse_emphasis(text)] == oracle.emphasis(text)


@pytest.mark.parametrize("bracket", ["(", "["])
@pytest.mark.parametrize("closed", [True, False])
def test_deep_nesting_rounds_as_one_step_after_the_other(bracket: str, closed: bool) -> None:
    """As deep as the numbers go: 1.1 to the 8000 is no number any more, and 1.1 to the -8000 none that is not 0."""
    depth, factor = 8000, 1.1 if bracket == "(" else 1 / 1.1
    text = f"{bracket}a" * depth + {"(": ")", "[": "]"}[bracket] * depth * closed
    expected = [1.0]
    for _ in range(depth):
        expected.append(expected[-1] * factor)
    found = parse_emphasis(text)
    assert [weight for _, weight in found[:300]] == expected[1:301]
    assert sum(len(text) for text, _ in found) == depth
    last = found[-1].weight
    assert math.isinf(last) if bracket == "(" else last < 1e-300
