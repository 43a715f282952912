"""Splitting and leaks: a partition by the seed alone, classes alike, like texts on one side."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.scaling import grows_about_linearly

from loraloom.data import Example, drop_duplicates, find_leaks, sample_examples, split_examples
from loraloom.errors import ConfigError, DataError

WORDS = [f"word{i}" for i in range(400)]


def example(text, label="a", line=2):
    return Example({"text": text, "label": label}, "train.csv", line)


def made(count, classes=("a", "b"), seed=0):
    draw = random.Random(seed)
    return [example(" ".join(draw.choices(WORDS, k=12)), classes[i % len(classes)], i + 2) for i in range(count)]


def by_label(examples):
    return Counter(one.values["label"] for one in examples)


SENTENCE = st.lists(st.sampled_from("abcd"), min_size=1, max_size=5).map(" ".join)


@settings(deadline=None, max_examples=200)
@given(
    st.lists(st.tuples(SENTENCE, st.sampled_from("xyz")), min_size=1, max_size=40),
    st.floats(0.02, 0.98),
    st.integers(0, 9),
)
def test_a_split_is_a_partition_in_file_order_that_keeps_every_class_in_training(rows, fraction, seed):
    examples = [example(text, label, i) for i, (text, label) in enumerate(rows)]
    try:
        train, evaluation = split_examples(examples, fraction, seed)
    except DataError:
        return  # nothing to spare
    assert sorted([*train, *evaluation], key=lambda one: one.line) == examples
    assert [one.line for one in train] == sorted(one.line for one in train)
    assert [one.line for one in evaluation] == sorted(one.line for one in evaluation)
    assert evaluation and set(by_label(train)) == set(by_label(examples))
    assert not any(leak.exact for leak in find_leaks(train, evaluation))


@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.5])
def test_classes_are_set_aside_alike(fraction):
    examples = made(600, ("a", "a", "a", "b"))
    train, evaluation = split_examples(examples, fraction, 0)
    assert by_label(evaluation) == {"a": round(450 * fraction), "b": round(150 * fraction)}
    assert len(train) + len(evaluation) == 600


def test_many_small_classes_still_give_the_whole_share():
    _, evaluation = split_examples(made(80, tuple(f"c{i}" for i in range(20))), 0.1, 0)
    assert len(evaluation) == 8 and max(by_label(evaluation).values()) == 1


def test_without_classes():
    examples = made(100)
    _, evaluation = split_examples(examples, 0.2, 0, stratify_by=None)
    assert len(evaluation) == 20


def test_the_seed_decides_and_nothing_else():
    examples = made(200)
    first = split_examples(examples, 0.2, 7)
    random.seed(1)
    assert split_examples(examples, 0.2, 7) == first
    assert split_examples(examples, 0.2, 8) != first


def test_the_split_does_not_depend_on_the_hash_seed():
    code = (
        "import random; from loraloom.data import *; d = random.Random(0);"
        "rows = [Example({'text': ' '.join(d.choices('abcdefgh', k=6)), 'label': i % 10}, 's', i)"
        " for i in range(80)]; print([e.line for e in split_examples(rows, .3, 1)[1]])"
    )
    assert len({run_with_hash_seed(code, seed) for seed in ("1", "2", "3")}) == 1


def test_near_duplicates_stay_on_one_side():
    examples = made(200)
    for i, one in enumerate(examples[:60]):
        words = one.values["text"].split()
        examples.append(example(" ".join([*words[:5], *words[6:]]), one.values["label"], 1_000 + i))
        examples.append(example(one.values["text"].upper() + "!", one.values["label"], 2_000 + i))
    for seed in range(5):
        train, evaluation = split_examples(examples, 0.2, seed)
        assert find_leaks(train, evaluation) == []
        assert 55 <= len(evaluation) <= 64
        assert any(one.line >= 1_000 for one in evaluation)


def test_rows_from_one_template_are_split_all_the_same_but_not_their_copies():
    examples = [
        example(f"the dinner at this place was very {word} that day", "ab"[i % 2], i)
        for i, word in enumerate(WORDS[:60] * 2)
    ]
    train, evaluation = split_examples(examples, 0.2, 0)
    leaks = find_leaks(train, evaluation)
    assert 20 <= len(evaluation) <= 24
    assert len(leaks) == len(evaluation) and not any(leak.exact for leak in leaks)


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 1.5])
def test_a_fraction_that_is_none(fraction):
    with pytest.raises(ConfigError, match="eval_fraction: expected a share between 0 and 1, found"):
        split_examples(made(10), fraction, 0)


@pytest.mark.parametrize("examples", [[], made(1), made(2), [example("same"), example("same")]])
def test_too_few_to_set_any_aside(examples):
    with pytest.raises(DataError, match="too few to set some aside"):
        split_examples(examples, 0.1, 0)


def test_leaks_exact_and_near():
    train = [
        example("The soup was cold and the waiter did not care at all.", line=2),
        example("Lovely!", line=3),
        example("lovely", line=4),
    ]
    near = example("The soup was cold and the waiter really did not care at all", line=7)
    evaluation = [example("LOVELY", "b", 5), example("Something else entirely", line=6), near]
    exact, almost = find_leaks(train, evaluation)
    assert (exact.train.line, exact.evaluation.line, exact.similarity, exact.exact) == (3, 5, 1.0, True)
    assert (almost.train.line, almost.evaluation, almost.exact) == (2, near, False)
    assert 0.6 <= almost.similarity < 1


def test_the_nearest_training_example_is_named():
    words = WORDS[:14]
    train = [example(" ".join([*words[:12], "x"]), line=2), example(" ".join([*words[:13], "x"]), line=3)]
    (leak,) = find_leaks(train, [example(" ".join(words))])
    assert leak.train.line == 3


def test_labels_are_no_part_of_the_text():
    train, evaluation = [example("well well", "a")], [example("well well", "b")]
    assert len(find_leaks(train, evaluation)) == 1
    assert find_leaks(train, evaluation, ignore=()) == []


def test_ten_times_the_rows_take_nothing_like_a_hundred_times_the_time():
    draw, weights = random.Random(0), [1 / (rank + 1) for rank in range(400)]
    rows = [example(" ".join(draw.choices(WORDS, weights, k=draw.randint(4, 20)))) for _ in range(20_000)]
    assert grows_about_linearly(
        lambda: find_leaks(rows[:1_800], rows[18_000:18_200]), lambda: find_leaks(rows[:18_000], rows[18_000:]), 10
    )


def test_duplicates_are_dropped_but_the_first():
    rows = [example("Fine.", line=2), example("bad", line=3), example("fine", "b", line=4), example("FINE", line=5)]
    kept, dropped = drop_duplicates(rows)
    assert [one.line for one in kept] == [2, 3] and [one.line for one in dropped] == [4, 5]


def test_a_sample_is_drawn_by_the_seed_in_file_order():
    rows = made(100)
    sample = sample_examples(rows, 20, 3)
    assert sample == sample_examples(rows, 20, 3) != sample_examples(rows, 20, 4)
    assert len(sample) == 20 and [one.line for one in sample] == sorted({one.line for one in sample})
    assert max(one.line for one in sample) > 60
    assert sample_examples(rows, 100, 0) == rows == sample_examples(rows, 1_000, 0)


def run_with_hash_seed(code, seed):
    environment = {**os.environ, "PYTHONHASHSEED": seed}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    return done.stdout
