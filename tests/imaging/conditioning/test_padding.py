"""Texts of different lengths in one batch."""

from __future__ import annotations

import pytest
import torch

from loraloom.imaging.conditioning import Conditioning, batches, pad_together


@pytest.fixture
def texts():
    generator = torch.Generator().manual_seed(0)
    empty = torch.randn(77, 4, generator=generator)
    return [Conditioning(torch.randn(77 * chunks, 4, generator=generator), None, empty) for chunks in (1, 3, 3)]


def test_shorter_texts_get_empty_chunks(texts):
    short, long, _ = texts
    found = pad_together([short, long])
    assert found.shape == (2, 231, 4)
    assert torch.equal(found[1], long.hidden)
    assert torch.equal(found[0], torch.cat([short.hidden, short.empty, short.empty]))


def test_or_their_last_vector(texts):
    found = pad_together(texts[:2], "last")
    assert torch.equal(found[0, 77:], texts[0].hidden[-1].expand(154, 4))


def test_texts_of_one_length_are_left_alone(texts):
    assert torch.equal(pad_together(texts[1:]), torch.stack([text.hidden for text in texts[1:]]))


def test_equal_lengths_run_as_one_batch(texts):
    short, long, other = texts
    (together,) = batches([short, long], other)
    assert torch.equal(together, torch.cat([pad_together([short, long], "last"), other.hidden[None]]))


def test_a_negative_of_another_length_runs_alone(texts):
    short, long, other = texts
    parts, negative = batches([long, other], short)
    assert torch.equal(parts, pad_together([long, other])) and torch.equal(negative[0], short.hidden)


@pytest.mark.parametrize("swap", [False, True])
def test_unless_padding_is_asked_for(texts, swap):
    short, long, _ = texts
    part, negative = (long, short) if swap else (short, long)
    (together,) = batches([part], negative, pad=True)
    assert torch.equal(together, pad_together([part, negative]))


def test_texts_that_are_not_cut_have_one_length():
    plain = Conditioning(torch.zeros(512, 4), torch.zeros(4))
    assert plain.chunks == 1
    assert batches([plain], plain)[0].shape == (2, 512, 4)
