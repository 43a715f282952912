"""Spelling and scoring of transcripts, against worked examples and jiwer over the whole set."""

from __future__ import annotations

import builtins
from typing import Any

import pytest
import torch

from loraloom.errors import DataError, MissingExtraError
from loraloom.tasks.speech.masking import span_mask
from loraloom.tasks.speech.transcripts import character_vocabulary, fit_text, normalise, score_transcripts


@pytest.mark.parametrize(
    ("text", "basic"),
    [
        ("Don't stop!", "don't stop"),
        ("'quoted' rock 'n' roll", "quoted rock n roll"),
        ("it’s 5 o’clock—now", "it's 5 o'clock now"),
        ("Ｆｕｌｌ　ｗｉｄｔｈ", "full width"),
        ("Straße, café", "straße café"),
        ("नमस्ते दुनिया।", "नमस्ते दुनिया"),
        ("  a\t\n b ", "a b"),
        ("…", ""),
    ],
)
def test_basic_normalisation(text: str, basic: str) -> None:
    assert normalise(text) == basic
    assert normalise(basic) == basic


def test_no_normalisation_joins_white_space_alone() -> None:
    assert normalise(" It's,  a Test ", "none") == "It's, a Test"


def test_rates_are_those_of_jiwer_and_lie_in_their_intervals() -> None:
    jiwer = pytest.importorskip("jiwer")
    references = ["the cat sat", "on the mat", "one", "a longer sentence of six words"]
    texts = ["the cat sit", "on mat", "one", "longer sentence of of six words"]
    scores = score_transcripts(texts, references)
    assert scores["wer"] == pytest.approx(jiwer.wer(references, texts))
    assert scores["cer"] == pytest.approx(jiwer.cer(references, texts))
    for name in ("wer", "cer"):
        assert scores[f"{name}_low"] < scores[name] < scores[f"{name}_high"]
    assert scores["n"] == 4
    assert scores == score_transcripts(texts, references)


def test_case_and_punctuation_count_only_when_asked() -> None:
    assert score_transcripts(["hello world"], ["Hello, world!"])["wer"] == 0
    assert score_transcripts(["hello world"], ["Hello, world!"], "none")["wer"] == 1


def test_words_where_none_were_said_count_as_errors() -> None:
    assert score_transcripts(["a", "b c"], ["a", "..."])["wer"] == 2
    assert score_transcripts([""], ["a b"])["wer"] == 1
    with pytest.raises(DataError, match="no transcript with a word"):
        score_transcripts(["a"], ["!"])


def test_without_jiwer_its_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(name: str, *rest: Any, **more: Any) -> Any:
        if name == "jiwer":
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(MissingExtraError, match=r"loraloom\[speech\]"):
        score_transcripts(["a"], ["a"])


def test_a_vocabulary_is_the_same_whatever_the_order() -> None:
    first = character_vocabulary(["ba", "c d|"])
    assert (
        first == character_vocabulary(["c d", "ab"]) == {"<pad>": 0, "<unk>": 1, "|": 2, "a": 3, "b": 4, "c": 5, "d": 6}
    )


@pytest.mark.parametrize(
    ("text", "known", "fitted", "unknown"),
    [
        ("Hello, World!", set("HELOWRD"), "HELLO WORLD", []),
        ("Hello, World!", set("helowrd"), "hello world", []),
        ("It’s", set("its'"), "it's", []),
        ("It’s", set("its"), "its", []),
        ("a, b", set("ab,"), "a, b", []),
        ("zebra", set("ab"), "zebra", ["e", "r", "z"]),
    ],
)
def test_transcripts_fit_a_vocabulary(text: str, known: set[str], fitted: str, unknown: list[str]) -> None:
    assert fit_text(text, known) == (fitted, unknown)


# --- masks


def test_masks_cover_about_their_share_and_stay_within_each_row() -> None:
    torch.manual_seed(0)
    lengths = [400] * 200 + [100] * 200
    mask = span_mask(lengths, 400, 0.2, 10)
    assert not mask[200:, 100:].any()
    assert 0.15 < mask[:200].float().mean() < 0.2  # spans overlap
    assert 0.15 < mask[200:, :100].float().mean() < 0.2
    assert not span_mask([50], 50, 0.0, 10).any()


def test_short_rows_are_masked_by_a_quarter_at_most_at_once() -> None:
    torch.manual_seed(0)
    mask = span_mask([8] * 500, 8, 0.1, 10)
    runs = mask.int().diff(dim=1).clamp(min=0).sum(1) + mask[:, 0]
    assert mask.sum(1).max() <= 4
    assert (mask.sum(1)[runs == 1]).min() >= 2


def test_masks_follow_torchs_generator_alone() -> None:
    torch.manual_seed(3)
    first = span_mask([100] * 4, 100, 0.3, 5)
    torch.manual_seed(3)
    assert span_mask([100] * 4, 100, 0.3, 5).equal(first)
    assert not span_mask([100] * 4, 100, 0.3, 5).equal(first)


def test_no_error_among_few_is_no_promise() -> None:
    scores = score_transcripts(["one"] * 10, ["one"] * 10)
    assert scores["wer"] == 0.0
    assert 0.2 < scores["wer_high"] < 0.35
