"""Classes: one name for every way of writing a label, a stable order, and what cannot be a class."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loraloom.data import Example, Labels, label_name
from loraloom.errors import DataError

LABEL = st.text(min_size=1, max_size=8).filter(str.strip) | st.integers() | st.booleans() | st.floats(allow_nan=False)


def examples(*labels, source="train.csv"):
    return [Example({"text": f"text {i}", "label": label}, source, i + 2) for i, label in enumerate(labels)]


@pytest.mark.parametrize(
    ("written", "name"),
    [
        (1, "1"),
        (1.0, "1"),
        ("1", "1"),
        ("1.0", "1"),
        (" 1 ", "1"),
        (-0.0, "0"),
        ("-0.0", "0"),
        (-1.0, "-1"),
        (0.5, "0.5"),
        ("0.50", "0.50"),
        ("3.10", "3.10"),
        ("007", "007"),
        (True, "true"),
        ("TRUE", "true"),
        (False, "false"),
        ("v1.0", "v1.0"),
        ("Positive", "Positive"),
        (1e20, "100000000000000000000"),
    ],
)
def test_one_name_for_all_spellings(written, name):
    assert label_name(written) == name


@given(LABEL)
def test_a_name_names_itself(value):
    assert label_name(label_name(value)) == label_name(value)


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        ((10, 9, 2), ("2", "9", "10")),
        (("10", "9.0", "2"), ("2", "9", "10")),
        ((1, -1, 0), ("-1", "0", "1")),
        ((0.5, 10, 1.5), ("0.5", "1.5", "10")),
        ((True, False), ("false", "true")),
        (("positive", "Negative", "mixed"), ("mixed", "Negative", "positive")),
        (("10 stars", "9 stars", "1 star"), ("1 star", "9 stars", "10 stars")),
        (("b", "10", "9"), ("9", "10", "b")),
    ],
)
def test_natural_order(labels, names):
    assert Labels.from_examples(examples(*labels)).names == names


@given(st.lists(LABEL, min_size=2, max_size=7, unique_by=label_name), st.randoms())
def test_labels_round_trip_in_an_order_that_does_not_depend_on_the_rows(values, shuffled):
    labels = Labels.from_examples(examples(*values))
    again = list(values)
    shuffled.shuffle(again)
    assert Labels.from_examples(examples(*again)).names == labels.names
    rows = examples(*values)
    assert [labels.names[number] for number in labels.encode(rows)] == [label_name(value) for value in values]
    assert [labels.index(value) for value in values] == labels.encode(rows)
    assert sorted(labels.encode(rows)) == list(range(len(labels)))
    assert Labels(tuple(labels.names)) == labels


def test_one_class():
    with pytest.raises(DataError) as caught:
        Labels.from_examples(examples("good", "good", "good"), column="stars")
    assert str(caught.value) == (
        "train.csv, column 'stars': expected at least two different labels, found only 'good' in 3 rows"
    )


def test_no_examples():
    with pytest.raises(DataError, match="found no rows"):
        Labels.from_examples([])


def test_an_unseen_label_is_named_with_its_line_and_the_nearest():
    labels = Labels(("negative", "neutral", "positive"))
    row = examples("negative", "postive", source="test.csv")[1]
    expected = (
        "test.csv:3: the label 'postive' is not among those that the model was trained on, "
        "'negative', 'neutral', 'positive'; did you mean 'positive'?"
    )
    for attempt in (lambda: labels.index("postive", row), lambda: labels.encode([row])):
        with pytest.raises(DataError) as caught:
            attempt()
        assert str(caught.value) == expected


def test_all_unseen_labels_are_named_at_once():
    with pytest.raises(DataError) as caught:
        Labels(("0", "1")).encode(examples(0, 7, 1, "x", 7, source="test.csv"))
    message = str(caught.value)
    assert message.startswith("test.csv:3: the label '7' (as are 'x') is not among")
    assert "'0', '1' in 3 rows" in message


def test_labels_that_are_measurements():
    draw = random.Random(0)
    rows = examples(*(round(draw.random(), 3) for _ in range(500)))
    with pytest.raises(DataError, match=r"train.csv, column 'score': \d+ different labels, with fractions such as"):
        Labels.from_examples(rows, column="score")


def test_half_stars_are_classes():
    assert len(Labels.from_examples(examples(*(i % 10 / 2 for i in range(60))))) == 10


@pytest.mark.parametrize("rows", [8, 30, 1_000])
def test_as_many_classes_as_rows(rows):
    with pytest.raises(DataError, match="nearly every row has its own"):
        Labels.from_examples(examples(*(f"id-{i}" for i in range(rows))))


def test_nearly_as_many_classes_as_rows():
    with pytest.raises(DataError, match="nearly every row has its own"):
        Labels.from_examples(examples(*(f"id-{i}" for i in range(60)), *("same" for _ in range(40))))


def test_a_small_first_try_and_many_real_classes_pass():
    assert len(Labels.from_examples(examples("a", "b", "c"))) == 3
    assert len(Labels.from_examples(examples(*(f"intent {i % 77}" for i in range(400))))) == 77


def test_names_that_differ_in_case_are_told():
    labels = Labels.from_examples(examples("Good", "good", "bad"))
    assert labels.names == ("bad", "Good", "good")
    assert labels.notes() == ["labels 'Good', 'good' differ only in case and are kept apart"]
    assert Labels(("a", "b")).notes() == []


def test_counts_follow_the_order_of_the_classes():
    labels = Labels(("0", "1", "2"))
    assert list(labels.counts(examples(2, 0, 2.0, "2")).items()) == [("0", 1), ("1", 0), ("2", 3)]
