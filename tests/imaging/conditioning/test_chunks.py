"""How a text is cut into chunks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.imaging.conditioning.plain import plain_chunks, plain_units
from tests.imaging.conditioning.tiny import make_tokenizer
from transformers import CLIPTokenizer

from loraloom.imaging.conditioning.chunks import cut, empty_chunk
from loraloom.imaging.conditioning.embedding import Embedding
from loraloom.imaging.conditioning.folder import Entry
from loraloom.imaging.conditioning.matching import EmbeddingIndex
from loraloom.imaging.conditioning.vocabulary import Vocabulary
from loraloom.imaging.prompt import Segment

TOKENIZER = make_tokenizer()
VOCABULARY = Vocabulary.of(TOKENIZER)
CAT, COMMA, SNOW = (TOKENIZER.get_vocab()[word] for word in ("cat</w>", ",</w>", "snow</w>"))
BEGIN, END = TOKENIZER.bos_token_id, TOKENIZER.eos_token_id
BREAK = Segment("BREAK", -1.0)


def words(text, weight=1.0):
    return Segment(text, weight)


def entry(name, count):
    return Entry(name, Path(name), Embedding(name, Path(name), {"text_encoder": torch.randn(count, 4)}))


def index(*entries):
    return EmbeddingIndex(entries, VOCABULARY, lambda embedding: "").find


def inner(chunk):
    """The tokens of a chunk between its marks, without padding."""
    body = list(chunk.tokens[1:])
    return body[: body.index(END)]


def test_an_empty_text_is_one_chunk_of_marks():
    (chunk,) = cut([words("")], VOCABULARY).chunks
    assert chunk.tokens == (BEGIN, *[END] * 76)
    assert chunk.weights == (1.0,) * 77
    assert chunk == empty_chunk(VOCABULARY)


def test_marks_and_padding_weigh_one():
    (chunk,) = cut([words("cat ", 1.3), words("snow", 0.5)], VOCABULARY).chunks
    assert chunk.tokens[:4] == (BEGIN, CAT, SNOW, END)
    assert chunk.weights[:4] == (1.0, 1.3, 0.5, 1.0)
    assert set(chunk.weights[4:]) == {1.0}


@pytest.mark.parametrize(("count", "chunks"), [(74, 1), (75, 1), (76, 2), (150, 2), (151, 3)])
def test_seventy_five_tokens_fill_a_chunk(count, chunks):
    found = cut([words("cat " * count)], VOCABULARY)
    assert len(found.chunks) == chunks
    assert found.token_count == count
    assert all(len(chunk.tokens) == len(chunk.weights) == 77 for chunk in found.chunks)


@pytest.mark.parametrize(("after", "moved"), [(0, 0), (1, 1), (19, 19), (20, 0), (40, 0)])
def test_the_comma_rule_reaches_twenty_tokens_back(after, moved):
    text = "cat " * (74 - after) + ", " + "snow " * after + "dog"
    first, second = cut([words(text)], VOCABULARY).chunks
    assert len(inner(first)) == 75 - moved
    assert len(inner(second)) == moved + 1


def test_a_comma_that_finds_its_chunk_full_opens_the_next():
    first, second = cut([words("cat , " + "cat " * 73 + ", snow")], VOCABULARY).chunks
    assert len(inner(first)) == 75
    assert inner(second) == [COMMA, SNOW]


def test_what_moves_keeps_its_weight():
    _, second = cut([words("cat " * 70 + ","), words("snow " * 4, 1.5), words("dog", 0.5)], VOCABULARY).chunks
    assert second.weights[:7] == (1.0, 1.5, 1.5, 1.5, 1.5, 0.5, 1.0)


def test_break_closes_a_chunk_however_empty():
    found = cut([words("cat"), BREAK, words(""), BREAK, words("snow")], VOCABULARY)
    assert [inner(chunk) for chunk in found.chunks] == [[CAT], [], [SNOW]]
    assert found.token_count == 151  # as the web UI counts: up to each border in full
    assert len(cut([words("cat"), BREAK], VOCABULARY).chunks) == 1
    assert len(cut([BREAK, words("cat")], VOCABULARY).chunks) == 2


def test_a_break_in_brackets_is_a_word():
    assert len(cut([words("cat"), Segment("BREAK", -1.1), words("cat")], VOCABULARY).chunks) == 1


def test_padding_of_its_own_begins_after_the_first_end_mark():
    vocabulary = Vocabulary.of(make_tokenizer("!"))
    (chunk,) = cut([words("cat <|endoftext|> snow")], vocabulary).chunks
    assert vocabulary.pad == 0 != END
    assert chunk.tokens == (BEGIN, CAT, END, *[0] * 74)


def test_an_embedding_takes_its_places_and_weight():
    (chunk,) = cut([words("cat badhandv4 snow", 1.2)], VOCABULARY, index(entry("badhandv4", 3))).chunks
    assert chunk.tokens[:7] == (BEGIN, CAT, 0, 0, 0, SNOW, END)
    assert chunk.weights[1:6] == (1.2,) * 5
    assert [(insert.place, insert.embedding.name) for insert in chunk.inserts] == [(2, "badhandv4")]


def test_an_embedding_that_does_not_fit_starts_a_chunk():
    find = index(entry("badhandv4", 6))
    assert len(cut([words("cat " * 69 + "badhandv4")], VOCABULARY, find).chunks) == 1
    first, second = cut([words("cat , " + "cat " * 68 + "badhandv4 snow")], VOCABULARY, find).chunks
    assert len(inner(first)) == 70 and not first.inserts
    assert second.inserts[0].place == 1
    assert inner(second) == [*[0] * 6, SNOW]


def test_an_embedding_moves_whole_behind_the_comma():
    find = index(entry("badhandv4", 6), entry("deepnegative", 2))
    # 2 + 64 + comma + snow + 6 + dog are 75 places, and one more word makes the chunk break.
    text = "deepnegative" + " cat" * 64 + ", snow badhandv4 dog"
    assert len(cut([words(text)], VOCABULARY, find).chunks) == 1
    first, second = cut([words(text + " cat")], VOCABULARY, find).chunks
    assert [insert.embedding.name for insert in first.inserts] == ["deepnegative"]
    assert [(insert.place, insert.embedding.name) for insert in second.inserts] == [(2, "badhandv4")]
    assert inner(second)[:8] == [SNOW, *[0] * 6, TOKENIZER.get_vocab()["dog</w>"]]


def test_the_longest_name_wins_then_the_first_in_the_folder():
    find = index(entry("badhandv", 1), entry("badhandv4", 2), entry("BadHandV4", 3))
    (chunk,) = cut([words("badhandv4 and BADHANDV 5")], VOCABULARY, find).chunks
    assert [insert.embedding.name for insert in chunk.inserts] == ["badhandv4", "badhandv"]


SEGMENTS = st.lists(
    st.one_of(
        st.just(("BREAK", -1.0)),
        st.tuples(
            st.lists(
                st.sampled_from(["cat", "snow ", " , ", "cat " * 9, "snow, " * 7, "badhandv4 ", "deepnegative", "é"]),
                max_size=12,
            ).map("".join),
            st.sampled_from([1.0, 1.1, 0.5]),
        ),
    ),
    max_size=9,
)


@settings(max_examples=150, deadline=None)
@given(SEGMENTS)
def test_chunks_are_those_of_a_second_writing(segments):
    entries = [entry("badhandv4", 8), entry("deepnegative", 30)]
    found = cut([Segment(*each) for each in segments], VOCABULARY, index(*entries)).chunks
    vectors = {each.name: each.embedding.vectors["text_encoder"] for each in entries}
    expected = plain_chunks(plain_units(segments, TOKENIZER, vectors), COMMA, vectors)
    flat = [
        [token for kind, what, _ in chunk for token in ([what] if kind == "token" else [0] * len(vectors[what]))]
        for chunk in expected
    ]
    assert [inner(chunk) for chunk in found] == flat
    weights = [
        [weight for kind, what, weight in chunk for _ in range(1 if kind == "token" else len(vectors[what]))]
        for chunk in expected
    ]
    assert [list(chunk.weights[1 : 1 + len(each)]) for chunk, each in zip(found, weights, strict=True)] == weights


def test_the_small_base_has_a_vocabulary_to_cut_with(root):
    folder = root / "src" / "loraloom" / "imaging" / "scenes" / "tokenizer"
    if not any(folder.glob("*.json")):
        pytest.skip("the small base is not there")
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    vocabulary = Vocabulary.of(tokenizer)
    text = "a red house in the snow, " * 20
    found = cut([words(text)], vocabulary).chunks
    expected = plain_chunks(plain_units([(text, 1.0)], tokenizer, {}), vocabulary.comma, {})
    assert vocabulary.comma is not None and len(found) == len(expected) > 1
    assert [list(each.tokens[1 : 1 + len(plain)]) for each, plain in zip(found, expected, strict=True)] == [
        [unit[1] for unit in plain] for plain in expected
    ]
