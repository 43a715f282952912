"""The data layer on real public sets, where they lie beside the repository."""

from __future__ import annotations

from pathlib import Path

import pytest

from loraloom.data import Labels, find_leaks, length_batches, padding_share, sorted_batches, split_examples
from loraloom.errors import DataError

FOLDER = Path(__file__).parents[2].parent / "shared" / "data" / "text_classification"


@pytest.fixture(
    params=[
        ("banking77", 9_947, 3_076, 77),
        ("vader_tweets", 2_622, 657, 2),
        ("nusax_english_sentiment", 600, 400, 3),
        ("poem_sentiment", 997, 104, 4),
    ],
    ids=lambda case: case[0],
)
def case(request):
    name, train, test, classes = request.param
    if not (FOLDER / name).is_dir():
        pytest.skip(f"needs ../shared/data/text_classification/{name}")
    return FOLDER / name, train, test, classes


def test_reading_splitting_and_batching(case, read):
    folder, train_rows, test_rows, classes = case
    train, test = read(str(folder / "train.csv")), read(str(folder / "test.csv"))
    assert (len(train.examples), len(test.examples)) == (train_rows, test_rows)
    labels = Labels.from_examples(train.examples, column=train.columns["label"])
    assert len(labels) == classes and min(labels.counts(train.examples).values()) > 0
    assert max(labels.encode(test.examples)) < classes
    assert not any(leak.exact for leak in find_leaks(train.examples, test.examples))

    kept, aside = split_examples(train.examples, 0.1, 0)
    assert find_leaks(kept, aside) == []
    assert abs(len(aside) - train_rows / 10) <= train_rows / 100
    lengths = [len(example.values["text"].split()) for example in kept]
    best = padding_share(lengths, sorted_batches(lengths, 32))
    assert padding_share(lengths, length_batches(lengths, 32, seed=0, epoch=0)) < best + 0.02


def test_every_line_number_is_right(case, read):
    folder = case[0]
    lines = (folder / "train.csv").read_text(encoding="utf-8").split("\n")
    for example in read(str(folder / "train.csv")).examples:
        begin = example.values["text"].split("\n")[0].replace('"', '""')
        assert begin in lines[example.line - 1]


def test_the_text_column_is_no_label_column(case, read):
    table = read(str(case[0] / "train.csv"), columns={"text": "label", "label": "text"})
    with pytest.raises(DataError, match="column 'text': .* nearly every row has its own"):
        Labels.from_examples(table.examples, column=table.columns["label"])
