"""Batches: every index once, little padding, another order each epoch, the same one after a resume."""

from __future__ import annotations

import random
import subprocess
import sys
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loraloom.data import length_batches, micro_batches, padding_share, shard_batch, sorted_batches
from loraloom.errors import ConfigError

LENGTHS = st.lists(st.integers(1, 500), max_size=120)


def realistic(count, seed=0):
    """Lengths of short texts in tokens: most near 18, a long tail to 128, as in reviews and tweets."""
    draw = random.Random(seed)
    return [min(128, 2 + round(draw.lognormvariate(2.8, 0.6))) for _ in range(count)]


def at_random(count, batch_size):
    order = list(range(count))
    random.Random(0).shuffle(order)
    return [order[start : start + batch_size] for start in range(0, count, batch_size)]


@given(LENGTHS, st.integers(1, 40), st.integers(0, 5), st.integers(0, 5))
def test_batches_are_a_partition_into_as_few_as_can_be(lengths, batch_size, seed, epoch):
    batches = length_batches(lengths, batch_size, seed=seed, epoch=epoch)
    for made in (batches, sorted_batches(lengths, batch_size)):
        assert sorted(index for batch in made for index in batch) == list(range(len(lengths)))
        assert len(made) == -(-len(lengths) // batch_size)
        assert all(0 < len(batch) <= batch_size for batch in made)
        assert sum(len(batch) < batch_size for batch in made) <= 1
    assert batches == length_batches(tuple(lengths), batch_size, seed=seed, epoch=epoch)


@pytest.mark.parametrize(("count", "above_sorted"), [(600, 0.02), (4_000, 0.01), (20_000, 0.01)])
def test_padding_is_near_the_sorted_optimum_and_far_from_random(count, above_sorted):
    lengths = realistic(count)
    share = padding_share(lengths, length_batches(lengths, 32, seed=0, epoch=0))
    best = padding_share(lengths, sorted_batches(lengths, 32))
    assert best <= share + 0.01 and share < best + above_sorted
    assert share < padding_share(lengths, at_random(count, 32)) / 4


def test_epochs_and_seeds_differ_in_order_and_in_company():
    lengths = realistic(1_000)
    first = length_batches(lengths, 16, seed=0, epoch=0)
    for other in (length_batches(lengths, 16, seed=0, epoch=1), length_batches(lengths, 16, seed=1, epoch=0)):
        assert [batch[0] for batch in first] != [batch[0] for batch in other]
        same = {frozenset(batch) for batch in first} & {frozenset(batch) for batch in other}
        assert len(same) < len(first) / 10


def test_the_order_of_batches_does_not_follow_length():
    lengths = realistic(4_000)
    means = [sum(lengths[i] for i in batch) / len(batch) for batch in length_batches(lengths, 32, seed=0, epoch=0)]
    rises = sum(a < b for a, b in pairwise(means)) / (len(means) - 1)
    assert 0.3 < rises < 0.7


def test_lengths_that_differ_much_meet_others_too():
    """Without ties the jitter alone brings new company, of lengths at most a twentieth away."""
    lengths = list(range(100, 1_100))
    first, second = (length_batches(lengths, 10, seed=0, epoch=epoch) for epoch in (0, 1))
    assert not {frozenset(batch) for batch in first} & {frozenset(batch) for batch in second}
    assert padding_share(lengths, first) < 0.06


def test_the_small_batch_is_not_always_of_the_longest():
    lengths = realistic(1_000)
    small = [min(length_batches(lengths, 32, seed=0, epoch=epoch), key=len) for epoch in range(12)]
    longest = [max(lengths[i] for i in batch) for batch in small]
    assert len({len(batch) for batch in small}) == 1 and len(set(longest)) > 6


def test_neither_hash_seed_nor_global_random_state_matters(monkeypatch):
    expected = length_batches(realistic(100), 8, seed=3, epoch=2)
    random.seed(5)
    assert length_batches(realistic(100), 8, seed=3, epoch=2) == expected
    code = f"from loraloom.data import *; print(length_batches({realistic(100)}, 8, seed=3, epoch=2))"
    for seed in ("1", "2"):
        monkeypatch.setenv("PYTHONHASHSEED", seed)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == str(expected)


def test_the_order_stays_what_it_was_in_earlier_versions():
    """A checkpoint of an older version resumes in the middle of an epoch: this order is a format."""
    expected = [[5, 1], [0, 4], [2], [3, 6]]
    assert length_batches([5, 9, 5, 30, 7, 8, 31], 2, seed=0, epoch=0) == expected


def test_evaluation_goes_from_long_to_short_and_keeps_file_order_among_equals():
    assert sorted_batches([3, 9, 3, 9, 5], 2) == [[1, 3], [4, 0], [2]]


def test_padding_share():
    assert padding_share([2, 4], [[0, 1]]) == pytest.approx(2 / 8)
    assert padding_share([2, 4], [[0], [1]]) == 0
    assert padding_share([], []) == 0


@given(st.lists(st.integers(), max_size=40), st.integers(1, 12))
def test_micro_batches_are_the_batch_in_even_parts(batch, parts):
    made = micro_batches(batch, parts)
    assert [index for part in made for index in part] == batch
    assert len(made) == min(parts, len(batch))
    assert not made or max(map(len, made)) - min(map(len, made)) <= 1


@given(st.lists(st.integers(), max_size=40, unique=True), st.integers(1, 6))
def test_shards_are_a_partition_in_even_parts(batch, processes):
    shards = [shard_batch(batch, process, processes) for process in range(processes)]
    assert sorted(index for shard in shards for index in shard) == sorted(batch)
    assert max(map(len, shards)) - min(map(len, shards)) <= 1


@pytest.mark.parametrize(
    "call",
    [
        lambda: length_batches([1], 0, seed=0, epoch=0),
        lambda: sorted_batches([1], -1),
        lambda: micro_batches([1], 0),
        lambda: shard_batch([1], 2, 2),
        lambda: shard_batch([1], -1, 2),
    ],
)
def test_sizes_that_make_no_sense(call):
    with pytest.raises(ConfigError, match="expected .*, found"):
        call()
