"""Expressions of files mean what `re` and PEFT's `get_pattern_key` say, whichever way they are matched."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loraloom.formats.expressions import Expression, Table, beginnings, is_expression

ODD = (
    r".*decoder.*(SelfAttention|EncDecAttention).*(q|v)$",
    r"^(?!.*visual.*tower).*\.(?:q|k|v)_proj(?<!k_proj).*",
    r"(?:\w+\.)*q",
    r"(?:[a-c]+|\d*)+x?",
    r"(\bq\b|\B\w)*",
    r"[^ab]*(x|y|)+.{2,3}$",
    r"(a|b|ab)*?c\D*\S*",
)


@pytest.mark.parametrize("text", ODD)
@settings(max_examples=150, deadline=None)
@given(path=st.text(alphabet="abcqxyvk.01_", max_size=10) | st.sampled_from(["a.q_proj", "m.decoder.SelfAttention.q"]))
def test_places_find_what_re_finds(text: str, path: str) -> None:
    assert not Expression(text).is_simple
    assert Expression(text).fits(path) == (re.fullmatch(text, path) is not None)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.sampled_from(["q", "0.q", r"0\.q", "^a.q", r"^a\.0\.q", "(q|k)", ".*k", r"\w", "a.0.q"]), max_size=4),
    st.sampled_from(["q", "a.q", "a.0.q", "aq", "b.k", "x0.q", "a.0xq"]),
)
def test_a_table_means_what_pefts_patterns_mean(patterns: list[str], path: str) -> None:
    values = {pattern: at for at, pattern in enumerate(patterns)}
    wanted = next((at for pattern, at in values.items() if re.match(rf"(.*\.)?({pattern})$", path)), -1)
    assert Table(values).first(path, -1) == wanted


@pytest.mark.parametrize("text", [r"(a*)*\1", "((((a*)*)*)*)*", "(?i)(a*)*", "(", "a{99999999999}", "(" * 5000, 3])
def test_what_cannot_be_matched_is_told(text: object) -> None:
    assert not is_expression(text)


def test_parts_of_a_path() -> None:
    assert [("a.bc.d")[at:] for at in beginnings("a.bc.d")] == ["a.bc.d", "bc.d", "d"]
