"""Near-duplicates: what counts as near, and that the index finds just what comparing all pairs finds."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loraloom.data.near import NearIndex, pair_frequency, plain_text, similarity, word_pairs

SENTENCE = st.lists(st.sampled_from("abcdefg"), min_size=1, max_size=9).map(" ".join)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Great food!", "great   FOOD"),
        ("It's fine.", "it s fine"),
        ("naïve ﬁne", "NAÏVE fine"),
        (":-)", ": - )"),
        ("Straße", "STRASSE"),
    ],
)
def test_case_punctuation_and_spacing_do_not_matter(one, other):
    assert plain_text(one) == plain_text(other)


@pytest.mark.parametrize(("one", "other"), [(":-)", ":-("), ("good", "goods"), ("a b", "ab"), ("很好", "很坏")])
def test_other_differences_do(one, other):
    assert plain_text(one) != plain_text(other)


def test_similarity_is_jaccard_over_word_pairs():
    # (,a) (a,b) (b,c) (c,) against (,a) (a,b) (b,): two of five
    assert similarity(word_pairs("a b c"), word_pairs("a b")) == pytest.approx(2 / 5)
    assert similarity(word_pairs("a b"), word_pairs("A, b!")) == 1
    assert similarity(word_pairs("a b"), word_pairs("b a")) == 0


@settings(deadline=None, max_examples=200)
@given(st.lists(SENTENCE, max_size=25), SENTENCE, st.sampled_from([0.3, 0.5, 0.6, 0.75, 1.0]))
def test_the_index_finds_what_comparing_all_finds(texts, asked, threshold):
    pairs = [word_pairs(text) for text in texts]
    index = NearIndex(pair_frequency([*pairs, word_pairs(asked)]), threshold)
    assert [index.add(one) for one in pairs] == list(range(len(texts)))
    scores = ((i, similarity(one, word_pairs(asked))) for i, one in enumerate(pairs))
    assert index.near(word_pairs(asked)) == [(i, score) for i, score in scores if score >= threshold]
