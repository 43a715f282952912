"""How the values of an axis are written, and what is refused in words."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loraloom.errors import ConfigError, DataError, LoraloomError
from loraloom.imaging.grid.axis import Axis, parse_axis
from loraloom.imaging.grid.kinds import KINDS
from loraloom.imaging.grid.notation import MOST_VALUES, numbers, split_texts, split_words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1", (1.0,)),
        ("0,0.5, 1", (0.0, 0.5, 1.0)),
        ("0..1/0.25", (0.0, 0.25, 0.5, 0.75, 1.0)),
        ("0..1/0.1", (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)),
        ("0..1/0.4", (0.0, 0.4, 0.8)),
        ("1..0/0.5", (1.0, 0.5, 0.0)),
        ("-1..1[3]", (-1.0, 0.0, 1.0)),
        ("0..1[5], 2", (0.0, 0.25, 0.5, 0.75, 1.0, 2.0)),
        (".5..1.5/.5", (0.5, 1.0, 1.5)),
        ("3..3", (3.0,)),
    ],
)
def test_numbers_are_exactly_what_was_written(text: str, expected: tuple[float, ...]) -> None:
    assert numbers(text, whole=False) == expected


def test_whole_numbers_stay_whole() -> None:
    found = numbers("1..4, 10..6/2", whole=True)
    assert found == (1, 2, 3, 4, 10, 8, 6)
    assert all(isinstance(number, int) for number in found)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no values"),
        (" , ", "no values"),
        ("1,,2", "nothing between"),
        ("0..1/0", "never ends"),
        ("0..1/-0.25", "never ends"),
        ("0.5..2", "needs a step"),
        ("0..1[1]", "at least 2"),
        ("0..1[0]", "at least 2"),
        ("0..1/1e-9", "1,000,000,001 values"),
        ("1..99999999999", "99,999,999,999 values"),
        ("0..1[99999999999]", "values"),
        ("1..2..3", "not a range"),
        ("..3", "not a range"),
        ("nan", "not a number"),
        ("1e999", "sensible range"),
        ("inf", "not a number"),
        ("one", "'one' is not a number"),
        (",".join(map(str, range(MOST_VALUES + 1))), "more than 1,000"),
    ],
)
def test_what_is_no_list_of_numbers_is_refused(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        numbers(text, whole=False)


@given(st.text(max_size=40))
def test_any_text_is_read_or_refused_in_words(text: str) -> None:
    for whole in (True, False):
        try:
            found = numbers(text, whole=whole)
        except ConfigError:
            continue
        assert 0 < len(found) <= MOST_VALUES


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a cat | a boat", ["a cat", "a boat"]),
        ("a [red|blue] cat | a boat", ["a [red|blue] cat", "a boat"]),
        ("[[a|b]:c:3] | d", ["[[a|b]:c:3]", "d"]),
        ("an [open bracket | two", ["an [open bracket", "two"]),
        ("a closed] one | two", ["a closed] one", "two"]),
        (r"\[a | b\]", [r"\[a", r"b\]"]),
        ("one, with a comma", ["one, with a comma"]),
    ],
)
def test_bars_part_texts_but_not_alternations(text: str, expected: list[str]) -> None:
    assert split_texts(text) == expected


def test_texts_come_from_the_lines_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("a cat, red\n\n  a boat | at sea  \n", "utf-8")
    assert split_texts(f"@{file}") == ["a cat, red", "a boat | at sea"]


@pytest.mark.parametrize(
    ("data", "words"), [(None, "no such file"), (b"\xff\xfe", "not UTF-8"), (b" \n\n", "no lines")]
)
def test_a_file_without_texts_is_refused(tmp_path: Path, data: bytes | None, words: str) -> None:
    file = tmp_path / "prompts.txt"
    if data is not None:
        file.write_bytes(data)
    with pytest.raises(DataError, match=words):
        split_texts(f"@{file}")


def test_words_may_be_in_quotes() -> None:
    assert split_words(r"'two words:1' C:\styles\neon") == ["two words:1", r"C:\styles\neon"]
    with pytest.raises(ConfigError, match="never closes"):
        split_words("'a")


# -- axes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "axis"),
    [
        ("seed: 1..3", Axis("seed", (1, 2, 3))),
        ("seeds=1..3", Axis("seed", (1, 2, 3))),
        ("weight pencil = 0, .5", Axis("weight", (0.0, 0.5), "pencil")),
        ("weight 'my style': 1", Axis("weight", (1.0,), "my style")),
        ("cfg: 2..6/2", Axis("guidance", (2.0, 4.0, 6.0))),
        ("prompt: a:b=c | d", Axis("prompt", ("a:b=c", "d"))),
        ("word red cat: blue cat, dog", Axis("word", ("blue cat", "dog"), "red cat")),
        ("sampler: euler a, DPM++ 2M Karras", Axis("sampler", ("Euler a", "DPM++ 2M Karras"))),
        ("lora: pencil, neon:0.5", Axis("adapter", ("pencil", "neon:0.5"))),
        ("Clip_Skip: 1,2", Axis("clip-skip", (1, 2))),
        ("size: 64, 96x64", Axis("size", ("64", "96x64"))),
    ],
)
def test_an_axis_as_it_is_written(text: str, axis: Axis) -> None:
    assert parse_axis(text) == axis
    assert Axis.from_json(axis.to_json()) == axis


def test_labels_are_what_people_say() -> None:
    assert parse_axis("setup: none | pencil:1 | soft = pencil:0.6 neon:0.5 | a/glass.safetensors:0.2:0.4").labels == (
        "no adapter",
        "pencil 1",
        "soft",
        "glass 0.4 (text 0.2)",
    )
    assert parse_axis("weight pencil: 0..1[3]").labels == ("0", "0.5", "1")
    assert parse_axis("weight pencil: 0").heading == "pencil"
    assert parse_axis("size: 64").labels == ("64×64",)
    assert parse_axis("adapter: none, neon:0.5").labels == ("none", "neon 0.5")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not of the form KIND: VALUES"),
        ("seed", "not of the form KIND: VALUES"),
        ("1, 2, 3", "not of the form KIND: VALUES"),
        ("sead: 1", "did you mean 'seed'"),
        ("zzz: 1", "there are prompt, negative"),
        ("seed: 1, 1", "'1' is there twice"),
        ("seed: -1", "-1 is not a whole number from 0"),
        ("seed x: 1", "takes no name, found 'x'"),
        ("steps: 0", "0 is not a whole number from 1 to 1000"),
        ("guidance: 1000", "1000.0 is not a number from 0 to 100"),
        ("strength: 1.5", "from 0 to 1"),
        ("weight pencil: 0.5x", "'0.5x' is not a number"),
        ("word: a, b", "needs the text to replace"),
        ("sampler: Eular", "'Euler'"),
        ("size: 12x", "'12x' is not a size"),
        ("setup: pencil:1 |", "an empty set-up"),
        ("setup: pencil:1 pencil:2", "twice"),
    ],
)
def test_an_axis_that_cannot_be_is_refused_in_one_sentence(text: str, words: str) -> None:
    with pytest.raises(LoraloomError) as caught:
        parse_axis(text, "--rows")
    assert words in str(caught.value)
    assert str(caught.value).startswith("--rows ")
    assert "\n" not in str(caught.value)


@given(st.sampled_from([*KINDS, "x"]), st.text(max_size=10), st.text(max_size=30))
def test_any_axis_is_read_or_refused_in_words(kind: str, name: str, values: str) -> None:
    try:
        axis = parse_axis(f"{kind} {name}: {values}")
    except LoraloomError as error:
        assert str(error)
    else:
        assert len(axis.labels) == len(axis.values) > 0
